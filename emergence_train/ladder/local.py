"""Run a ladder on this machine: as many runs at a time as have room, each a process of its own; the same command resumes."""

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import FrameType

from emergence_train import files
from emergence_train.errors import InputError, RunError, Stopped
from emergence_train.faults.signals import handled
from emergence_train.ladder.collect import write_index
from emergence_train.ladder.file import LOGS, Ladder, Row
from emergence_train.ladder.progress import done, missing_file, process_note, read_notes, ready, write_notes

POLL = 0.2  # seconds
RETRIES = 3  # of a run whose process was lost
LOST = 76  # exit code: another process lost
BUSY = "another process runs this ladder; wait for it, or see --status"


@dataclass
class Machine:
    """What runs share: CUDA devices by their names, or CPUs."""

    devices: list[str]
    cpus: int
    jobs: int | None = None  # at most so many runs

    def need(self, row: Row) -> int:
        """Devices, or CPUs, of a run."""
        return (row.gpus or 1) if self.devices else min(row.threads or self.cpus, self.cpus)


@dataclass
class Started:
    row: Row
    process: subprocess.Popen
    needed: int
    devices: list[str] = field(default_factory=list)


def this_machine(jobs: int | None) -> Machine:
    """The GPUs that CUDA_VISIBLE_DEVICES names, else all that nvidia-smi lists; and this process' CPUs."""
    return Machine(_devices(), len(os.sched_getaffinity(0)), jobs)


def _devices() -> list[str]:
    if (given := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name.strip() for name in given.split(",") if name.strip() not in ("", "-1")]
    if not shutil.which("nvidia-smi"):
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True)
    return [str(number) for number, line in enumerate(listed.stdout.splitlines()) if line.startswith("GPU ")]


def program(processes: int = 1) -> list[str]:
    """emergence-train in so many processes of this Python."""
    python = [sys.executable, "-m"]
    if processes > 1:
        python += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"]
    return [*python, "emergence_train"]


class Runner:
    """run() starts what is left of a ladder and waits for it."""

    def __init__(
        self,
        ladder: Ladder,
        machine: Machine,
        log: Callable[[str], None],
        program: Callable[[int], list[str]] = program,
    ) -> None:
        self.ladder, self.machine, self.log, self.program = ladder, machine, log, program
        self.free = list(machine.devices)
        self.cpus = machine.cpus
        self.started: list[Started] = []
        self.lost: dict[str, int] = {}  # times that a run's process was lost
        self.failed: dict[str, str] = {}  # how
        self.stop_requested = False

    def run(self) -> None:
        """Start every run that is not done, a parent's state permitting.

        Raises:
            InputError: a run needs more GPUs than there are; another process runs this ladder.
            Stopped: on a signal, once every run has saved. RunError: a run has failed, after all others have ended.
        """
        for row in self.ladder.rows:
            if (row.gpus or 1) > max(1, len(self.machine.devices)):
                raise InputError(
                    f"{self.ladder.path}: {row.run} is to have {row.gpus} GPUs and this machine has "
                    f"{len(self.machine.devices)}; give --slurm, or lower gpus"
                )
        with files.lock(self.ladder.out, busy=BUSY, other="out") as note:
            if note:
                self.log(note)
            write_index(self.ladder)
            files.make_directory(self.ladder.out / LOGS)
            self.notes = read_notes(self.ladder)
            with handled(self._stop):
                try:
                    prepare(self.ladder, self.program(1))
                    self._until_done()
                finally:
                    self._end_all()
        if self.stop_requested:
            raise Stopped(f"{self.ladder.path}: stopped, every run has saved; run the same command to resume")
        if self.failed:
            run, how = next(iter(self.failed.items()))
            raise RunError(
                f"{len(self.failed)} of {len(self.ladder.rows)} runs failed, {run} {how} "
                f"({self.ladder.out / LOGS / run}.log); fix that, then run the same command again"
            )

    def _until_done(self) -> None:
        while not self.stop_requested:
            left = [row for row in self.ladder.rows if self._is_left(row)]
            for row in left:
                if self._has_room(row) and ready(self.ladder, row) and not self._is_held(row):
                    self._start(row)
            if not self.started and not any(ready(self.ladder, row) for row in left):
                return  # what is left waits for a run that has failed
            time.sleep(POLL)
            for started in [s for s in self.started if s.process.poll() is not None]:
                self._ended(started)

    def _is_left(self, row: Row) -> bool:
        running = any(started.row.run == row.run for started in self.started)
        return not running and row.run not in self.failed and not done(self.ladder, row)

    def _has_room(self, row: Row) -> bool:
        if self.machine.jobs is not None and len(self.started) >= self.machine.jobs:
            return False
        return self.machine.need(row) <= (len(self.free) if self.machine.devices else self.cpus)

    def _is_held(self, row: Row) -> bool:
        """Whether a process of an earlier start still trains the run; nobody else begins one while we hold the ladder."""
        import fcntl

        lock = self.ladder.directory(row.run) / ".lock"
        if not lock.is_file():
            return False
        with open(lock) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            except OSError:
                return False
        return False

    def _start(self, row: Row) -> None:
        needed = self.machine.need(row)
        devices = [self.free.pop(0) for _ in range(needed)] if self.machine.devices else []
        if not devices:
            self.cpus -= needed
        environment = os.environ | ({"CUDA_VISIBLE_DEVICES": ",".join(devices)} if devices else {})
        command = [*self.program(len(devices)), *self.ladder.arguments(row)]
        with open(self.ladder.out / LOGS / f"{row.run}.log", "ab") as output:
            process = subprocess.Popen(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,  # a terminal's interrupt is the ladder's
                preexec_fn=_end_with_parent,
            )
        self.started.append(Started(row, process, needed, devices))
        self._note(row, process_note(process.pid))
        self.log(f"{row.run}: started" + (f" on {len(devices)} GPUs" if len(devices) > 1 else ""))

    def _ended(self, started: Started) -> None:
        self.started.remove(started)
        self.free += started.devices
        self.cpus += 0 if started.devices else started.needed
        row, code = started.row, started.process.returncode
        self._note(row, {"code": code})
        missing = missing_file(self.ladder, row)
        if code == 0 and missing is None:
            self.log(f"{row.run}: done")
        elif self.stop_requested:
            self.log(f"{row.run}: stopped")
        elif (code == LOST or code < 0) and self.lost.get(row.run, 0) < RETRIES:
            self.lost[row.run] = self.lost.get(row.run, 0) + 1
            self.log(f"{row.run}: its process was lost (exit code {code}); started again")
        else:
            # A run that is finished ends with 0, and started again would do so for ever.
            how = f"with exit code {code}" if code else f"without {missing}: restore that, or move the run away"
            self.failed[row.run] = how
            self.log(f"{row.run}: failed {how} ({self.ladder.out / LOGS / row.run}.log)")

    def _note(self, row: Row, note: dict) -> None:
        self.notes[row.run] = note
        write_notes(self.ladder, self.notes)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.stop_requested = True

    def _end_all(self) -> None:
        """Let every run save and end."""
        for started in self.started:
            started.process.terminate()
        for started in list(self.started):
            started.process.wait()
            self._ended(started)


def prepare(ladder: Ladder, program: list[str]) -> None:
    """Prepare the data of every run that are not prepared: runs that share them find them prepared."""
    seen = set()
    for row in ladder.rows:
        overrides = tuple(given for given in row.overrides if given.startswith("data."))
        if overrides in seen:
            continue
        seen.add(overrides)
        command = [*program, "prepare", str(ladder.config), *overrides]
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if done.returncode:
            message = (done.stderr.strip().splitlines() or ["failed"])[-1].removeprefix("emergence-train: ")
            raise InputError(message) if done.returncode == InputError.code else RunError(message)


def _end_with_parent() -> None:
    """In the child: a ladder that is killed lets its runs save and end, so that another start finds them free."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
