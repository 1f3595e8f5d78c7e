"""Signals and kills: of a ladder, of a run alone, and in the preparation; by a stand-in for training."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from emergence_train.errors import InputError, RunError, Stopped
from emergence_train.ladder import progress
from emergence_train.ladder.file import read
from emergence_train.ladder.local import Machine
from ladder.test_local import run, starts, states
from support import until


@pytest.mark.parametrize("code", [1, 76, 137])
def test_a_run_that_cannot_save_is_no_stopped_one(ladder_file, behave, tmp_path, code):
    behave(**{"a-s1": {"seconds": 60, "stopped": code}, "a-s2": {"seconds": 60}})
    path = ladder_file(seeds=[1, 2])
    stop_when_started(tmp_path / "rungs", ("a-s1", "a-s2"))
    with pytest.raises(RunError, match=f"1 of 2 runs failed, a-s1 with exit code {code} .*a-s1.log"):
        run(path)
    assert states(path) == {"a-s1": "failed", "a-s2": "stopped"}


def test_a_run_that_is_stopped_alone_has_not_failed(ladder_file, behave, tmp_path):
    """By a signal to it: it is not started again at once, the others are trained, and the same command resumes it: 75."""
    behave(**{"a-s1": {"seconds": 60}})
    path = ladder_file(seeds=[1, 2])

    def stop() -> None:
        until(lambda: (tmp_path / "rungs" / "a-s2" / "ends").exists())
        os.kill(progress.read_notes(read(path))["a-s1"]["pid"], signal.SIGTERM)

    threading.Thread(target=stop, daemon=True).start()
    with pytest.raises(Stopped, match="every run has saved; run the same command to resume"):
        run(path)
    assert len(starts(tmp_path / "rungs", "a-s1")) == 1 and states(path) == {"a-s1": "stopped", "a-s2": "done"}


def test_an_earlier_failure_is_none_of_a_stop(ladder_file, behave, tmp_path):
    """What runs at the signal has saved: 75, by which a requeue goes on."""
    behave(**{"a-s1": {"codes": [1]}, "a-s2": {"seconds": 60}})
    path = ladder_file(seeds=[1, 2])
    stop_when_started(tmp_path / "rungs", ("a-s2",), lambda: (tmp_path / "rungs" / "a-s1" / "ends").exists())
    with pytest.raises(Stopped):
        run(path, Machine([], 1))


def stop_when_started(out: Path, names: tuple[str, ...], also=lambda: True) -> None:
    def stop() -> None:
        until(lambda: also() and all(starts(out, name) for name in names))
        time.sleep(0.3)  # its handler is set
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop, daemon=True).start()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_lets_every_run_save(ladder_file, behave, tmp_path, number):
    """The second is still starting, and ended by the signal."""
    behave(**{"a-s1": {"seconds": 60}, "a-s2": {"seconds": 60, "stopped": None}})
    path = ladder_file(seeds=[1, 2])
    threading.Timer(1.5, os.kill, (os.getpid(), number)).start()
    with pytest.raises(Stopped, match="run the same command to resume"):
        run(path)
    assert states(path) == {"a-s1": "stopped", "a-s2": "stopped"}


def test_the_children_of_a_killed_ladder_save(ladder_file, behave, tmp_path):
    """SIGKILL, which nobody can catch; another start is refused before and resumes afterwards."""
    behave(a={"seconds": 60})
    path = ladder_file()
    code = "from pathlib import Path; from ladder.test_local import run; import sys; run(Path(sys.argv[1]))"
    killed = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    )
    until(lambda: starts(tmp_path / "rungs", "a"))
    with pytest.raises(InputError, match="another process runs this ladder"):
        run(path)
    assert states(path) == {"a": "running"}
    killed.kill()
    killed.wait()
    until(lambda: states(path) == {"a": "stopped"})
    behave()
    run(path)
    assert states(path) == {"a": "done"}


def test_a_signal_ends_the_preparation(ladder_file, behave, monkeypatch):
    """It may take hours, and the next start resumes it."""
    monkeypatch.setenv("STAND_IN_PREPARE_SECONDS", "60")
    behave()
    threading.Timer(1.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
    began = time.monotonic()
    with pytest.raises(Stopped, match="run the same command to resume"):
        run(ladder_file())
    assert time.monotonic() < began + 30
    assert states(ladder_file()) == {"a": "waiting"}


def test_a_killed_preparation_is_named(ladder_file, behave, monkeypatch):
    """By the kernel, for want of memory: it had no last word."""
    monkeypatch.setenv("STAND_IN_PREPARE", "-9")
    behave()
    with pytest.raises(RunError, match="prepare ended with exit code -9; run the same command to resume it"):
        run(ladder_file())


def test_failed_preparation_is_the_ladders(ladder_file, behave, monkeypatch):
    monkeypatch.setenv("STAND_IN_PREPARE", "2")
    with pytest.raises(InputError, match="prepare ended with exit code 2"):
        run(ladder_file())
