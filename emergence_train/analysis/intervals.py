"""Half-widths of 95% intervals of a few independent values."""

import numpy as np
from scipy import stats


def reach95(error: float, freedom: int) -> float:
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
    """p of a difference of two means, by Welch's t."""
    return float(stats.ttest_ind(first, second, equal_var=False).pvalue)
