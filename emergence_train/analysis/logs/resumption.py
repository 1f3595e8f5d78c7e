"""A run that was stopped and resumed, in one log: its rows are one run's, and of steps that come again the later rows count."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from emergence_train.analysis.logs.counters import RISES
from emergence_train.analysis.logs.log import Log
from emergence_train.analysis.logs.names import EPOCHS, ONE_RUN, SHOWN, plain
from emergence_train.analysis.logs.numbers import numbers_of
from emergence_train.analysis.logs.ranks import RANKS
from emergence_train.errors import InputError, listed

REPLAYED = 0.25  # the largest share of a run that a resumption trains again; two runs side by side share more
NEAR = 2  # intervals between rows: a resumption begins no further behind the last row
FIRST = 1.5  # intervals from step 0 within which a run of its own begins
# Of the fall of the loss so far: no further from it is the loss of a step that a resumption trains again
CONTINUES = 0.1
SAME = 1e-3  # of the loss: no further apart are the losses of a step that is trained again on the same samples
JOBS = re.compile(r"job|run_?u?u?id|attempt|restart|session")  # ids that a start of the same run changes
COUNTS = re.compile(r"step|iter|update|micro|accum|sample|token")  # columns of what goes on within a run, or a step
# Columns of numbers that the machine's work gives
MEASURES = re.compile(
    r"(?:^|_)(?:(?:memory|mem|vram)(?:_(?:[gm]i?b|used|usage|peak|max|allocated|reserved))*|util(?:i[sz]ation)?|throughput"
    r"|t?flops|mfu|speed|per_s(?:ec(?:ond)?)?)$"
)
PLACES = (*RANKS.split(), "host", "hostname", "machine")  # where a run is
LASTING = 0.5  # of the steps up to its last: more of them has a value that names a run
FALLS = 0.1  # of the rows: more whose step is below the one before are not in the order of time
AGAIN_AND_AGAIN = 3  # falls to steps that were not there yet, without a label of the rows
# Columns that may name rows
LABELS = re.compile(r"(?:^|_)(?:name|commit|sha|hash|u?u?id|run|exp|experiment|model|trial)$")
MODELS = "model model_name experiment experiment_name exp exp_name"  # columns that no resumption changes


@dataclass(frozen=True)
class _Part:
    """Rows of one id, ascending by step; `ahead`: how far from its last row another of its own may be expected."""

    step: np.ndarray
    loss: np.ndarray
    rows: pd.DataFrame

    @property
    def interval(self) -> float:
        """Steps between rows: the median."""
        apart = np.diff(np.unique(self.step))
        return float(np.median(apart)) if len(apart) else 0.0

    @property
    def ahead(self) -> float:
        """The last interval, as much longer again as it was longer than the one before it (rows at 1, 2, 4, 8)."""
        apart = np.diff(np.unique(self.step))
        return float(apart[-1] * max(1.0, apart[-1] / apart[-2])) if len(apart) > 1 else self.interval


def resumed(log: Log, columns: Mapping[str, str], parts: Sequence[pd.DataFrame]) -> pd.DataFrame | None:
    """The rows of one run whose id changed where it was resumed, the later part's last; None: the parts are runs of their own.

    A part that goes on begins at the end of what is there, or a little before it, at the checkpoint: no more than REPLAYED of it
    comes again. And it leads beyond it: a branch that ends where the run ends, as one with a decay, is a run of its own. So is
    a model of another size, and what begins within its own first interval, however little of the others' steps that is. Of a
    job's id also a part counts whose loss continues from where it was, as rows may lie further apart in it; and one that trains
    more steps again, or leads no further yet, if its losses there are those that were.
    """
    along = columns.get("step") or columns.get("tokens")
    if along is None or plain(columns.get("run", "")) in MODELS.split() or _sizes(columns, parts) > 1:
        return None
    known = [part for rows in parts if (part := _part(rows, along, columns.get("loss"))) is not None]
    if not known:
        return None
    known.sort(key=lambda part: (part.step[0], part.rows.index[0]))
    first, front, interval = known[0].step[0], known[0].step[-1], known[0].interval
    is_job = JOBS.search(plain(columns.get("run", ""))) is not None
    for k, part in enumerate(known[1:], 1):
        begin, end, before = part.step[0], part.step[-1], known[k - 1]
        interval = max(interval, part.interval)
        if begin - front > NEAR * max(interval, before.ahead):
            return None
        if begin < FIRST * part.interval and not (is_job and _continues(known[:k], part)):
            return None
        replays = is_job and begin >= FIRST * part.interval and _replays(known[:k], part)
        few = front - begin <= REPLAYED * (front - first) or is_job and _few_rows(known[:k], part)
        if begin <= first or not (few or replays):
            return None
        if end <= front and not replays and (k + 1 == len(known) or end == front or known[k + 1].step[0] > end):
            return None
        front = max(front, end)
    return pd.concat([part.rows for part in known])


def _part(rows: pd.DataFrame, along: str, loss: str | None) -> _Part | None:
    step = numbers_of(rows[along], "count").to_numpy()
    losses = np.full(len(step), np.nan) if loss is None else numbers_of(rows[loss], "small").to_numpy()
    order = np.argsort(step, kind="stable")
    order = order[np.isfinite(step[order])]
    return _Part(step[order], losses[order], rows) if len(order) else None


def _few_rows(before: Sequence[_Part], part: _Part) -> bool:
    """Whether few rows come again though many steps do, as in a log at steps 1, 2, 5, 10, ...; and the loss continues there."""
    steps = np.concatenate([p.step for p in before])
    return bool((steps >= part.step[0]).mean() <= REPLAYED) and _continues(before, part)


def _replays(before: Sequence[_Part], part: _Part) -> bool:
    """Whether a part's losses are those of the rows before it at the same steps: the same, or as scattered about the same line.

    Both halves of them must be, as a branch of another rate comes apart later.
    """
    step, loss = _curve_of(before)
    again = np.isfinite(part.loss) & (part.step <= step.max(initial=-np.inf))
    if again.sum() < 2 or not _continues(before, part):
        return False
    there = loss[step >= part.step[0]]
    scatter = float(np.sqrt(np.mean(np.diff(there, 2) ** 2) / 6)) if len(there) > 2 else 0.0  # 1 + 4 + 1 of a row's
    least = SAME * float(np.abs(there).mean())
    halves = np.array_split(part.loss[again] - np.interp(part.step[again], step, loss), 2)
    return all(
        np.sqrt(np.mean(off**2)) <= max(least, 3 * scatter)
        and abs(off.mean()) <= max(least, 4 * scatter / len(off) ** 0.5)
        for off in halves
    )


def _curve_of(parts: Sequence[_Part]) -> tuple[np.ndarray, np.ndarray]:
    """Steps, ascending, and finite losses of parts together."""
    step, loss = np.concatenate([p.step for p in parts]), np.concatenate([p.loss for p in parts])
    order = np.argsort(step, kind="stable")
    order = order[np.isfinite(loss[order])]
    return step[order], loss[order]


def _continues(before: Sequence[_Part], part: _Part) -> bool:
    """Whether a part's first loss is where the curve before it had come to, and not where that began."""
    step, loss = _curve_of(before)
    losses = part.loss[np.isfinite(part.loss)]
    if len(step) < 2 or not len(losses):
        return False
    here = float(np.interp(part.step[0], step, loss))
    off = abs(float(losses[0]) - here)
    if part.step[0] > step[-1]:
        return off < abs(losses[0] - loss[0])
    return off <= CONTINUES * abs(loss[0] - here)


def _sizes(columns: Mapping[str, str], parts: Sequence[pd.DataFrame]) -> int:
    """How many parameters the parts have, if a column says them."""
    name = columns.get("params")
    known = [] if name is None else [numbers_of(rows[name], "count").dropna() for rows in parts]
    return len({size for sizes in known for size in sizes.unique()})


def check_runs(log: Log, step: pd.Series, columns: Mapping[str, str]) -> None:
    """Raises InputError where a column tells apart rows of equal steps that begin at the first one: they are several runs'.

    Not each of them needs to be told apart, as one of the runs may have been resumed.

    Args:
        step: of the rows with a loss, by their places in the log.
    """
    others = [
        column for column in log.rows.columns if _may_name_runs(log.rows[column].reindex(step.index), step, columns)
    ]
    apart = [[column] for column in others] + [others] * (len(others) > 1)
    keys = (log.rows.loc[step.index, names].astype(str).assign(**{"its step": step}) for names in apart)
    again = [int(key.duplicated().sum()) for key in keys]
    if not again or min(again) > REPLAYED * step.duplicated().sum():
        return
    names = apart[again.index(min(again))]
    cells = listed([str(cell) for cell in log.rows.loc[step.index, names[0]].unique()], 4)
    lone = len(names) == 1 and "run" not in columns
    remedy = f"--column run={names[0]}" if lone else "each a name in a column of its own and --column run=NAME"
    raise InputError(
        f"{log.path}: rows of equal steps differ by {listed([repr(str(name)) for name in names], SHOWN)} ({cells}), as several "
        f"runs do; give {remedy}, or --column run={ONE_RUN} where the last of them counts"
    )


def _may_name_runs(cells: pd.Series, step: pd.Series, columns: Mapping[str, str]) -> bool:
    """Whether a column has few values, more than one of them from the first step on, and is none that counts or measures."""
    name = str(cells.name)
    counts = COUNTS.search(plain(name)) is not None or plain(name) in EPOCHS.split() or plain(name).endswith("loss")
    measured = name in columns.values() and name not in (columns.get("lr"), columns.get("params"))
    measured |= MEASURES.search(plain(name)) is not None and bool(np.isfinite(numbers_of(cells)).all())
    if counts or measured or cells.isna().any() or not 1 < cells.nunique() <= len(cells) / 2:
        return False
    of_value = step.groupby(cells.astype(str), sort=False)
    moves = plain(name) in PLACES and int(cells.ne(cells.shift()).sum()) == len(of_value)
    if moves and of_value.max().is_monotonic_increasing and of_value.max().is_unique:
        return False  # a run that crashed and began anew elsewhere
    every = np.unique(step)
    interval = float(np.median(np.diff(every))) if len(every) > 1 else 0.0
    # What fluctuates has each of its values at few of the steps
    lasting = of_value.nunique() > LASTING * np.searchsorted(every, of_value.max(), side="right")
    lasts = bool(of_value.size()[lasting].sum() > len(step) / 2)
    return lasts and bool((of_value.min() < step.min() + max(interval, 1.0)).sum() > 1)


def check_order(log: Log, step: pd.Series) -> None:
    """Raises InputError where rows are no run's in time: steps fall again and again, or often beside a label of every row.

    Rows of one run in another order lie evenly, or ever further apart, as checkpoints sorted by a score or by their names; those
    of a table of runs do not.

    Args:
        step: of the rows with a loss, by their places in the log.
    """
    values, every = step.to_numpy(float), np.unique(step)
    falls = np.flatnonzero(np.diff(values) < 0) + 1
    apart = np.diff(every)
    if len(falls) <= FALLS * len(values) or len(falls) == len(values) - 1:  # in order, or the newest first
        return
    if len(every) == len(values) and 2 * np.sum(apart == np.median(apart)) >= len(apart):
        return
    label = next(
        (column for column in log.rows.columns if _labels_rows(log.rows[column].reindex(step.index), step)), None
    )
    widens = len(every) == len(values) and np.sum(np.diff(apart) < -1) <= FALLS * len(apart)  # to a whole step
    if label is None and (widens or sum(values[k] not in values[:k] for k in falls) < AGAIN_AND_AGAIN):
        return
    first, beside = step.index[falls[0]], f" and {str(label)!r} differs in each" if label is not None else ""
    raise InputError(
        f"{log.path}: the steps fall at {len(falls)} of {len(values)} rows (the first is row {first}){beside}, as in a table "
        f"with a row a run; name the log of one run, or give --column run={ONE_RUN} where they are one run's"
    )


def _labels_rows(cells: pd.Series, step: pd.Series) -> bool:
    """Whether a column names each row, in words and not by numbers or its step ("checkpoint-512")."""
    named = LABELS.search(plain(cells.name)) is not None and cells.notna().all() and cells.is_unique
    if not named or not np.isinf(numbers_of(cells)).any():
        return False
    return any(own not in map(int, re.findall(r"\d+", str(cell))) for cell, own in zip(cells, step))


def logged_again(step: np.ndarray) -> np.ndarray:
    """(n,) rows of steps that come again, and those of a run that was taken back to before them, not sorted by their names."""
    again = pd.Series(step).duplicated(keep="last").to_numpy(copy=True)
    change = np.diff(step)
    falls = np.sum(change < 0)
    if falls and np.sum(change > 0) >= RISES * falls and not _by_name(step):
        later = np.minimum.accumulate(step[::-1])[::-1]  # the lowest step from each row on
        again[:-1] |= step[:-1] >= later[1:]
    return again


def _by_name(step: np.ndarray) -> bool:
    """Whether steps are in the order of their names, 1, 10, 2, as files are listed."""
    names = [f"{value:.0f}" for value in step]
    return names == sorted(names)
