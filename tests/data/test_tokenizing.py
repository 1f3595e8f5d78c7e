"""Tokenizing processes: they end with the process that started them."""

import os
import signal
import subprocess
import sys
import time

import pytest

from emergence_train.data import tokenizer

PARENT = """
import os, sys, time
from pathlib import Path
from emergence_train.data.tokenizing import Workers
if __name__ == "__main__":
    with Workers(2, Path(sys.argv[1])) as workers:
        list(workers.encode(["some text"] * 200, 0.1))
        print(*workers.pool._processes, flush=True)
        time.sleep(300)
"""


def runs(pid: int) -> bool:
    """Whether the process is there and not only waits to be reaped."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="looks at processes in /proc")
def test_workers_end_with_a_parent_that_is_killed(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(tokenizer.train(iter(["hello world " * 50]), 300).to_str())
    (tmp_path / "parent.py").write_text(PARENT)
    parent = subprocess.Popen(
        [sys.executable, str(tmp_path / "parent.py"), str(path)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    workers = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(workers) >= 1 and all(map(runs, workers))
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    until = time.monotonic() + 20
    while any(map(runs, workers)) and time.monotonic() < until:
        time.sleep(0.05)
    left = [pid for pid in workers if runs(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left
