"""Each rank's own log: its lines, its warnings, how it ended; bounded, and never the end of a run."""

import logging
import threading
import time
import warnings

import pytest

from emergence_train.training import rank_log
from emergence_train.training.rank_log import RankLog
from support import command, run_python


@pytest.fixture
def log_of(tmp_path):
    """A function: an opened log of a rank, and what it shows."""
    logs = []

    def log_of(rank: int) -> tuple[RankLog, list[str]]:
        shown: list[str] = []
        logs.append(RankLog(rank, shown.append))
        logs[-1].open(tmp_path)
        return logs[-1], shown

    yield log_of
    for log in logs:
        log.close()


def test_rank_0_shows_its_lines_and_the_others_write_theirs(log_of, tmp_path):
    for rank in (0, 3):
        log, shown = log_of(rank)
        log("resuming")
        assert shown == (["resuming"] if rank == 0 else [])
        assert "INFO resuming" in (tmp_path / "logs" / f"rank-{rank}.log").read_text()


def test_warnings_of_libraries_are_in_the_log(log_of, tmp_path):
    log, _ = log_of(1)
    logging.getLogger("a library").warning("low on memory")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("deprecated", stacklevel=1)
    text = (tmp_path / "logs" / "rank-1.log").read_text()
    assert "WARNING low on memory" in text and "deprecated" in text
    log.close()
    logging.getLogger("a library").warning("afterwards")
    assert "afterwards" not in (tmp_path / "logs" / "rank-1.log").read_text()


@pytest.mark.parametrize(("rank", "shows"), [(0, True), (1, False)])
def test_warnings_of_libraries_on_rank_0_are_shown_too(log_of, tmp_path, monkeypatch, capsys, rank, shows):
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # as outside of a test
    log, _ = log_of(rank)
    logging.getLogger("a library").warning("low on memory")
    logging.getLogger("a library").info("all is well")
    assert capsys.readouterr().err == ("low on memory\n" if shows else "")
    assert "WARNING low on memory" in (tmp_path / "logs" / f"rank-{rank}.log").read_text()
    log.close()
    assert logging.getLogger().handlers == []


def test_a_log_keeps_its_end_and_is_bounded(log_of, tmp_path, monkeypatch):
    monkeypatch.setattr(rank_log, "BYTES", 2000)
    log, _ = log_of(1)
    for number in range(1000):
        log(f"line {number}")
    files = sorted(path.name for path in (tmp_path / "logs").iterdir())
    assert files == ["rank-1.log", "rank-1.log.1"]
    assert all((tmp_path / "logs" / name).stat().st_size <= 2000 for name in files)
    assert "line 999" in (tmp_path / "logs" / "rank-1.log").read_text()


def test_what_cannot_be_written_is_lost(tmp_path):
    def full(line: str) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "logs").touch()  # where the directory would be
    log = RankLog(0, full)
    log.open(tmp_path)
    log("a line")
    log.close()
    (tmp_path / "logs").unlink()
    log.open(tmp_path)
    log.handler.stream = open("/dev/full", "w")  # noqa: SIM115
    log("another")
    log.handler.stream = None
    log.close()


def test_ranks_of_a_run_have_logs_of_their_own(config_file, tmp_path):
    over = ["logging.every_rank=true", "training.tokens=1024", "logging.console_seconds=0"]
    done = command("train", str(config_file), *over, "name=logged", processes=2)
    assert done.returncode == 0, done.stderr
    for rank in (0, 1):
        text = (tmp_path / "runs" / "logged" / "logs" / f"rank-{rank}.log").read_text()
        assert f"start of rank {rank}" in text and "step 4/4" in text and "done in" in text


ENDED = """
import os, signal, sys, threading, time, types
from emergence_train import cli
from emergence_train.faults import watchdog
from emergence_train.faults.heartbeats import PeerVerdict

def at(self, operation, step=0):
    if operation != "building the engine":
        return
    if sys.argv[1] == "signal":
        os.kill(os.getpid(), signal.SIGTERM)
    else:
        self.relay = types.SimpleNamespace(down=None, speaks=lambda: True, fallbacks={0})  # one process has none
        threading.Thread(target=self._end, args=[PeerVerdict("rank 1 is gone")]).start()
    time.sleep(60)

watchdog.MAIN_SECONDS = 0.1
watchdog.Watchdog.at = at
cli.main(["train", *sys.argv[2:]])
"""


@pytest.mark.parametrize(
    ("ender", "code", "words"),
    [("signal", 75, "SIGTERM: nothing trained since"), ("watchdog", 76, "rank 1 is gone; ")],
)
def test_a_rank_that_another_thread_ends_logs_how(config_file, tmp_path, ender, code, words):
    (tmp_path / "start.py").write_text(ENDED)
    over = ["logging.every_rank=true", f"name={ender}"]
    done = run_python(str(tmp_path / "start.py"), ender, str(config_file), *over)
    assert done.returncode == code, done.stderr
    last = (tmp_path / "runs" / ender / "logs" / "rank-0.log").read_text().splitlines()[-1]
    assert f"ERROR exit code {code}: {words}" in last


def test_a_disk_that_hangs_does_not_keep_a_rank_from_ending(log_of, monkeypatch):
    monkeypatch.setattr(rank_log, "LAST_SECONDS", 0.05)
    log, _ = log_of(1)
    answers = threading.Event()
    log.handler.emit = lambda record: answers.wait(20)
    began = time.monotonic()
    log.ended("SIGTERM", 75)
    assert time.monotonic() - began < 10
    answers.set()
