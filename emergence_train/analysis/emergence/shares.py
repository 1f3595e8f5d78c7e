"""Shares of a score's variation that are explained, with an interval over runs.

Checkpoints of one run share its luck, so runs are the draws: each is left out in turn (the jackknife, Tukey 1958), in the
logarithm of the share left unexplained. The spread is taken about the share of all runs, which lies above that of endless
ones, and Student's t has two degrees of freedom fewer than there are runs: three tell little, fewer nothing.
benchmarks/studies/explanation_shares.py has the coverage, and that of a bootstrap over runs.
"""

from collections.abc import Callable

import numpy as np

from emergence_train.analysis.intervals import jackknife_error, reach95
from emergence_train.analysis.results import Interval

LEAST_RUNS = 3
LEAST_LEFT = 1e-6  # unexplained: below it the logarithm is of rounding


def over_runs(share: Callable[[np.ndarray], float | None], run: np.ndarray, least: float = -np.inf) -> Interval:
    """A share with its 95% interval; no ends for fewer than three runs, or where one left out leaves no share.

    Args:
        share: of the rows where a mask (n,) is True, the share that is explained; None where nothing varies.
        run: (n,) the run of each row. least: the lowest share that there can be.
    """
    whole = share(np.ones(len(run), bool))
    names = np.unique(run)
    if whole is None or len(names) < LEAST_RUNS:
        return Interval(whole, None, None)
    without = [share(run != name) for name in names]
    if any(each is None for each in without):
        return Interval(whole, None, None)
    left = np.log(np.maximum(1 - np.array([whole, *without], float), LEAST_LEFT))
    reach = reach95(jackknife_error(left[1:], left[0]), len(names) - 2)
    low, high = 1 - np.exp(np.minimum(left[0] + reach, 700.0)), 1 - np.exp(left[0] - reach)
    return Interval(whole, float(max(low, least)), float(high))
