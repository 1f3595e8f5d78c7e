"""A run's state as --status has it: by its files, by who runs it, and by how its last start ended."""

import socket

import pytest

from emergence_train.ladder import progress, queue
from emergence_train.ladder.file import LOGS, Ladder, read
from watch import run_files

JOB = {"job": "12_3"}
HERE_CUT = {"host": socket.gethostname(), "pid": 1 << 30, "process_began": 1}
OF_JOB = {"slurm": {"job": "15", "array": "12", "array_task": "3"}}
ENDED = {"ended": "t"}
GONE = "job 12_3 is gone"

# note, Slurm's answer, sessions of the run, whether the job has a log: state, what its note has
STATES = [
    (JOB, {"12_3": "PENDING"}, [], False, "queued", "job 12_3"),
    (JOB, {"12_3": queue.HELD}, [], False, "queued", "is held; scontrol release 12_3"),
    (JOB, {"12_3": "RUNNING"}, [], True, "running", "job 12_3"),
    (JOB, {"12_3": "SUSPENDED"}, [OF_JOB], True, "running", "job 12_3: suspended"),
    (JOB, {"12_3": "COMPLETING"}, [OF_JOB], True, "running", "job 12_3: completing"),
    (JOB, {}, [OF_JOB], True, "failed", "its process was lost: "),  # killed, and not requeued
    (JOB, {}, [OF_JOB | ENDED | {"exit_code": 1}], True, "failed", "exit code 1: "),
    (JOB, {}, [OF_JOB | ENDED | {"exit_code": 75}], True, "stopped", None),
    (JOB, {}, [], True, "failed", "job 12_3 has ended: "),  # a wrong configuration, say: before its first step
    (
        JOB,
        {},
        [{"slurm": {"job": "9"}} | ENDED | {"exit_code": 75}],
        True,
        "failed",
        "job 12_3 has ended: ",
    ),  # of an earlier job
    (JOB, {}, [], False, "waiting", GONE),  # cancelled while it was pending
    (JOB, None, [], False, "stopped", "Slurm does not answer"),
    ({}, {}, [], False, "waiting", None),
    ({"code": 2}, {}, [], True, "failed", "exit code 2: "),
    ({"code": 75}, {}, [], True, "stopped", None),
    ({"host": "h", "pid": 1}, {}, [{"host": "h", "pid": 1}], True, "running", "h wrote to it 0 s ago and may train it"),
    ({"host": "h", "pid": 1}, {}, [{"host": "h", "pid": 1} | ENDED | {"exit_code": 75}], True, "stopped", None),
    ({"host": "h", "pid": 1}, {}, [], True, "running", "h wrote to it 0 s ago"),  # no step yet
    ({"host": "h", "pid": 1}, {}, [], False, "stopped", None),  # never
    (HERE_CUT, {}, [HERE_CUT], True, "stopped", "its process was lost"),  # a power cut: nobody was left to note that
]


@pytest.mark.parametrize(("note", "jobs", "sessions", "log", "state", "says"), STATES)
def test_state_is_of_the_last_start(ladder_file, note, jobs, sessions, log, state, says):
    ladder = read(ladder_file())
    (row,) = ladder.rows
    for session in sessions:
        write_session(ladder, session)
    if log:
        (ladder.out / LOGS).mkdir(parents=True)
        (ladder.out / LOGS / "a.log").touch()
    shown = progress.progress(ladder, row, note, jobs)
    assert shown.state == state and (says or "") in (shown.note or ""), shown
    assert (shown.note is None) == (says is None)


def test_start_whose_ladder_was_killed_has_its_own_end(ladder_file):
    """The run saved, as SIGTERM told it, and nobody was left to note that."""
    ladder = read(ladder_file())
    (row,) = ladder.rows
    note = {"host": socket.gethostname(), "pid": 1 << 30, "process_began": 1}
    for code, state in ((75, "stopped"), (1, "failed")):
        write_session(ladder, note | ENDED | {"exit_code": code})
        assert progress.progress(ladder, row, note, {}).state == state


def write_session(ladder: Ladder, session: dict) -> None:
    ladder.directory("a").mkdir(parents=True, exist_ok=True)
    run_files.session(ladder.directory("a"), **session)


@pytest.mark.parametrize(
    ("line", "state"),
    [
        ("7 PENDING JobHeldUser", "held"),
        ("7 PENDING job requeued in held state", "held"),
        ("7 PENDING (Resources)", "PENDING"),
        ("7 PENDING Dependency", queue.WAITS),
        ("7 RUNNING None", "RUNNING"),
    ],
)
def test_reason_of_a_job_that_waits_is_its_state(line, state, monkeypatch):
    monkeypatch.setattr(queue, "answer", lambda command, otherwise: f"{line}\n")
    assert queue.queued() == {"7": state}
