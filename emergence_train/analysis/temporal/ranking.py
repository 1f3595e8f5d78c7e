"""Rank runs by their forecast final loss, with the probability that the order is right."""

import numpy as np
from scipy.special import ndtr

from emergence_train.analysis.temporal.mean_law import below
from emergence_train.analysis.temporal.result import Place, Ranking

DRAWS = 20000


def rank(names: list[str], mean: np.ndarray, sd: np.ndarray, split: str | None = None) -> Ranking:
    """Rank runs by forecast final loss (R,) with standard deviations (R,), nats.

    Errors of runs are taken as independent. Those of one family are positively correlated, so the
    probabilities are conservative: too near to a half.
    """
    mean, sd = np.asarray(mean, float), np.maximum(np.asarray(sd, float), 1e-12)
    order = np.argsort(mean, kind="stable")
    rng = np.random.default_rng(0)
    draws = below(mean[order], -sd[order] * rng.normal(size=(DRAWS, len(order))))
    best = np.bincount(draws.argmin(1), minlength=len(order)) / DRAWS
    whole = float(np.mean(np.all(np.diff(draws, axis=1) > 0, axis=1))) if len(order) > 1 else 1.0
    rows = []
    for k, j in enumerate(order):
        following = order[k + 1] if k + 1 < len(order) else None
        above = None
        if following is not None:
            above = float(ndtr((mean[following] - mean[j]) / np.hypot(sd[following], sd[j])))
        rows.append(Place(names[j], float(mean[j]), float(sd[j]), float(best[k]), above))
    return Ranking(split, tuple(rows), whole)
