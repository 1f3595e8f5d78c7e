"""Which rank puts a verdict on the screen where the store is lost that the ranks would agree over.

The store goes with rank 0's node. What the ranks of other nodes still share is the run directory: of all that try to create
one file there, the first may speak, whatever ranks are left.
"""

import contextlib
import os
import threading
import time
from pathlib import Path

from emergence_train.faults.flight_recorder import STACKS

PREFIX = "reported-"
AGAIN = 0.1  # seconds after which a claim that was found is looked for again, twice
SECONDS = 3.0  # for the file system to answer: rank 0's node may have served it


def forget_older(run: Path, launch_id: str) -> None:
    """Remove the claims of other starts: the holder of the run's lock knows that they are over."""
    for path in (run / STACKS).glob(f"{PREFIX}*"):
        if path.name != f"{PREFIX}{launch_id}":
            path.unlink(missing_ok=True)


def claim(run: Path, launch_id: str, rank: int, fallback: bool) -> bool:
    """Whether `rank` is to report: the first of this start to claim it or, where the file system does not answer in time, a
    `fallback`. Any other takes its claim back should it be granted late: it is silent, and the file would silence the rest."""

    def work() -> None:
        path = run / STACKS / f"{PREFIX}{launch_id}"
        with contextlib.suppress(OSError):
            path.parent.mkdir(exist_ok=True)
            handle = _create(path)
            if handle is None:
                answers.append(False)
                return
            with lock:
                answers.append(True)  # a full disk takes a file without content
                unused = late.is_set() and not fallback
            with os.fdopen(handle, "w") as file:
                if unused:
                    path.unlink()
                else:
                    file.write(f"rank {rank}\n")

    answers: list[bool] = []
    lock, late = threading.Lock(), threading.Event()
    thread = threading.Thread(target=work, name="report-claim", daemon=True)
    thread.start()
    thread.join(SECONDS)
    with lock:
        if answers:
            return answers[0]
        late.set()
    return fallback


def _create(path: Path) -> int | None:
    """Create the file; None where another rank has. A claim that is just being taken back is gone at the next try."""
    for wait in (AGAIN, AGAIN, 0.0):
        try:
            return os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            time.sleep(wait)
    return None
