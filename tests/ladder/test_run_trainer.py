"""Who trains a run, by the ages of its files, where another machine began it."""

import json
import os
import socket
import time
from pathlib import Path

import pytest

from emergence_train.ladder import progress
from emergence_train.ladder.file import LOGS, Ladder, read
from emergence_train.ladder.trainer import trainer
from watch import run_files

YEAR = 365 * 86400
NODE7 = {"host": "node7", "pid": 7}
HERE_CUT = {"host": socket.gethostname(), "pid": 1 << 30, "process_began": 1}
JOB, OF_JOB = {"job": "12"}, NODE7 | {"slurm": {"job": "12"}}
RESUMED = NODE7 | {"resumed_from_step": 4}
OLD = 5000

# note of the last start; session of the run; steps of its log, and a checkpoint after so many; seconds ago: rows,
# session, what was printed (None: no such file); whether the other machine counts
AGES = {
    "compiles": (NODE7, NODE7, (0, 9), (130, 130.02, 130), True),
    "compiles long": (NODE7, NODE7, (0, 9), (601, 601.02, 601), False),
    "began and writes no log yet": (NODE7, NODE7, None, (None, 590, 590), True),
    "compiles after a resume": (NODE7, RESUMED, (4, 2), (130, 130, 130), True),
    "resumed and silent": (NODE7, RESUMED, (5, 2), (130, OLD, 130), False),
    "resumed and writes": (NODE7, RESUMED, (5, 2), (110, OLD, OLD), True),
    "first measurement": (NODE7, NODE7, (3, 4), (500, OLD, OLD), True),
    "measured before": (NODE7, NODE7, (5, 4), (500, OLD, OLD), False),
    "no session yet": (NODE7, NODE7 | {"pid": 6}, (5, 4), (OLD, OLD, 500), True),
    "wrong clock": (NODE7, NODE7, (5, 4), (-YEAR, -YEAR, -YEAR), False),
    "wrong clock of one file": (NODE7, NODE7, (5, 4), (-YEAR, OLD, 3), True),
    "clocks that differ": (NODE7, NODE7, (5, 4), (-30, OLD, OLD), True),
    "a failed start here printed": ({"code": 2}, NODE7, (5, 4), (OLD, OLD, 2), False),
    "a lost start here printed": (HERE_CUT, NODE7, (5, 4), (OLD, OLD, 2), False),
    "no note": ({}, NODE7, (5, 4), (10, OLD, None), True),
    "a host without a name": ({}, {"pid": 7}, (5, 4), (10, OLD, None), True),
    "ended": (NODE7, NODE7 | {"ended": "t"}, (5, 4), (1, 1, 1), False),
    "a job, and no Slurm to ask": (JOB, OF_JOB, (5, 4), (3, OLD, OLD), True),
    "a silent job, and no Slurm to ask": (JOB, OF_JOB, (5, 4), (130, OLD, 130), False),
}


@pytest.mark.parametrize(("note", "session", "steps", "ages", "counts"), AGES.values(), ids=AGES)
def test_another_machine_counts_by_what_it_wrote(
    ladder_file, tmp_path, monkeypatch, note, session, steps, ages, counts
):
    monkeypatch.setenv("PATH", str(tmp_path))
    ladder = read(ladder_file())
    write(ladder, session, steps, ages)
    says = trainer(ladder, "a", note)
    assert (says is not None) == counts, says
    host = session.get("host", "another machine")
    assert says is None or says.startswith(f"{host} wrote to it ") and "and may train it, until " in says


def test_slurm_knows_whether_its_job_lives(ladder_file, tmp_path, monkeypatch):
    """Where it can be asked: its job is in no queue, and what it wrote last is no sign; a queued one does not run."""
    (tmp_path / "squeue").write_text("#!/bin/sh\n")
    (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    ladder = read(ladder_file())
    write(ladder, OF_JOB, (5, 4), (3, OLD, 3))
    assert trainer(ladder, "a", JOB) is None
    write(ladder, NODE7, (5, 4), (3, OLD, 3))  # of an earlier start, by hand
    for state in ("PENDING", "REQUEUED", "CONFIGURING"):
        assert progress.progress(ladder, ladder.rows[0], JOB, {"12": state}).state == "queued"
    assert progress.progress(ladder, ladder.rows[0], JOB, {}).note.startswith("node7 wrote to it")


def write(ladder: Ladder, session: dict, steps: tuple[int, int] | None, ages: tuple) -> None:
    run, log = ladder.directory("a"), ladder.out / LOGS / "a.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    if steps:
        run_files.write(run, steps[0], every=steps[1], total=99)
    run.mkdir(exist_ok=True)
    (run / "environment.json").write_text(json.dumps({"sessions": [session]}))
    for path, age in zip((run / "metrics.jsonl", run / "environment.json", log), ages, strict=True):
        if age is not None:
            written(path, time.time() - age)


def written(path: Path, at: float) -> None:
    path.touch()
    os.utime(path, (at, at))
