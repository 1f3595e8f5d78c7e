"""metrics.jsonl when a run resumes: rows of later steps go, rewinds stand where they happened, lines stay as they were."""

import errno
import json
import os
import shutil
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from emergence_train import files
from emergence_train.errors import InputError, RunError
from emergence_train.recorder import evaluations, tables
from emergence_train.recorder.metrics import Metrics, read_metrics
from emergence_train.recorder.run_log import RunLog

HEADER = {"run": "r", "params": 1, "vocabulary": "v", "batch": 2, "sequence": 8}


def started(folder, steps=10) -> RunLog:
    log = RunLog(folder, HEADER, 0, [])
    for step in range(1, steps + 1):
        loss = float("nan") if step == 3 else 1 / step
        log.write("train", step=step, tokens=16 * step, lr=0.1, loss=loss, tokens_per_second=4.0 if step > 1 else None)
        if step == 3:
            log.write("skipped", step=step, reason="not finite")
        if step % 5 == 0:
            log.write("validation", step=step, loss={"iid": 2.0 / step})
            log.write("evaluation", step=step, seconds=1.5)
    assert log.close() is None
    return log


def test_a_log_is_cut_to_the_step_and_lines_stay_as_they_were(tmp_path):
    started(tmp_path)
    before = (tmp_path / "metrics.jsonl").read_bytes().splitlines()
    log = RunLog(tmp_path, HEADER, 7, [])
    kept = [line for line in before if json.loads(line).get("step", 0) <= 7]
    assert (tmp_path / "metrics.jsonl").read_bytes().splitlines() == kept
    assert log.missing_rows(7, set()) is None and "1 of 8 train rows" in log.missing_rows(8, set())


def test_a_table_that_is_none_keeps_no_other_from_the_disk(tmp_path):
    log = RunLog(tmp_path, HEADER, 0, [])
    good = {"run": "r", "params": 1, "step": 1, "tokens": 16, "split": "iid", "position": 1, "count": 2}
    good |= {"loss_sum": 4.0, "loss_sq_sum": 8.0, "correct": 1}
    with pytest.raises(pa.ArrowException):
        log.positions(1, pd.DataFrame([good | {"split": 5}, good]))
    log.positions(2, pd.DataFrame([good | {"step": 2}]))
    assert log.close() is None
    assert tables.read(tables.POSITIONS, tmp_path)["step"].tolist() == [2]


@pytest.mark.parametrize("place", ["table", "log"])
def test_a_full_disk_names_no_remedy_of_an_end(place, tmp_path, monkeypatch):
    """The rows are kept and the run goes on: nothing is to be run again."""
    log, table = RunLog(tmp_path, HEADER, 0, []), tmp_path / "positions" / "step-0000000001.parquet"

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        if place == "table":
            log.tables.append(partial(files.write_bytes, table, b"x"))
            patch.setattr(Path, "write_bytes", full)
        else:
            log.write("train", step=1, loss=1.0)
            patch.setattr(os, "fsync", full)
        assert log.flush() == f"{table if place == 'table' else log.path}: no space left on the disk"
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(RunError, match="no space left on the disk; free some or choose another directory"):
            files.write_bytes(table, b"x")
    assert log.close() is None and (place == "log" or table.read_bytes() == b"x")


def test_what_is_due_again_is_removed(tmp_path):
    """Of the last step alone, and not what is no measurement."""
    started(tmp_path)
    log = RunLog(tmp_path, HEADER, 7, [])
    measured = [row for row in read_metrics(tmp_path) if row["kind"] in ("validation", "evaluation")]
    last = max(row["step"] for row in measured)
    log.write("straggler", step=last, rank=1)
    log.close()
    before = read_metrics(tmp_path)
    RunLog(tmp_path, HEADER, last, [], due=True)
    again = [row for row in before if row.get("step", 0) <= last and not (row in measured and row["step"] == last)]
    assert read_metrics(tmp_path) == again and len(again) < len(before)
    assert sum(row["kind"] == "straggler" for row in again) == 1


def test_what_is_read_back_is_given_away_once(tmp_path):
    """Also: the columns of Metrics against a plain reading of the lines."""
    started(tmp_path)
    log = RunLog(tmp_path, HEADER, 7, [])
    back = log.take_read_back()
    rows = [row for row in read_metrics(tmp_path) if row["kind"] == "train"]
    for name in ("step", "tokens", "lr", "loss", "tokens_per_second"):
        plain = [np.nan if row[name] is None else row[name] for row in rows]
        np.testing.assert_array_equal(back.train(name), plain)
    assert back.skipped().tolist() == [row["step"] == 3 for row in rows]
    assert [row["kind"] for row in back.events] == ["skipped", "validation", "evaluation"]
    assert back.cost_of_tasks() == (1.5, 6 * 16 / 4.0)
    held = [value for value in vars(log).values() if isinstance(value, (list, dict)) and len(value) > len(HEADER)]
    assert held == []


def test_rewinds_stand_before_the_first_later_row(tmp_path):
    """Against inserting them one after another into the list of rows."""
    started(tmp_path)
    rewinds = [{"step": 4, "failed_step": 6}, {"step": 2, "failed_step": 5}, {"step": 4, "failed_step": 9}]
    rewinds += [{"step": 7, "failed_step": 9}]
    rows = [row for row in read_metrics(tmp_path) if row.get("step", 0) <= 7 and row["kind"] != "run"]
    for rewind in rewinds:
        at = next((i for i, row in enumerate(rows) if row["step"] > rewind["step"]), len(rows))
        rows.insert(at, {"kind": "rewind", **rewind})
    RunLog(tmp_path, HEADER, 7, rewinds)
    assert read_metrics(tmp_path) == [{"kind": "run", **HEADER}, *rows]


def test_bad_lines_are_refused_by_row(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for line, message in (
        (b'{"kind": "train", "step": "x"}', "row 2, column 'step': 'x' is not a number"),
        (b"\xff\xfe", "row 2 is not a JSON object"),
        (b"[" * 100_000, "row 2 is not a JSON object"),
        (b"[1]", "row 2 is not a JSON object"),
        (b'{"kind": "train", "step": 1, "loss": []}', "row 2, column 'loss': .* is not a finite number"),
    ):
        content = b'{"kind": "run", "run": "r"}\n' + line + b"\n"
        path.write_bytes(content)
        with pytest.raises(InputError, match=message):
            RunLog(tmp_path, HEADER, 5, [])
        assert path.read_bytes() == content and list(tmp_path.iterdir()) == [path]
    path.write_bytes(b'{"kind": "run"}\n{"kind": "tr')
    assert len(Metrics.read(tmp_path).train("step")) == 0


def test_rows_end_where_a_power_cut_left_zeros(tmp_path):
    """Of what comes after them nothing was known to be written, whatever was parsed together with it."""
    started(tmp_path)
    path = tmp_path / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:6]) + bytes(4096) + b"\n" + b"".join(lines[6:]))
    assert read_metrics(tmp_path) == [json.loads(line) for line in lines[:6]]


def test_after_a_failed_fsync_the_log_is_another_file(tmp_path, monkeypatch):
    """The old one's pages count as written and are not; what had been synced and what has been written since are kept."""
    log, plain, failing = RunLog(tmp_path, HEADER, 0, []), os.fsync, [False]

    def fsync(descriptor):
        if failing[0] and descriptor == log.file:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        plain(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    log.write("train", step=1)
    assert log.flush() is None
    log.write("train", step=2)
    failing[0], before = True, os.stat(log.path).st_ino
    assert "cannot write" in log.flush()
    failing[0] = False
    synced = os.path.getsize(log.path)
    with open(log.path, "r+b") as file:  # as a file system may that drops the pages it could not write
        file.seek(synced - 20)
        file.write(bytes(20))
    log.write("train", step=3)
    assert log.flush() is None and os.stat(log.path).st_ino != before
    log.write("train", step=4)
    assert log.close() is None
    assert [row["step"] for row in read_metrics(tmp_path)[1:]] == [1, 2, 3, 4]


def rewritten(path, old: bytes = b"1", new: bytes = b"2"):
    """As an editor or `sed -i` saves a file: another one under its name, of the same size."""
    path.with_name("new").write_bytes(path.read_bytes().replace(old, new))
    path.with_name("new").replace(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda path: path.unlink(),
        lambda path: shutil.rmtree(path.parent),
        lambda path: path.parent.rename(path.parent.with_name("moved")),
        lambda path: (path.parent.rename(path.parent.with_name("moved")), path.parent.mkdir()),
        rewritten,
        lambda path: (path.rename(path.with_name("moved")), path.mkdir()),
        lambda path: (path.rename(path.with_name("moved")), path.symlink_to(path)),
    ],
    ids=["deleted", "folder deleted", "folder moved", "folder remade", "rewritten", "a folder", "a link to itself"],
)
def test_a_log_that_lost_its_name_is_a_failure(tmp_path, change):
    """fsync of the open file succeeds, and the rows are lost; a folder that is gone is not begun again."""
    log = RunLog(tmp_path / "run", HEADER, 0, [])
    log.write("train", step=1)
    assert log.flush() is None
    change(log.path)
    left = sorted(tmp_path.rglob("*"))
    log.write("train", step=2)
    table = tmp_path / "run" / "positions" / "step-0000000002.parquet"
    log.tables.append(partial(files.write_bytes, table, b"a table"))
    for end in (log.flush, log.close):
        with pytest.raises(RunError, match=r"run/metrics\.jsonl: was moved, deleted or replaced .*; put it back"):
            end()
    assert sorted(tmp_path.rglob("*")) == left


@pytest.mark.parametrize("how", ["another number at each look", "rewritten alike"])
def test_a_log_of_the_same_content_continues(tmp_path, monkeypatch, how):
    """Mounts without stable inode numbers: every row is in the file of the log's name."""
    log = RunLog(tmp_path, HEADER, 0, [])
    if how.startswith("another"):
        monkeypatch.setattr(os.path, "samestat", lambda *status: False)
    for step in range(1, 4):
        log.write("train", step=step)
        assert log.flush() is None
        if how.startswith("rewritten"):
            rewritten(log.path, b"", b"")
    assert log.close() is None
    assert [row["step"] for row in read_metrics(tmp_path)[1:]] == [1, 2, 3]
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(log.file)


def scores(task: str) -> pd.DataFrame:
    row = {"run": "r", "params": 1, "step": 4, "tokens": 64, "loss": 2.0, "task": task, "metric": "acc", "value": 0.5}
    return pd.DataFrame([row | {"stderr": 0.1, "items": 9.0, "chance": 0.5, "higher_is_better": True}])


def test_scores_of_concurrent_writers_are_all_kept(tmp_path, monkeypatch):
    """Eight that have all read the table before the first of them writes it, were it not for the lock."""
    path, read = tmp_path / "evaluations" / "step-0000000004.parquet", tables.read
    evaluations.add(path, scores("first"), "v")
    monkeypatch.setattr(tables, "read", lambda *given: (read(*given), threading.Event().wait(0.1))[0])
    names = [f"task{number}" for number in range(8)]
    writers = [threading.Thread(target=evaluations.add, args=(path, scores(name), "v")) for name in names]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert sorted(read(tables.EVALUATIONS, path)["task"]) == ["first", *names]


def test_training_keeps_the_scores_that_evaluate_added(tmp_path):
    """Also where a state was saved before its measurements, and a start measures again."""
    path = tmp_path / "evaluations" / "step-0000000004.parquet"
    log = RunLog(tmp_path, HEADER, 0, [])
    log.write("train", step=4)
    log.evaluations(4, scores("own"))
    evaluations.add(path, scores("added"), "v")
    assert log.close() is None
    assert sorted(tables.read(tables.EVALUATIONS, path)["task"]) == ["added", "own"]
    RunLog(tmp_path, HEADER, 4, [], due=True).close()
    assert "added" in tables.read(tables.EVALUATIONS, path)["task"].tolist()
    RunLog(tmp_path, HEADER, 3, []).close()
    assert not path.exists(), "scores of a state that is trained anew"


def test_a_lock_that_is_not_given_up_loses_no_scores(tmp_path, monkeypatch):
    log = RunLog(tmp_path, HEADER, 0, [])
    path = tmp_path / "evaluations" / "step-0000000001.parquet"
    evaluations.add(path, scores("mine"), HEADER["vocabulary"])
    monkeypatch.setattr(evaluations, "WAIT", 0.05)
    with files.lock(path.parent, busy="", other=""):
        log.evaluations(1, scores("training"))
        assert log.flush() is None
    assert set(tables.read(tables.EVALUATIONS, path)["task"]) == {"mine", "training"}


def test_a_table_that_cannot_be_read_stops_no_run(tmp_path):
    path = tmp_path / "evaluations" / "step-0000000004.parquet"
    log = RunLog(tmp_path, HEADER, 0, [])
    path.parent.mkdir()
    path.write_bytes(b"no table")
    log.evaluations(4, scores("own"))
    assert log.close() is None
    assert tables.read(tables.EVALUATIONS, path)["task"].tolist() == ["own"]


def test_a_log_in_a_renamed_directory_above_is_in_place(tmp_path):
    """What counts is the file behind the path: a link, or a bind mount, to the same one is no loss."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "runs").symlink_to(tmp_path / "disk")
    log = RunLog(tmp_path / "runs" / "run", HEADER, 0, [])
    (tmp_path / "runs").unlink()
    (tmp_path / "disk").rename(tmp_path / "runs")
    log.write("train", step=1)
    assert log.close() is None and [row.get("step") for row in read_metrics(tmp_path / "runs" / "run")] == [None, 1]


@pytest.mark.parametrize("name", ["metrics.jsonl", "evaluations", "positions"])
def test_an_archive_that_was_cut_off_is_gone_on_with(tmp_path, monkeypatch, name):
    """Killed before any of the three is moved: at the next start all of them are in archives, none is deleted."""
    for folder in ("positions", "evaluations"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "step-0000000004.parquet").write_bytes(b"4")
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    plain = type(tmp_path).rename

    def rename(self, target):
        if self.name == name:
            raise KeyboardInterrupt
        return plain(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(type(tmp_path), "rename", rename)
        with pytest.raises(KeyboardInterrupt):
            RunLog(tmp_path, HEADER, 0, [])
    RunLog(tmp_path, HEADER, 0, []).close()
    kept = [path.relative_to(tmp_path).as_posix().split("/", 1)[1] for path in tmp_path.glob("begun-anew-*/**/*")]
    wanted = ["metrics.jsonl", "positions/step-0000000004.parquet", "evaluations/step-0000000004.parquet"]
    assert sorted(path for path in kept if "." in path) == sorted(wanted)
