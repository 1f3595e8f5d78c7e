"""Run a ladder on this machine: as many runs at a time as have room, each a process of its own; the same command resumes."""

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO

from emergence_train import files
from emergence_train.errors import InputError, RunError, Stopped
from emergence_train.faults.signals import handled
from emergence_train.ladder.collect import write_index
from emergence_train.ladder.file import LOGS, Ladder, Row
from emergence_train.ladder.progress import STOPPED, blocked_reason, done, missing_file, read_notes, ready, write_notes
from emergence_train.ladder.queue import ENDING, settled
from emergence_train.ladder.trainer import trainer
from emergence_train.recorder.sessions import name_process

POLL = 0.2  # seconds
HELD_POLL = 2.0  # of a run that another process trains: its files are read
RETRIES = 3  # of a run whose process was lost
LOST = 76  # exit code: another process lost
ALONE = 60  # seconds
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
    needed: int
    devices: list[str]
    processes: list[subprocess.Popen] = field(default_factory=list)  # by their ranks
    since: float | None = None  # when a rank was first seen to have failed while others were alive (time.monotonic)

    @property
    def codes(self) -> list[int]:
        """Of the ranks that have ended."""
        return [code for process in self.processes if (code := process.poll()) is not None]

    @property
    def code(self) -> int | None:
        """The run's, None until all have ended: an error of one rank's own, else LOST, else a signal that ended one."""
        codes = self.codes
        return max(codes, key=_weight) if len(codes) == len(self.processes) else None

    def end_left_behind(self) -> None:
        """Terminate ranks that are alive ALONE seconds after another failed: before they have met, they wait for minutes. Kill
        them as long after that: one that was halted (SIGSTOP), which the others have called lost, hears no signal else."""
        if not any(code not in (0, Stopped.code) for code in self.codes):
            return
        self.since = self.since or time.monotonic()
        alone = time.monotonic() - self.since
        for process in self.processes:
            if alone > 2 * ALONE:
                process.kill()
            elif alone > ALONE:
                process.terminate()


def _weight(code: int) -> tuple[bool, bool, bool, int]:
    own = code > 0 and code not in (LOST, Stopped.code)
    return own, code == LOST, code < 0 and code != -signal.SIGTERM, code


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


def program() -> list[str]:
    """emergence-train by this Python."""
    return [sys.executable, "-m", "emergence_train"]


def rank_variables(processes: int) -> list[dict[str, str]]:
    """What tells each process of a run its rank, as torchrun's variables do; nothing to one that is alone.

    torchrun itself ends with 1 whatever its processes end with, and kills them 30 s after a signal, saved or not.
    """
    if processes == 1:
        return [{}]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    shared["TORCHELASTIC_USE_AGENT_STORE"] = "False"  # of a torchrun around the ladder
    shared |= {"WORLD_SIZE": str(processes), "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    return [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]


class Runner:
    """run() starts what is left of a ladder and waits for it."""

    def __init__(
        self,
        ladder: Ladder,
        machine: Machine,
        log: Callable[[str], None],
        command: list[str] | None = None,
    ) -> None:
        """`command`: of a run, before its arguments."""
        self.ladder, self.machine, self.log = ladder, machine, log
        self.command = command or program()
        self.free = list(machine.devices)
        self.cpus = machine.cpus
        self.started: list[Started] = []
        self.lost: dict[str, int] = {}  # times that a run's process was lost
        self.failed: dict[str, str] = {}  # how
        self.stopped: set[str] = set()  # runs that have saved at a signal, the ladder's or one of their own
        self.awaited: dict[str, float] = {}  # runs that another process trains, and when to look again (time.monotonic)
        self.noted = True  # in the file too
        self.stop_requested = False

    def run(self) -> None:
        """Start every run that is not done, a parent's state permitting.

        Raises:
            InputError: a run needs more GPUs than there are, or is in Slurm's queue; another process runs this ladder.
            Stopped: on a signal, once every run has saved. RunError: a run has failed, after all others have ended; Slurm, which
                has had some, does not answer.
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
            self._refuse_queued()
            with handled(self._stop):
                try:
                    prepare(self.ladder, self.command, lambda: self.stop_requested)
                    self._until_done()
                finally:
                    if self.stop_requested:
                        self.failed.clear()  # what failed before is none of the stop, which a requeue resumes
                    self._end_all()
        if self.failed:
            run, how = next(iter(self.failed.items()))
            raise RunError(
                f"{len(self.failed)} of {len(self.ladder.rows)} runs failed, {run} {how}; fix that, then run the same command "
                f"again"
            )
        if self.stop_requested or self.stopped:
            raise Stopped(f"{self.ladder.path}: stopped, every run has saved; run the same command to resume")

    def _refuse_queued(self) -> None:
        """A run that is a job would be trained twice: only locks, which not all nodes share, keep the two apart."""
        notes = {row.run: self.notes.get(row.run, {}) for row in self.ladder.rows if not done(self.ladder, row)}
        jobs = settled(notes, self.log)
        for run, note in notes.items():
            state = jobs.get(job := note.get("job", ""))
            if state == ENDING:
                raise InputError(f"{run}: job {job} of Slurm is ending; run the same command again when it has ended")
            if state is not None:
                raise InputError(f"{run}: is job {job} of Slurm; give --slurm, or cancel it before (scancel {job})")

    def _until_done(self) -> None:
        while not self.stop_requested:
            left = [row for row in self.ladder.rows if self._is_left(row)]
            for row in left:
                if reason := blocked_reason(self.ladder, row):
                    self._fail(row, reason)
                elif self._has_room(row) and ready(self.ladder, row) and not self._is_held(row):
                    self._start(row)
            if not self.started and not any(ready(self.ladder, row) for row in left):
                return  # what is left waits for a run that has failed
            time.sleep(POLL)
            for started in list(self.started):
                started.end_left_behind()
                if started.code is not None:
                    self._ended(started)

    def _is_left(self, row: Row) -> bool:
        running = any(started.row.run == row.run for started in self.started)
        ended = row.run in self.failed or row.run in self.stopped
        return not running and not ended and not done(self.ladder, row)

    def _has_room(self, row: Row) -> bool:
        if self.machine.jobs is not None and len(self.started) >= self.machine.jobs:
            return False
        return self.machine.need(row) <= (len(self.free) if self.machine.devices else self.cpus)

    def _is_held(self, row: Row) -> bool:
        """Whether a process of an earlier start still trains the run; nobody else begins one while we hold the ladder."""
        if time.monotonic() < self.awaited.get(row.run, 0.0):
            return True
        held_by = trainer(self.ladder, row.run, self.notes.get(row.run, {}))
        if held_by:
            if row.run not in self.awaited:
                self.log(f"{row.run}: {held_by}; waiting")
            self.awaited[row.run] = time.monotonic() + HELD_POLL
        return held_by is not None

    def _start(self, row: Row) -> None:
        needed = self.machine.need(row)
        devices = [self.free.pop(0) for _ in range(needed)] if self.machine.devices else []
        if not devices:
            self.cpus -= needed
        environment = os.environ | ({"CUDA_VISIBLE_DEVICES": ",".join(devices)} if devices else {})
        started = Started(row, needed, devices)
        self.started.append(started)
        try:
            with open(self._log_path(row), "ab") as output:
                for variables in rank_variables(len(devices) or 1):
                    command = [*self.command, *self.ladder.arguments(row)]
                    started.processes.append(_spawn(command, output, subprocess.STDOUT, environment | variables))
        except OSError as error:  # no room for its log, or no more processes: the others go on
            self._end([started])
            self._release(started)
            self._fail(row, f"to start ({error})")
            return
        self._note(row, name_process(started.processes[0].pid))
        self.log(f"{row.run}: started" + (f" on {len(devices)} GPUs" if len(devices) > 1 else ""))

    def _ended(self, started: Started) -> None:
        self._release(started)
        row, code = started.row, started.code
        assert code is not None
        self._note(row, {"code": code})
        lost = code == LOST or code < 0
        missing = missing_file(self.ladder, row)
        if missing is None and (code == 0 or lost):
            self.log(f"{row.run}: done" + (f", its process was lost at its end (exit code {code})" if lost else ""))
        elif code == Stopped.code or (code in STOPPED and self.stop_requested):
            self.stopped.add(row.run)
            self.log(f"{row.run}: stopped")
        elif lost and not self.stop_requested and self.lost.get(row.run, 0) < RETRIES:
            self.lost[row.run] = self.lost.get(row.run, 0) + 1
            self.log(f"{row.run}: its process was lost (exit code {code}); started again")
        else:
            # A run that is finished ends with 0, and started again would do so for ever.
            how = f"with exit code {code}" if code else f"without {missing}: restore that, or move the run away"
            self._fail(row, f"{how} ({self._log_path(row)})")

    def _release(self, started: Started) -> None:
        self.started.remove(started)
        self.free += started.devices
        self.cpus += 0 if started.devices else started.needed

    def _fail(self, row: Row, how: str) -> None:
        self.failed[row.run] = how
        self.log(f"{row.run}: failed {how}")

    def _log_path(self, row: Row) -> Path:
        return self.ladder.out / LOGS / f"{row.run}.log"

    def _note(self, row: Row, note: dict) -> None:
        """For --status. A disk that does not take it costs no run: the next note has this one with it."""
        self.notes[row.run] = note
        try:
            write_notes(self.ladder, self.notes)
            self.noted = True
        except (RunError, OSError) as error:
            if self.noted:
                self.log(f"--status is behind, the runs are not: {error}")
            self.noted = False

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.stop_requested = True

    def _end_all(self) -> None:
        """Let every run save and end."""
        self._end(self.started)
        for started in list(self.started):
            self._ended(started)

    def _end(self, started: list[Started]) -> None:
        for process in (process for each in started for process in each.processes):
            process.terminate()
        while any(len(each.codes) < len(each.processes) for each in started):
            time.sleep(POLL)
            for each in started:
                each.end_left_behind()


def prepare(ladder: Ladder, program: list[str], stop_requested: Callable[[], bool]) -> None:
    """Prepare the data of every run that are not prepared: runs that share them find them prepared. A stop ends it, and the next
    start resumes it."""
    seen = set()
    for row in ladder.rows:
        overrides = tuple(given for given in row.overrides if given.startswith("data."))
        if overrides in seen or stop_requested():
            continue
        seen.add(overrides)
        command = [*program, "prepare", str(ladder.config), *overrides]
        with tempfile.TemporaryFile() as errors:
            process = _spawn(command, subprocess.DEVNULL, errors)
            while process.poll() is None:
                if stop_requested():
                    process.terminate()
                time.sleep(POLL)
            errors.seek(0)
            lines = errors.read().decode(errors="replace").strip().splitlines()
        if (code := process.returncode) and not stop_requested():
            silent = f"{ladder.config}: prepare ended with exit code {code}; run the same command to resume it"
            message = lines[-1].removeprefix("emergence-train: ") if lines else silent
            raise InputError(message) if code == InputError.code else RunError(message)


def _spawn(
    command: list[str], stdout: int | IO, stderr: int | IO, environment: Mapping[str, str] | None = None
) -> subprocess.Popen:
    return subprocess.Popen(
        command,
        stdout=stdout,
        stderr=stderr,
        stdin=subprocess.DEVNULL,
        env=environment,
        start_new_session=True,  # a terminal's interrupt is the ladder's
        preexec_fn=_end_with_parent,
    )


def _end_with_parent() -> None:
    """In the child: a ladder that is killed lets its runs save and end, so that another start finds them free."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
