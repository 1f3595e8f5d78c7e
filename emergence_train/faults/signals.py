"""SIGTERM, SIGUSR1 (Slurm's warning) and SIGHUP (a lost terminal): save, then end with exit code 75, wherever the program is.

A signal handler of Python runs only between bytecodes, so not while the main thread waits in a collective. The C part of the
handler writes to a pipe (signal.set_wakeup_fd), and a thread reads that pipe independently of the main thread. The training
loop reads `requested`, sends it to the other ranks with the sums that are reduced anyway, saves and raises Stopped. Where
nothing has been trained since the last durable checkpoint (start, loading, compiling), or where the step does not end within
GRACE_SECONDS (a collective that hangs), the thread ends the process itself. A compilation is aborted. A process that has not
met the others yet meets them first, so that they hear of it.
"""

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from types import FrameType

from emergence_train.errors import Stopped, tell
from emergence_train.faults.compiling import Compilations

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
WITH_INTERRUPT = (*SIGNALS, signal.SIGINT)  # where Ctrl-C saves as well
GRACE_SECONDS = 20.0  # torchrun and Slurm kill 30 s after SIGTERM


@contextlib.contextmanager
def handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Let `handler` have the signals, Ctrl-C among them, in the block."""
    before = _handle(WITH_INTERRUPT, handler)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _handle(numbers: Iterable[signal.Signals], handler: Callable[[int, FrameType | None], None]) -> dict:
    """Set the handler, and return those before it; a SIGHUP that is ignored stays so (nohup)."""
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return {number: signal.signal(number, handler) for number in numbers if not (ignored and number == signal.SIGHUP)}


class StopSignal:
    """Listens from construction, the first thing that a process does, until close(). Only the main thread receives signals; made
    elsewhere it does nothing."""

    def __init__(self) -> None:
        self.is_rank0 = True  # until it is known, each process reports for itself
        self.log: Callable[[str], None] = lambda line: None
        self.compilations = Compilations()
        self.requested = False
        self.exposed = False  # there are steps after the last durable checkpoint, and the loop will see the request
        self.answered = False  # the loop has seen it and is saving
        self.on_leave: Callable[[str, int], None] = lambda words, code: None  # tells the other ranks why this one goes
        self.on_end: Callable[[str, int], None] = lambda words, code: None  # before the process is ended from here
        self._name = ""
        self._joined = threading.Event()
        self._before: dict = {}
        if threading.current_thread() is not threading.main_thread():
            return
        self._read, self._write = socket.socketpair()
        self._write.setblocking(False)
        self._fd = signal.set_wakeup_fd(self._write.fileno(), warn_on_full_buffer=False)
        self._before = _handle(SIGNALS, self._interrupt)
        threading.Thread(target=self._listen, name="signals", daemon=True).start()

    def join(
        self,
        is_rank0: bool,
        log: Callable[[str], None],
        on_leave: Callable[[str, int], None],
        on_end: Callable[[str, int], None],
    ) -> None:
        """The processes have met: from now on a stop is told to the others."""
        self.is_rank0, self.log, self.on_leave, self.on_end = is_rank0, log, on_leave, on_end
        self._joined.set()

    def stopped(self, step: int) -> Stopped:
        """The exception to raise once `step` is saved."""
        name = self._name or "a signal to another process"
        error = Stopped(f"{name}: saved at step {step}; run the same command to resume from there")
        error.already_reported = not self.is_rank0
        return error

    def close(self) -> None:
        self.compilations.close()
        for number, handler in self._before.items():
            # Launchers send a signal more than once: the exit code must stay that of a saved run.
            signal.signal(number, signal.SIG_IGN if self.requested else handler)
        if self._before:
            signal.set_wakeup_fd(self._fd)
            self._before = {}
            self._joined.set()
            self._write.close()

    def _listen(self) -> None:
        while data := self._read.recv(64):
            heard = [number for number in SIGNALS if number in data]
            if heard:
                break
        else:
            self._read.close()
            return
        self._name = heard[0].name
        self.requested = True
        if not self._joined.wait(GRACE_SECONDS):
            self._leave(f"the start was not done after {GRACE_SECONDS:.0f} s; run the same command again")
        if not self._before:
            return  # closed: train is ending with an error of its own
        if self.exposed:
            self.log(f"{self._name}: stopping with a checkpoint")
            if self._closed_within(GRACE_SECONDS) or self.answered:
                return
            self._leave(f"the step did not end within {GRACE_SECONDS:.0f} s; the last saved state is kept")
        self._leave("nothing trained since the start; run the same command again")

    def _closed_within(self, seconds: float) -> bool:
        """Wait until the loop has ended and closed the pipe; further signals are ignored."""
        until = time.monotonic() + seconds
        self._read.settimeout(1.0)
        while time.monotonic() < until:
            try:
                if not self._read.recv(64):
                    return True
            except TimeoutError:
                main = threading.main_thread().ident
                if self.compilations.now and main is not None:  # it has caught the exception: raise another
                    signal.pthread_kill(main, signal.SIGUSR1)
        return False

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        """The Python handler, in the main thread; the listening thread does the rest."""
        if self.exposed:
            self.compilations.break_off()

    def _leave(self, reason: str) -> None:
        """End the process from this thread; what is being written has a temporary name."""
        words = f"{self._name}: {reason}"
        if self.is_rank0:
            tell(words)
        self.on_end(words, Stopped.code)
        self.on_leave(words, Stopped.code)
        os._exit(Stopped.code)
