"""Simulated sweeps with known truth, in forms that the estimator does not contain.

A run generalises where its own critical share, drawn around its size's, is below the share that it was trained on; or, in
the form "time", where a time that diverges at the critical share comes before the budget. None of the forms is logistic.
"""

from collections.abc import Sequence

import numpy as np

from emergence_train.analysis.grokking.critical import Group

FORMS = ("lognormal", "gumbel", "mixture", "time")
MEDIAN_OF_GUMBEL = -np.log(np.log(2))
POWER = 0.5  # of the time's divergence in the form "time"


def critical_shares(params: Sequence[int], middle: float, slope: float) -> np.ndarray:
    """(sizes,): a straight line in log10(parameters) through `middle` at their mean."""
    sizes = np.log10(params)
    return middle + slope * (sizes - sizes.mean())


def generalised(
    form: str, rng: np.random.Generator, fractions: np.ndarray, critical: float, spread: float
) -> np.ndarray:
    """(n,) whether each run generalises. Exactly half of the runs at `critical` do; `spread` is relative to it."""
    n = len(fractions)
    if form == "lognormal":
        return fractions >= critical * np.exp(spread * rng.normal(size=n))
    if form == "gumbel":  # skewed: some runs need far more
        return fractions >= critical * (1 + spread * (rng.gumbel(size=n) - MEDIAN_OF_GUMBEL))
    if form == "mixture":
        wide = np.where(rng.random(n) < 0.2, 3.0, 0.5)
        return fractions >= critical * (1 + spread * wide * rng.normal(size=n))
    if form == "time":
        pole = 0.9 * critical  # the time is infinite there and equals the budget, in the median, at the critical share
        above = np.maximum(fractions / pole - 1, 1e-9) / (critical / pole - 1)
        return above**-POWER * np.exp(3 * spread * rng.normal(size=n)) <= 1
    raise ValueError(f"form {form!r} is unknown; choose from {', '.join(FORMS)}")


def groups(
    form: str,
    rng: np.random.Generator,
    params: Sequence[int],
    critical: np.ndarray,
    shares: np.ndarray,
    seeds: int,
    spread: float = 0.1,
) -> list[Group]:
    """The runs of a sweep: every size at every share with so many seeds."""
    fractions = np.repeat(shares, seeds)
    return [
        Group(fractions, generalised(form, rng, fractions, float(value), spread), int(size))
        for size, value in zip(params, critical)
    ]
