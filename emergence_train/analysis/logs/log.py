"""What a log file says of runs, before its columns are understood; and how the user helps where it does not say enough."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd

SPLIT = "split"  # the column that readers of lines write
TRAINING, VALIDATION = "train", "validation"


@dataclass(frozen=True)
class LogOptions:
    """What the command line says of logs: the format, and what the file itself leaves out."""

    format: str = "auto"
    run: str | None = None  # name of the run; of a file with several runs the one to take
    params: int | None = None  # non-embedding
    tokens_per_step: int | None = None
    columns: Mapping[str, str] = field(default_factory=dict)  # our column: the file's name for it
    loss_unit: str | None = None  # one of units.UNITS; None: by the name of the loss's column

    @property
    def given(self) -> bool:
        """Whether any of it was given."""
        return self != LogOptions()


@dataclass(frozen=True)
class Log:
    """One run as its file has it: a frame of objects, None where a row lacks a column.

    The frame's index holds the place of each row in the file, counted from 1. `tokens_per_step` and `end_step` (the
    planned last step) are None where the file does not say them; so is `course`, (K, 2) steps and tokens that are planned beyond
    the last row, where the batch goes on to grow.
    """

    name: str
    path: Path
    rows: pd.DataFrame
    tokens_per_step: int | None = None
    end_step: int | None = None
    notes: tuple[str, ...] = ()  # how its file was read
    course: np.ndarray | None = None


@dataclass(frozen=True)
class Format:
    """A kind of log. `takes` looks at a path and the beginning of its text (empty for a directory)."""

    name: str
    description: str
    takes: Callable[[Path, str], bool]
    read: Callable[[Path], list[Log]]


def frame_of(rows: list[dict], places: list[int] | None = None) -> pd.DataFrame:
    """Rows of unlike keys as a frame of objects; None where a row lacks a key."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    index = pd.RangeIndex(1, len(rows) + 1) if places is None else pd.Index(places)
    return pd.DataFrame({c: pd.Series([row.get(c) for row in rows], index, dtype=object) for c in columns}, index)


def finished_apart(log: Log) -> list[Log]:
    """The runs of a log that begins anew after the planned last step; several were appended to one file.

    Whatever begins anew before it is a run that was taken back, which is read as one.
    """
    step = next((name for name in ("step", "global_step", "iter", "iteration", "update") if name in log.rows), None)
    if log.end_step is None or step is None:
        return [log]
    steps = pd.to_numeric(log.rows[step], errors="coerce").astype(float)
    if SPLIT in log.rows:  # a validation counts its own
        steps = steps.mask(log.rows[SPLIT] == VALIDATION).ffill().bfill().fillna(steps)
    values = steps.to_numpy()
    starts = [0]
    for k in range(1, len(values)):
        # The last step is the planned one, or counted from 0
        finished = values[starts[-1] : k].max() >= log.end_step - 1
        if finished and values[k] <= values[starts[-1]]:
            starts.append(k)
    if len(starts) == 1:
        return [log]
    ends = [*starts[1:], len(values)]
    return [
        replace(log, name=f"{log.name}-{n}", rows=log.rows.iloc[a:b]) for n, (a, b) in enumerate(zip(starts, ends), 1)
    ]
