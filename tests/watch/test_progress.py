"""Where a run is, from its files: numbers against those written, states against processes that live or do not."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

import watch.run_files as run_files
from emergence_train import cli
from emergence_train.errors import InputError
from emergence_train.recorder import Recorder, sessions
from emergence_train.watch.progress import progress, run_directories


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    """300 of 1,000 steps, checkpoints every 50."""
    return run_files.write(tmp_path_factory.mktemp("runs") / "half", 300, every=50, total=1000)


def test_the_numbers_are_those_of_the_log(half):
    run_files.session(half, host="elsewhere", device="NVIDIA H100 80GB HBM3", processes=4)
    run = progress(half)
    assert (run.name, run.step, run.total_steps, run.tokens) == ("r", 300, 1000, 300 * run_files.TOKENS)
    assert run.loss == pytest.approx(sum(run_files.loss_at(step) for step in range(237, 301)) / 64, abs=1e-5)
    assert run.iid == run_files.loss_at(300) + 0.1
    assert (run.forecast.step, run.forecast.loss, run.forecast.low95) == (300, 2.5 + 1 / 300, 2.4)
    assert run.mfu == pytest.approx(5000 * 6e9 / (4 * 989e12))
    # 700 steps of 512 tokens at 5,000 tokens/s, and 14 checkpoints of 2 s
    assert run.state == "running" and run.eta_seconds == pytest.approx(700 * 512 / 5000 + 14 * 2.0)


@pytest.mark.parametrize(
    ("session", "age", "state", "reason"),
    [
        ({"host": "elsewhere"}, 100, "running", ""),
        ({"host": "elsewhere"}, 1000, "stale", "no row for 17 min, on elsewhere"),
        ({"ended": "t", "reason": "saved at step 300", "exit_code": 75}, 1, "stopped", "saved at step 300"),
        ({}, 1000, "stale", "not known"),
    ],
    ids=["fresh", "quiet", "ended", "unknown"],
)
def test_the_state_of_a_run_of_another_machine(half, session, age, state, reason):
    run_files.session(half, **session)
    written = os.stat(half / "metrics.jsonl").st_mtime
    now = time.time()
    os.utime(half / "metrics.jsonl", (now - age, now - age))
    run = progress(half)
    os.utime(half / "metrics.jsonl", (written, written))
    assert run.state == state and reason in run.reason


def test_rows_that_are_far_apart_are_waited_for(half):
    """A recorded run, whose header has no batch, with a row every 50 steps: 5 s apart, but 40 s at an eighth of the speed."""
    log = half / "metrics.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    kept = [{key: value for key, value in rows[0].items() if key not in ("batch", "flops_per_token")}]
    kept += [row | {"tokens_per_second": 640.0} for row in rows if row["kind"] == "train" and row["step"] % 50 == 0]
    log.write_text("".join(json.dumps(row) + "\n" for row in kept))
    run_files.session(half, host="elsewhere")
    for age, state in ((790, "running"), (810, "stale")):
        os.utime(log, (time.time() - age,) * 2)
        assert progress(half).state == state


def test_the_state_of_a_run_here_is_that_of_its_process(half):
    """This process lives; one that has ended does not, nor does another that got its number since."""
    run_files.session(half, **sessions.own_process())
    os.utime(half / "metrics.jsonl")
    assert progress(half).state == "running"
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    run_files.session(half, host=socket.gethostname(), pid=ended.pid, process_began=1)
    assert progress(half).state == "stopped" and "lost" in progress(half).reason
    run_files.session(half, **sessions.own_process() | {"process_began": 1})
    assert progress(half).state == "stopped"


def test_a_finished_run_has_no_forecast(tmp_path):
    run = progress(run_files.write(tmp_path / "done", 100, every=50))
    assert run.state == "finished" and run.forecast is None and run.eta_seconds is None


def test_an_imported_run_is_not_lost(tmp_path):
    """It has checkpoints and no steps, and its process ended long ago."""
    run = run_files.write(tmp_path / "llama", 40, every=20)
    header, *rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    kept = [header | {"total_tokens": None, "imported": True}, *(row for row in rows if row["kind"] == "validation")]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    run_files.session(run, host=socket.gethostname(), pid=1 << 30, process_began=1)
    state = progress(run)
    assert (state.state, state.reason, state.step, state.tokens) == ("imported", "", 40, 40 * run_files.TOKENS)


@pytest.mark.parametrize(
    ("total", "error", "state"), [(None, False, "finished"), (900, False, "stopped"), (None, True, "stopped")]
)
def test_a_recorder_begins_and_ends_its_run(tmp_path, total, error, state):
    raising = pytest.raises(ZeroDivisionError) if error else contextlib.nullcontext()
    with raising, Recorder(tmp_path, params=1, sequence=2, total_tokens=total) as recorder:
        recorder.add(np.ones((1, 2)), split="iid")
        recorder.log(5, 500, 1.0, 0.1)
        recorder.checkpoint(5, 500, 0.1)
        assert progress(tmp_path).state == "running"
        _ = 1 / (0 if error else 1)
    ended = progress(tmp_path)
    assert ended.state == state and ("ZeroDivisionError" in ended.reason or not error)


def test_who_began_a_start_alone_may_end_it(tmp_path):
    sessions.add_session(tmp_path, {"started": "t"})
    sessions.end_session(tmp_path, 75, "stopped")
    (only,) = sessions.read_sessions(tmp_path)
    assert (only["exit_code"], only["reason"]) == (75, "stopped")
    sessions.end_session(tmp_path, 0, "done")
    assert sessions.read_sessions(tmp_path) == [only], "it has ended"
    other = {"sessions": [sessions.own_process() | {"pid": 1}]}
    (tmp_path / sessions.FILE).write_text(json.dumps(other))
    sessions.end_session(tmp_path, 0, "done")
    assert sessions.read_sessions(tmp_path) == other["sessions"]


def test_runs_are_looked_for_two_levels_down(tmp_path):
    for place in ("a", "ladder/b", "ladder/c", "x/y/too_deep"):
        run_files.write(tmp_path / place, 2, every=1)
    (tmp_path / "data").mkdir()
    found_in = [path.relative_to(tmp_path).as_posix() for path in run_directories([tmp_path, tmp_path / "a"])]
    assert found_in == ["a", "ladder/b", "ladder/c"]
    with pytest.raises(InputError, match="holds no run that has begun"):
        run_directories([tmp_path / "data"])


ODD = [None, "x", -1, [], {}, [1], {"a": [1]}, True, float("nan"), 1e400, 10**400]
COLUMNS = {  # by kind: the columns that a screen or a table makes a number of
    "run": ["kind", "sequence", "batch", "total_tokens", "flops_per_token"],
    "train": ["step", "tokens", "loss", "grad_norm", "lr", "tokens_per_second"],
    "validation": ["kind", "step", "tokens", "seconds", "loss"],
    "forecast": ["kind", "step", "loss", "low95", "high95"],
    "straggler": ["kind", "step", "share", "seconds"],
    "samples": ["kind", "texts"],
}


def possible(kind, column, value) -> bool:
    """Whether RunLog might write the value, or a later version."""
    if column == "kind":
        return isinstance(value, str)
    if column == "texts":
        return value == []
    if column in ("step", "tokens", "batch", "sequence"):
        return False
    return (
        value is None
        or value == -1
        and (kind, column) != ("validation", "loss")
        or value == {}
        and (kind, column) == ("validation", "loss")
    )


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("kind", "column"), [(kind, name) for kind, names in COLUMNS.items() for name in names])
def test_an_odd_value_hides_no_other_run(tmp_path, capsys, monkeypatch, kind, column):
    """Its run is shown too, and the value is named by file, row and column, but for null where RunLog itself writes that."""
    monkeypatch.setenv("COLUMNS", "2000")
    events = [{"kind": "straggler", "share": 0.5, "seconds": 1.0}, {"kind": "samples", "texts": []}]
    run_files.write(tmp_path / "plain", 40, every=20, name="plain")
    path = run_files.write(tmp_path / "odd", 40, every=20, name="odd", extra={40: events}) / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    number = max(number for number, row in enumerate(lines) if row["kind"] == kind)
    commands = (["runs"], ["watch", "--once"], ["runs", "--json"], ["watch", "--json"])
    for turn, value in enumerate(ODD, COLUMNS[kind].index(column)):  # each with every value, in some column
        changed = [*lines]
        changed[number] = lines[number] | {column: value}
        path.write_text("".join(json.dumps(row) + "\n" for row in changed))
        assert cli.main([*commands[turn % 4], str(tmp_path)]) == 0, (value, capsys.readouterr())
        shown = capsys.readouterr()
        assert "plain" in shown.out and "odd" in shown.out and shown.err == ""
        named = f"metrics.jsonl: row {number + 1}, column '{column}': {value!r:.40} is left out"
        assert (named in shown.out) != possible(kind, column, value), (value, shown.out)
