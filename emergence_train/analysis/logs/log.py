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
    # All fields of its lines by their places, read where --column asks
    others: Callable[[], pd.DataFrame] | None = None


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


def finished_apart(log: Log, planned: pd.DataFrame) -> list[Log]:
    """The runs of a log that begins anew after the planned last step of the rows before; several were appended to one file.

    Whatever begins anew before it is a run that was taken back, which is read as one; so is what does in a later epoch.

    Args:
        planned: what the rows' lines say of their own run by their places, NaN where nothing: `end_step`, and where it is known
            `tokens_per_step`. Of each run the last ones count, before those of the log.
    """
    step = next((name for name in ("step", "global_step", "iter", "iteration", "update") if name in log.rows), None)
    planned = planned.reindex(log.rows.index)
    counts = pd.Series(True, log.rows.index)
    if SPLIT in log.rows and (log.rows[SPLIT] == TRAINING).any():  # a validation counts its own
        counts = log.rows[SPLIT] == TRAINING
    planned["end_step"] = planned["end_step"].where(counts)
    steps, epochs = (_numbers(log.rows[name].where(counts)) if name in log.rows else None for name in (step, "epoch"))
    starts = [0] if steps is None else _starts(steps, planned["end_step"].ffill().bfill().to_numpy(), epochs)
    runs: list[Log] = []
    for a, b in zip(starts, [*starts[1:], len(log.rows)]):
        known = {name: int(cells.iloc[-1]) for name in planned if len(cells := planned[name].iloc[a:b].dropna())}
        run = replace(
            log,
            name=f"{log.name}-{len(runs) + 1}" if starts[1:] else log.name,
            rows=log.rows.iloc[a:b],
            tokens_per_step=known.get("tokens_per_step", log.tokens_per_step),
            end_step=known.get("end_step", log.end_step),
        )
        runs.append(run)
    return runs


def _numbers(cells: pd.Series) -> np.ndarray:
    return pd.to_numeric(cells, errors="coerce").astype(float).ffill().bfill().to_numpy()


def _starts(steps: np.ndarray, ends: np.ndarray, epochs: np.ndarray | None) -> list[int]:
    """The rows at which runs begin: where the steps begin anew after the planned last one, or the one before, counted from 0.

    Not in a later epoch than the row before has: steps may be counted in each.
    """
    starts = [0]
    for k in range(1, len(steps)):
        begun = starts[-1]
        anew = steps[k] <= steps[begun] and not (epochs is not None and epochs[k] > epochs[k - 1])
        if anew and steps[begun:k].max() >= ends[k - 1] - 1:
            starts.append(k)
    return starts
