"""Which rank puts a verdict on the screen where the store is lost that the ranks would agree over.

The store goes with rank 0's node. What the ranks of other nodes still share is the run directory: of all that try to create
one file there, the first may speak, whatever ranks are left.
"""

import contextlib
import os
import threading
from pathlib import Path

from emergence_train.faults.flight_recorder import STACKS

PREFIX = "reported-"
SECONDS = 3.0  # for the file system to answer: rank 0's node may have served it


def claim(run: Path, launch_id: str, rank: int) -> bool | None:
    """Whether `rank` is the first of this start to claim the report; None where the file system cannot tell in time."""

    def work() -> None:
        with contextlib.suppress(OSError):
            (run / STACKS).mkdir(exist_ok=True)
            try:
                handle = os.open(run / STACKS / f"{PREFIX}{launch_id}", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
            except FileExistsError:
                answers.append(False)
                return
            answers.append(True)  # a full disk takes a file without content
            with os.fdopen(handle, "w") as file:
                file.write(f"rank {rank}\n")

    answers: list[bool] = []
    thread = threading.Thread(target=work, name="report-claim", daemon=True)
    thread.start()
    thread.join(SECONDS)
    return answers[0] if answers else None
