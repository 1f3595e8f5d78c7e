"""A run that was stopped and resumed, in one log: its rows are one run's, and of steps that come again the later rows count."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from emergence_train.analysis.logs.log import Log
from emergence_train.analysis.logs.names import plain
from emergence_train.analysis.logs.numbers import numbers_of

RISES = 4  # a log whose step rises so many times as often as it falls is in the order of time
REPLAYED = 0.25  # the largest share of a run that a resumption trains again; two runs side by side share more
NEAR = 2  # intervals between rows: a resumption begins no further behind the last row
FIRST = 1.5  # intervals from step 0 within which a run of its own begins
MODELS = "model model_name experiment experiment_name exp exp_name"  # columns that no resumption changes


def resumed(log: Log, columns: Mapping[str, str], parts: Sequence[pd.DataFrame]) -> pd.DataFrame | None:
    """The rows of one run whose id changed where it was resumed, the later part's last; None: the parts are runs of their own.

    A part that goes on begins at the end of what is there, or a little before it, at the checkpoint: no more than REPLAYED of it
    comes again. And it leads beyond it: a branch that ends where the run ends, as one with a decay, is a run of its own. So is
    what begins within its own first interval, however little of the others' steps that is, and a model of another size.
    """
    along = columns.get("step") or columns.get("tokens")
    if along is None or plain(columns.get("run", "")) in MODELS.split() or _sizes(columns, parts) > 1:
        return None
    spans = []
    for rows in parts:
        step = numbers_of(rows[along])
        step = step[np.isfinite(step)]
        if len(step):
            spans.append((float(step.min()), float(step.max()), _interval(step), rows))
    if not spans:
        return None
    spans.sort(key=lambda span: (span[0], span[3].index[0]))
    first, front, interval = spans[0][:3]
    for k, (begin, end, own, _) in enumerate(spans[1:], 2):
        interval = max(interval, own)
        if begin - front > NEAR * interval or begin < FIRST * own:
            return None
        if begin <= first or front - begin > REPLAYED * (front - first):
            return None
        if end <= front and (k == len(spans) or end == front or spans[k][0] > end):
            return None
        front = max(front, end)
    return pd.concat([rows for *_, rows in spans])


def _interval(step: pd.Series) -> float:
    """Steps between rows: the median."""
    apart = np.diff(np.unique(step))
    return float(np.median(apart)) if len(apart) else 0.0


def _sizes(columns: Mapping[str, str], parts: Sequence[pd.DataFrame]) -> int:
    """How many parameters the parts have, if a column says them."""
    name = columns.get("params")
    known = [] if name is None else [numbers_of(rows[name]).dropna() for rows in parts]
    return len({size for sizes in known for size in sizes.unique()})


def logged_again(step: np.ndarray) -> np.ndarray:
    """(n,) rows of steps that come again, and those of a run that was taken back to before them."""
    again = pd.Series(step).duplicated(keep="last").to_numpy(copy=True)
    change = np.diff(step)
    if np.sum(change > 0) >= RISES * np.sum(change < 0):
        later = np.minimum.accumulate(step[::-1])[::-1]  # the lowest step from each row on
        again[:-1] |= step[:-1] >= later[1:]
    return again
