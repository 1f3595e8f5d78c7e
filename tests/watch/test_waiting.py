"""watch over a gap: a stopped run that a requeue resumes, one that failed, and nobody kept waiting without a terminal."""

import contextlib
import math
import os
import pty
import re
import subprocess
import threading
import time

import pytest

import watch.run_files as run_files
from emergence_train.watch import live
from emergence_train.watch.live import Patience
from emergence_train.watch.progress import progress
from support import PATIENCE
from watch.test_watch import COMMAND, variables


def stopped(tmp_path, code, name="r"):
    run = run_files.write(tmp_path / name, 60, every=20, total=120, name=name)
    run_files.session(run, ended="2026-01-01", exit_code=code, reason="stop requested by SIGTERM")
    return run


@pytest.mark.parametrize(("code", "awaited"), [(75, True), (76, True), (None, True), (1, False), (2, False)])
def test_what_a_requeue_resumes_is_waited_for(tmp_path, code, awaited):
    run = progress(stopped(tmp_path, code))
    assert run.state == "stopped" and run.awaited == awaited
    assert Patience(math.inf, True).more([run]) == awaited and not Patience(0.0, False).more([run])


def test_a_wait_ends_after_its_seconds(tmp_path, monkeypatch):
    run = progress(stopped(tmp_path, 75))
    now = [100.0]
    monkeypatch.setattr(live.time, "monotonic", lambda: now[0])
    patience = Patience(60.0, False)
    assert patience.more([run]) and "1 min at most; Ctrl-C leaves" in patience.note([run]).replace("60 s", "1 min")
    now[0] = 159.0
    assert patience.more([run])
    now[0] = 161.0
    assert not patience.more([run])


def test_without_a_terminal_a_lost_machine_is_given_up(tmp_path):
    run = run_files.write(tmp_path / "r", 60, every=20, total=120)
    old = time.time() - 7200
    os.utime(run / "metrics.jsonl", (old, old))
    stale = progress(run)
    assert stale.state == "stale" and Patience(0.0, True).more([stale]) and not Patience(0.0, False).more([stale])


def test_a_terminal_follows_a_requeue(tmp_path):
    """Stopped with 75, then the rest of the run appears: the watch says that it waits, goes on, and ends with the run."""
    run = stopped(tmp_path, 75)
    here, there = pty.openpty()
    watching = subprocess.Popen(
        [*COMMAND, str(run), "--seconds", "0.2"], stdin=there, stdout=there, env=variables("xterm-256color")
    )
    os.close(there)
    shown = bytearray()

    def read():
        with contextlib.suppress(OSError):
            while piece := os.read(here, 65536):
                shown.extend(piece)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        limit = time.monotonic() + 30 * PATIENCE
        while b"waiting for a requeue" not in shown and time.monotonic() < limit:
            time.sleep(0.05)
        assert watching.poll() is None
        run_files.write(run, 120, every=20, total=120)
        assert watching.wait(30 * PATIENCE) == 0
    finally:
        watching.kill()
    reader.join()
    os.close(here)
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode())
    assert "to resume it; Ctrl-C leaves" in text and text.rstrip().splitlines()[-1].startswith(
        "r: finished  step 120/120"
    )
