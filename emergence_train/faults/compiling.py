"""torch.compile and signals: once a stop is requested, a process breaks off what it compiles and runs that part uncompiled.

Validation compiles the blocks anew, for minutes where they are many and the cache is cold: longer than a launcher waits
between SIGTERM and SIGKILL. Compilation is mostly Python, or waits for a compiler or a worker process; an exception in it,
raised by the signal's handler in the main thread, ends it, and torch.compile then runs the frame as it stands. So every rank
does the collectives that the others expect, comes round, and saves. (What the first step compiles needs none of this: there is
nothing to save, and the process leaves at once.)
"""

import logging
import threading
from typing import Any

import torch


class BrokenOff(Exception):
    """In the middle of a compilation: torch.compile takes it for a failure of its own."""


class Compilations:
    """Whether the main thread compiles now. Once a stop is requested, it compiles no more."""

    def __init__(self) -> None:
        self.now = False
        self.over = False
        self.handler: Any = None  # torch's, while it is listened to

    def listen(self) -> None:
        """From now on, until close()."""
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
        """Called in the main thread, by the handler of a signal; raises BrokenOff where something is being compiled."""
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
        torch._dynamo.config.suppress_errors = True
        logging.getLogger("torch._dynamo").setLevel(logging.CRITICAL)  # it would tell of this as of an error, at length
        raise BrokenOff
