"""Intervals of a few independent values."""

import numpy as np

from emergence_train.analysis.intervals import mean_reach95
from emergence_train.analysis.results import Interval


def student(values: np.ndarray, lowest: float = -np.inf, highest: float = np.inf) -> dict:
    """Mean of independent values with Student's 95% interval, cut at `lowest` and `highest`; no interval of one value, or where
    all are equal and so tell no spread."""
    values = np.asarray(values, float)
    mean = values.mean()
    if equal(values):
        return {"value": round(float(mean), 4), "low95": None, "high95": None}
    reach = mean_reach95(values)
    ends = (max(mean - reach, lowest), min(mean + reach, highest))
    return dict(zip(("value", "low95", "high95"), (round(float(x), 4) for x in (mean, *ends))))


def equal(values: np.ndarray) -> bool:
    """Whether values tell no spread: one alone, or all the same but for rounding."""
    return bool(np.ptp(values) <= 1e-9 * np.abs(values).max())


def holds(interval: Interval, truth: float) -> bool:
    """Whether an interval holds the truth; an end that is None is open."""
    low = -np.inf if interval.low95 is None else interval.low95
    high = np.inf if interval.high95 is None else interval.high95
    return bool(low <= truth <= high)
