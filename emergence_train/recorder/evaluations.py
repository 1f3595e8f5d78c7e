"""The `evaluations` table of a checkpoint on the disk: training and any number of `evaluate` add rows to it."""

from pathlib import Path

import pandas as pd

from emergence_train import files
from emergence_train.recorder import tables

WAIT = 30.0  # seconds for another writer, who needs milliseconds
OTHER = "place (a copy of the run; cp -rs makes one of links)"
BUSY = "another process writes there; run the same command again"


def add(path: Path, frame: pd.DataFrame, vocabulary: str) -> str | None:
    """Add rows to the table at `path`; those of tasks that are not in `frame` are kept. Returns a warning where the file system
    has no locks.

    Raises:
        InputError: the table cannot be read, or is locked for longer than WAIT.
    """
    with files.lock(path.parent, busy=BUSY, other=OTHER, wait=WAIT) as note:
        merge(path, frame, vocabulary)
    return note


def merge(path: Path, frame: pd.DataFrame, vocabulary: str) -> None:
    """`add` without the lock, for a writer who must not wait: rows that another adds at the same moment may be lost."""
    if path.is_file():
        before = tables.read(tables.EVALUATIONS, path)
        kept = before[~before["task"].isin(frame["task"])]
        frame = pd.concat([kept[[c for c in kept if c in frame]], frame], ignore_index=True)
    tables.write(tables.EVALUATIONS, frame, path, vocabulary=vocabulary)
