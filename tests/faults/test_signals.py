"""Signals that come before a process has met the others of its run."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from emergence_train.faults import signals
from emergence_train.training import run
from faults.launch import free_port
from support import ROOT, until

ALONE = """
import os, signal, sys, time
from emergence_train.faults import signals

signals.GRACE_SECONDS = 0.2
before = signal.signal(signal.SIGHUP, signal.SIG_IGN) if sys.argv[2:] else None
stop = signals.StopSignal()
os.kill(os.getpid(), int(sys.argv[1]))
time.sleep(5 if before is None else 1)
stop.close()
print("goes on", stop.requested, "torch" in sys.modules)
"""


def alone(*given: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", ALONE, *given], capture_output=True, text=True, timeout=100, cwd=ROOT)


def early(config: Path, place: Path, world: int) -> list[subprocess.Popen]:
    """The ranks of a start, each as soon as it listens to SIGUSR1."""
    shared = {
        "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "emergence_train", "train", str(config)]
    ranks = [
        subprocess.Popen(
            command,
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WANDB_MODE": "disabled"},
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    for rank in ranks:
        until(lambda rank=rank: rank.poll() is not None or caught(rank.pid) >> (signal.SIGUSR1 - 1) & 1, every=0.002)
        assert rank.poll() is None
    return ranks


def caught(pid: int) -> int:
    """The mask of signals that a process has handlers for."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("SigCgt")).split()[1], 16)


@pytest.mark.parametrize(
    ("number", "asked"),
    [(signal.SIGUSR1, [1]), (signal.SIGTERM, [0, 1]), (signal.SIGHUP, [0])],
    ids=["USR1", "TERM", "HUP"],
)
def test_a_signal_before_the_ranks_meet_ends_all_with_75(config_file, tmp_path, number, asked):
    for _ in range(5):  # where others compute, this process may look too late
        ranks = early(config_file, tmp_path, 2)
        if in_time := all("libtorch" not in Path(f"/proc/{ranks[rank].pid}/maps").read_text() for rank in asked):
            break
        for rank in ranks:
            rank.kill()
            rank.communicate()
    assert in_time
    for rank in asked:
        ranks[rank].send_signal(number)
    lines = [rank.communicate(timeout=100)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [75, 75], lines


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_a_signal_where_no_other_rank_comes_ends_with_75(number):
    done = alone(str(int(number)))
    assert (done.returncode, done.stdout) == (75, "")
    assert done.stderr.startswith(f"emergence-train: {signal.Signals(number).name}: the start was not done after")


def test_a_lost_terminal_under_nohup_is_ignored():
    assert alone(str(int(signal.SIGHUP)), "nohup").stdout == "goes on False False\n"


@pytest.mark.parametrize("failing", ["config", "prepare"])
def test_an_interrupted_start_puts_the_handlers_back(monkeypatch, failing):
    def interrupt(*of):
        raise KeyboardInterrupt

    before = [signal.getsignal(number) for number in signals.SIGNALS]
    monkeypatch.setattr(run.flight_recorder, "prepare", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run.train(interrupt if failing == "config" else lambda: SimpleNamespace(run_directory=Path("none")))
    assert [signal.getsignal(number) for number in signals.SIGNALS] == before


def test_a_block_has_all_signals_but_nohups():
    heard = []
    before = [signal.getsignal(number) for number in signals.WITH_INTERRUPT]
    ignored = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals.handled(lambda number, frame: heard.append(number)):
            for number in signals.WITH_INTERRUPT:
                os.kill(os.getpid(), number)
    finally:
        signal.signal(signal.SIGHUP, ignored)
    assert sorted(heard) == sorted({*signals.WITH_INTERRUPT} - {signal.SIGHUP})
    assert [signal.getsignal(number) for number in signals.WITH_INTERRUPT] == before
