"""torch.compile and signals: once a stop is requested, a process aborts its compilation and runs that frame uncompiled.

Validation compiles the blocks again, for minutes where they are many and the cache is cold: longer than a launcher waits
between SIGTERM and SIGKILL. Compilation is mostly Python, or waits for a compiler or a worker process; an exception raised in
it by the signal handler in the main thread ends it, and torch.compile then runs the frame eagerly. So every rank takes part in
the collectives that the others expect, reaches the end of the step, and saves. (Compilation in the first step is not affected:
there is nothing to save, and the process exits at once.)
"""

import logging
import threading
from typing import Any


class BrokenOff(Exception):
    """Raised inside a compilation, which torch.compile treats as a failure of its own."""


class Compilations:
    """Tracks whether the main thread is compiling; once a stop is requested, compilation is aborted."""

    def __init__(self) -> None:
        self.now = False
        self.over = False
        self.handler: Any = None  # torch's, while it is listened to

    def listen(self) -> None:
        """Register the callbacks, until close()."""
        from torch._dynamo.callback import callback_handler

        self.handler = callback_handler
        self.handler.register_start_callback(self._begin)
        self.handler.register_end_callback(self._end)

    def close(self) -> None:
        if self.handler is not None:
            self.handler.remove_start_callback(self._begin)
            self.handler.remove_end_callback(self._end)
            self.handler = None

    def break_off(self) -> None:
        """Called by the signal handler in the main thread; raises BrokenOff during a compilation."""
        if self.handler is None:
            return
        self.over = True
        if self.now:
            self._raise()

    def _begin(self, _: object) -> None:
        if threading.current_thread() is threading.main_thread():
            if self.over:
                self._raise()
            self.now = True

    def _end(self, _: object) -> None:
        self.now = False

    def _raise(self) -> None:
        import torch  # not above: signals are listened to before torch is imported

        torch._dynamo.config.suppress_errors = True
        logging.getLogger("torch._dynamo").setLevel(logging.CRITICAL)  # it would log this as an error, at length
        raise BrokenOff
