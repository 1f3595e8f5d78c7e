"""Observer that says where a run waits for a CPU: on a shared machine a step may take many times as long, and nothing else tells.

Linux counts the time that a thread was ready to run and had no CPU. Elsewhere, and without a GPU, a process that computes and
yet used less than its own wall time is taken to have waited for the rest.
"""

import os
import threading
import time
from pathlib import Path
from typing import NamedTuple

import torch

from emergence_train.training.observers import Observer, RunContext, Step

LOOK_SECONDS = 10.0  # between two looks
SHARE = 0.25  # of the time, waited for a CPU: then it is said
NANOSECONDS = 1e9


class Reading(NamedTuple):
    """Clocks at a moment, seconds."""

    wall: float
    cpu: float  # of all threads of this process
    waited: float | None  # of this thread, ready to run without a CPU; None where the system does not count it


class CpuUse(NamedTuple):
    cpus: float  # used on average
    waited: float | None  # share of the time, 0 to 1


def read_clocks() -> Reading:
    path = Path(f"/proc/self/task/{threading.get_native_id()}/schedstat")
    try:
        waited: float | None = int(path.read_text().split()[1]) / NANOSECONDS
    except (OSError, ValueError, IndexError):
        waited = None
    return Reading(time.monotonic(), time.process_time(), waited)


def use_between(before: Reading, after: Reading, *, on_cpu: bool) -> CpuUse:
    """What a process used and waited between two readings. `on_cpu`: it computes on the CPU, so it never has nothing to do."""
    wall = max(after.wall - before.wall, 1e-9)
    cpus = (after.cpu - before.cpu) / wall
    if before.waited is not None and after.waited is not None:
        return CpuUse(cpus, min(1.0, (after.waited - before.waited) / wall))
    return CpuUse(cpus, max(0.0, 1 - cpus) if on_cpu else None)


class CpuShare(Observer):
    """Logs once, with a row, where rank 0 waited for a CPU for a quarter of LOOK_SECONDS."""

    def __init__(self, context: RunContext) -> None:
        super().__init__(context)
        self.before: Reading | None = None
        self.reported = False

    def on_step(self, step: Step) -> None:
        if self.reported:
            return
        now = read_clocks()
        if self.before is None:
            self.before = now
        if now.wall - self.before.wall < LOOK_SECONDS:
            return
        use = use_between(self.before, now, on_cpu=not torch.cuda.is_available())
        self.before = now
        if use.waited is None or use.waited < SHARE:
            return
        self.reported = True
        threads = torch.get_num_threads()
        lower = ", or set training.threads lower" if threads > 1 else ""
        reason = (
            f"waited for a CPU {use.waited:.0%} of the time: {threads} thread{'s' * (threads > 1)} used {use.cpus:.1f} of "
            f"{usable_cpus()} CPUs, which other processes use too; give it CPUs of its own{lower}"
        )
        self.context.write("starved", step=step.step, tokens=step.tokens, waited=round(use.waited, 3), reason=reason)
        self.context.log(f"step {step.step}: {reason}")


def usable_cpus() -> int:
    """CPUs that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
