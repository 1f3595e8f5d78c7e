"""Where a rank's lines go: rank 0's to the screen, and with logging.every_rank each rank's to a file of bounded size."""

import contextlib
import logging
import logging.handlers
import threading
from collections.abc import Callable
from pathlib import Path

LOGS = "logs"
BYTES = 4_000_000  # of a file; a second keeps what came before
LAST_SECONDS = 1.0  # for the line that says how a rank ended


def in_time(write: Callable[[], None], seconds: float = LAST_SECONDS) -> None:
    """Write before the process ends, from whichever thread: a file system that hangs, or a thread that hangs in it with a lock,
    does not keep the process from ending."""
    writing = threading.Thread(target=write, name="last line", daemon=True)
    with contextlib.suppress(RuntimeError):  # no thread can be started: the process ends all the same
        writing.start()
        writing.join(seconds)


class _File(logging.handlers.RotatingFileHandler):
    def handleError(self, record: logging.LogRecord) -> None:
        """A full disk costs lines, not the run."""


class RankLog:
    """A log function. Neither a full disk nor a closed pipe ends a run."""

    def __init__(self, rank: int, show: Callable[[str], None]) -> None:
        """`show`: for the lines of rank 0."""
        self.rank, self.show = rank, show
        self.handler: logging.Handler | None = None
        self.screen: logging.Handler | None = None  # for the warnings of libraries

    def __call__(self, line: str) -> None:
        if self.rank == 0:
            with contextlib.suppress(OSError):
                self.show(line)
        self.write(line)

    def write(self, line: str, level: int = logging.INFO) -> None:
        """To the file alone."""
        handler = self.handler  # another thread may close it
        if handler:
            handler.handle(logging.LogRecord("run", level, "", 0, line, None, None))

    def ended(self, words: str, code: int) -> None:
        """How this rank ends, to the file; from whichever thread."""
        in_time(lambda: self.write(f"exit code {code}: {words}", logging.ERROR))

    def open(self, run: Path) -> None:
        """Add this start to logs/rank-N.log of the run. Libraries' warnings go there too; those of rank 0 to the screen besides.

        A directory that cannot be written leaves the screen alone.
        """
        with contextlib.suppress(OSError):
            (run / LOGS).mkdir(exist_ok=True)
            path = run / LOGS / f"rank-{self.rank}.log"
            self.handler = _File(path, maxBytes=BYTES, backupCount=1, encoding="utf-8")
            self.handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
            self.handler.setLevel(logging.INFO)
            root = logging.getLogger()
            if self.rank == 0 and not root.handlers:  # logging's last resort shows warnings only while there is none
                self.screen = logging.lastResort
            for handler in (self.handler, self.screen):
                if handler:
                    root.addHandler(handler)
            if self.rank:
                logging.captureWarnings(True)
            self.write(f"start of rank {self.rank}")

    def close(self) -> None:
        if self.handler:
            for handler in (self.handler, self.screen):
                if handler:
                    logging.getLogger().removeHandler(handler)
            self.handler.close()
            self.handler = self.screen = None
            logging.captureWarnings(False)
