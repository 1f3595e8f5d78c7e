"""Scores of forecasts beyond their error: coverage, what widths should be, and what no forecast could be better than."""

import numpy as np
import pandas as pd
from scipy.stats import norm

from emergence_train.analysis.planned_schedule import PlannedSchedule
from emergence_train.analysis.temporal.forecast import Forecast
from emergence_train.analysis.temporal.mean_law import LAWS, ObservedPart, fit

LEVELS = (50, 80, 95)


class Unweighted(ObservedPart):
    """A curve whose points all count alike: of a whole run, not of a window at its end."""

    @property
    def weight(self) -> np.ndarray:
        return np.ones(len(self.x))


def oracle(step: np.ndarray, loss: np.ndarray, begin: float, future: np.ndarray, plan: PlannedSchedule) -> np.ndarray:
    """The schedule law at `future` (m,) fitted to the losses from `begin` to the end, those ahead included; nats."""
    keep = step >= begin
    return fit(LAWS["schedule"], Unweighted(step[keep], loss[keep], 0.0, 0.0), plan).predict(future)[0]


def held(ahead: Forecast, actual: np.ndarray, end: float) -> dict[str, float]:
    """Whether the intervals hold: a share of the rows `actual` (m,), and the end without its noise, `end` nats."""
    result = {}
    for level in LEVELS:
        low, high = ahead.interval(level)
        result[f"rows {level}"] = float(np.mean((low <= actual) & (actual <= high)))
        low, high = ahead.interval(level, noisy=False)
        result[f"end {level}"] = float(low[-1] <= end <= high[-1])
    return result


def calibrated_ratio(half_width: pd.Series) -> float:
    """Median half-width over median error, were every error normal with the standard deviation that its width states.

    2.9 where all widths are alike; more where narrow and wide ones are mixed, as the medians are then of different runs.
    """
    sd = half_width.to_numpy() / norm.ppf(0.975)
    low, high = 0.0, float(half_width.max())
    for _ in range(60):  # median of the mixture of half-normals, by bisection
        middle = (low + high) / 2
        below = float(np.mean(2 * norm.cdf(middle / sd) - 1))
        low, high = (middle, high) if below < 0.5 else (low, middle)
    return float(half_width.median() / middle)


def conformal(rows: pd.DataFrame) -> dict:
    """Factors on the half-widths by which 95% of the other laboratories' ends are held, and what they would do.

    `rows`: one a forecast, with laboratory, fraction, end error and half-width. Laboratories count alike.
    """
    table = {}
    for fraction, part in rows.groupby("fraction"):
        score = part["end error"].abs() / part["half-width"]
        table[str(fraction)] = {}
        for name in sorted(part["laboratory"].unique()):
            others = part["laboratory"] != name
            weight = 1 / part[others].groupby("laboratory")["laboratory"].transform("count")
            order = np.argsort(score[others].to_numpy())
            reached = np.cumsum(weight.to_numpy()[order]) / weight.sum()
            factor = float(score[others].to_numpy()[order][np.searchsorted(reached, 0.95)])
            inside = {
                "as stated": float((score[~others] <= 1).mean()),
                "scaled": float((score[~others] <= factor).mean()),
            }
            table[str(fraction)][name] = {"factor of the others": round(factor, 3), "ends inside": inside}
    return table
