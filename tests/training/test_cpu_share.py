"""Waiting for a CPU: from given clocks, and of a process that shares one CPU with three others."""

import json
import subprocess
import sys
import types

import pytest

from emergence_train.training import cpu_share
from emergence_train.training.cpu_share import CpuShare, CpuUse, Reading, use_between


@pytest.mark.parametrize(
    ("after", "on_cpu", "use"),
    [
        (Reading(20.0, 15.0, 4.0), True, CpuUse(1.5, 0.3)),
        (Reading(20.0, 2.0, 0.1), False, CpuUse(0.2, 0.01)),
        (Reading(20.0, 4.0, None), True, CpuUse(0.4, 0.6)),
        (Reading(20.0, 18.0, None), True, CpuUse(1.8, 0.0)),
        (Reading(20.0, 4.0, None), False, CpuUse(0.4, None)),
    ],
    ids=["waits", "waits for a GPU", "no counter", "no counter, busy", "no counter, a GPU"],
)
def test_the_share_follows_from_the_clocks(after, on_cpu, use):
    before = Reading(10.0, 0.0, None if after.waited is None else after.waited - 10 * (use.waited or 0.0))
    measured = use_between(before, after, on_cpu=on_cpu)
    assert measured.cpus == pytest.approx(use.cpus)
    assert measured.waited == (None if use.waited is None else pytest.approx(use.waited))


@pytest.mark.parametrize(("threads", "remedy"), [(4, "4 threads used"), (1, "1 thread used")])
def test_it_is_said_once_and_written(monkeypatch, threads, remedy):
    """20 steps of 2 s, a third of the time without a CPU from the first on; of one thread none can be taken away."""
    monkeypatch.setattr(cpu_share.torch, "get_num_threads", lambda: threads)
    clock, rows, lines = iter(range(100)), [], []
    monkeypatch.setattr(cpu_share, "read_clocks", lambda: (lambda k: Reading(2.0 * k, k, 0.7 * k))(next(clock)))
    context = types.SimpleNamespace(write=lambda kind, **values: rows.append((kind, values)), log=lines.append)
    observer = CpuShare(context)
    for step in range(1, 21):
        observer.on_step(types.SimpleNamespace(step=step, tokens=8 * step))
    ((kind, row),) = rows
    assert (kind, row["step"], row["waited"]) == ("starved", 6, 0.35)
    assert len(lines) == 1 and "waited for a CPU 35% of the time" in lines[0] and remedy in lines[0]
    assert ("training.threads lower" in lines[0]) == (threads > 1) and "CPUs of its own" in lines[0]


CROWD = """
import json, multiprocessing, os, time
from emergence_train.training.cpu_share import read_clocks, use_between
def spin(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass
if __name__ == "__main__":
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    others = [multiprocessing.get_context("fork").Process(target=spin, args=(4,)) for _ in range(3)]
    for other in others:
        other.start()
    time.sleep(0.3)
    before = read_clocks()
    spin(2)
    print(json.dumps(use_between(before, read_clocks(), on_cpu=True)))
    for other in others:
        other.kill()
"""


@pytest.mark.skipif(cpu_share.read_clocks().waited is None, reason="the system does not count it")
def test_a_process_among_three_others_on_one_cpu_waits():
    """It has a quarter of the CPU, or less on a busy machine."""
    done = subprocess.run([sys.executable, "-c", CROWD], capture_output=True, text=True, timeout=120)
    cpus, waited = json.loads(done.stdout)
    assert cpus < 0.6 and waited > 0.4, (cpus, waited)
