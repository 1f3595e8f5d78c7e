"""Half-widths of 95% intervals of a few independent values."""

import numpy as np
from scipy import stats


def reach95(error: float, freedom: float) -> float:
    """Half-width for a standard error that is known to so many degrees of freedom: Student's t."""
    return float(stats.t.ppf(0.975, freedom)) * float(error)


def mean_reach95(values: np.ndarray) -> float:
    """Half-width for the mean of independent values (n,), two or more."""
    return reach95(stats.sem(values), len(values) - 1)


def mean_p(values: np.ndarray) -> float:
    """p of the mean of independent values (n,), two or more, where it is 0 in truth: Student's t."""
    return float(2 * stats.t.sf(abs(np.mean(values)) / max(stats.sem(values), 1e-300), len(values) - 1))


def jackknife_error(without: np.ndarray, about: float) -> float:
    """Standard error (Tukey 1958) of an estimate by what it is `without` (n,) each draw in turn.

    `about`: what their spread is taken about. Their mean is Tukey's; the estimate of all draws adds the bias of one that is not
    linear.
    """
    return float(np.sqrt((len(without) - 1) / len(without) * ((without - about) ** 2).sum()))


def welch_p(first: np.ndarray, second: np.ndarray) -> float:
    """p of a difference of two means, by Welch's t; NaN where neither group varies."""
    error, freedom = _welch(first, second)
    return float(2 * stats.t.sf(abs(np.mean(first) - np.mean(second)) / error, freedom))


def welch_reach95(first: np.ndarray, second: np.ndarray) -> float:
    """Half-width for a difference of two means, by Welch's t; NaN where neither group varies."""
    return reach95(*_welch(first, second))


def _welch(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """Standard error of a difference of two means, and its degrees of freedom; NaN where neither group varies."""
    # About a value of its own, equal ones vary by exactly nothing.
    parts = [np.var(values - values[0], ddof=1) / len(values) for values in (first, second)]
    spread = sum(parts)
    if spread == 0:
        return np.nan, np.nan
    return float(np.sqrt(spread)), spread**2 / (parts[0] ** 2 / (len(first) - 1) + parts[1] ** 2 / (len(second) - 1))
