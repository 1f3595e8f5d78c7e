"""The `evaluations` table of a checkpoint on the disk: training and any number of `evaluate` add rows to it."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from emergence_train import files
from emergence_train.input_files import regular
from emergence_train.recorder import tables
from emergence_train.recorder.schemas import TASK_DIGEST
from emergence_train.recorder.table_files import vocabulary_of

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


def remove(folder: Path, unwanted: Callable[[str, str], bool], but: Path) -> str | None:
    """Remove the rows whose task and digest are `unwanted` from a run's tables, but for one. Returns a warning, and raises, as
    `add`."""
    with files.lock(folder, busy=BUSY, other=OTHER, wait=WAIT) as note:
        for path in sorted({path for path, *row in digests(folder) if path != but and unwanted(*row)}):
            frame = tables.read(tables.EVALUATIONS, path).drop(columns=tables.VOCABULARY, errors="ignore")
            kept = frame[[not unwanted(*row) for row in zip(frame["task"], frame[TASK_DIGEST].fillna(""))]]
            if kept.empty:
                path.unlink()
            else:
                tables.write(tables.EVALUATIONS, kept, path, vocabulary=vocabulary_of(path))
    return note


def merge(path: Path, frame: pd.DataFrame, vocabulary: str) -> None:
    """`add` without the lock, for a writer who must not wait: rows that another adds at the same moment may be lost."""
    if path.is_file():
        before = tables.read(tables.EVALUATIONS, path)
        kept = before[~before["task"].isin(frame["task"])]
        columns = [name for name in kept if name in frame or name == TASK_DIGEST]
        frame = pd.concat([kept[columns], frame], ignore_index=True)
    tables.write(tables.EVALUATIONS, frame, path, vocabulary=vocabulary)


def digests(folder: Path) -> Iterator[tuple[Path, str, str]]:
    """(table, task, digest) of the scores in a run's tables, "" where it is not known; tables that cannot be read have none."""
    for path in sorted(folder.glob("*.parquet")):
        try:
            with pq.ParquetFile(regular(path)) as file:
                columns = [name for name in ("task", TASK_DIGEST) if name in file.schema_arrow.names]
                rows = file.read(columns).to_pylist()
        except (OSError, ValueError, pa.ArrowException):
            continue
        known = {(row.get("task") or "", row.get(TASK_DIGEST) or "") for row in rows}
        yield from ((path, task, digest) for task, digest in sorted(known))
