"""The temporal law with positions: L_i(N) = a0(N) / (1 + a1(N) i) + a2(N), forecast for every position.

Two stages: fit a0, a1 and a2 at every observed checkpoint (position_law), then their laws along training: a0 and a1
follow parameter_laws, a2 the schedule-aware laws of mean_law. The forecast takes its shape over positions from a0 and
a1 and its level from the mean loss, which obeys the same laws as a2 (the position term's mean hardly moves) and is
measured without the position fit's error. The residual at each position is nearly the same at
every checkpoint because the validation sequences are the same: it is carried forward, shrunk by its noise, as a random walk with
the observed drift.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from emergence_train.analysis.planned_schedule import PlannedSchedule
from emergence_train.analysis.position_matrix import PositionMatrix, position_bins
from emergence_train.analysis.temporal import priors
from emergence_train.analysis.temporal.forecast import Forecast, forecast
from emergence_train.analysis.temporal.mean_law import WINDOW, Z, above_zero, below
from emergence_train.analysis.temporal.parameter_laws import ParameterLaw, constant_law, fit_parameter
from emergence_train.analysis.temporal.position_law import (
    ONLY_RATIO,
    fit_given_a1,
    fit_matrix,
    position_curve,
)

PATTERN_BINS = 24  # of position, in each of which noise, drift and spread of the carried residual are estimated
PATTERN_POSITIONS = 16  # in such a bin, about, at least: the noise and drift of fewer are too uncertain
LEAST_A1 = 0.1  # of the least observed: a law that is continued may fall below 0
ENOUGH = 5  # checkpoints at which the position law must be identified before its parameters are forecast


@dataclass(frozen=True)
class PositionForecast:
    """Forecast of one run's split at steps `x` (m,) for positions (P,)."""

    x: np.ndarray
    position: np.ndarray
    share: np.ndarray  # (P,) share of the split's tokens at each position that the level is of
    a0: ParameterLaw | None  # None where too few checkpoints identify the position law
    a1: ParameterLaw | None
    a2: Forecast  # of a2 itself; without a position law, `level`
    level: Forecast  # of the mean loss, without positions: the level of `loss`
    pattern: "Pattern"  # carried residual
    loss: np.ndarray  # (m, P) nats
    shared_sd: np.ndarray  # (m, P) or (m,) nats: errors of level and shape, which neighbouring positions share
    own_variance: np.ndarray  # (m, P) nats^2: pattern and noise of each position
    fits: pd.DataFrame  # position_law.fit_matrix of the observed checkpoints

    @property
    def identified(self) -> bool:
        return self.a0 is not None

    @property
    def sd(self) -> np.ndarray:
        """(m, P) nats, of one measured value."""
        shared = self.shared_sd if self.shared_sd.ndim == 2 else self.shared_sd[:, None]
        return np.sqrt(shared**2 + self.own_variance)

    @property
    def mean(self) -> np.ndarray:
        """(m,) mean loss over positions."""
        return self.loss @ self.share

    def interval(self, level: int) -> tuple[np.ndarray, np.ndarray]:
        """(low, high), both (m, P), at 50, 80 or 95 percent."""
        width = Z[level] * self.sd
        return below(self.loss, width + self.level.shift_low[:, None]), self.loss + width


def forecast_positions(
    matrix: PositionMatrix,
    x: np.ndarray,
    x_future: np.ndarray,
    plan: PlannedSchedule | None,
    prior: priors.Prior | None = None,
) -> PositionForecast:
    """Forecast every position at steps `x_future` (m,) from the observed checkpoints of `matrix` at steps `x` (C,).

    Raises InputError where there are too few checkpoints for a forecast.
    """
    observed = fits = fit_matrix(matrix)
    share = matrix.share
    level = forecast(x, matrix.mean_loss, x_future, plan, prior)
    late = x >= WINDOW * x[-1]
    usable = fits["status"].eq("ok").to_numpy()
    identified = usable.sum() >= ENOUGH
    if not identified:
        usable = usable | fits["status"].str.contains(ONLY_RATIO, regex=False).to_numpy()
        if usable.sum() < ENOUGH:
            return _level_only(matrix, x, x_future, share, level, observed)
        held = float(fits["a1"][usable & late if (usable & late).any() else usable].median())
        fits = fit_given_a1(matrix, held)
        level.notes.append(f"not identified: a0 and a1 apart; a1 is held at {held:.3g}, so that a0 speaks for a0/a1")
    a0 = fit_parameter(x[usable], fits["a0"].to_numpy()[usable], fits["a0_se"].to_numpy()[usable])
    if identified:
        a1 = fit_parameter(x[usable], fits["a1"].to_numpy()[usable], fits["a1_se"].to_numpy()[usable])
    else:
        a1 = constant_law(x, held)
    gap = _gap(fits["a0"], fits["a1"], matrix.position, share)
    # a2 is for parameters.csv and `laws` alone: the forecast's level is `level`
    a2_seen = np.where(usable, fits["a2"], matrix.mean_loss - gap)
    a2 = forecast(x, a2_seen, x_future, plan, prior)

    a0_C1, a1_C1, a2_C1 = (fits[name].to_numpy()[:, None] for name in ("a0", "a1", "a2"))
    fitted = position_curve(a0_C1, a1_C1, a2_C1, matrix.position)
    rows = late & usable if (late & usable).any() else usable
    pattern = _carried((matrix.loss - fitted)[rows], matrix.count[rows] > 0, matrix.position, x[rows])

    a0_mean, a0_sd = a0.predict(x_future)
    a1_mean, a1_sd = a1.predict(x_future)
    least = LEAST_A1 * float(fits["a1"][usable].min())
    a1_mean = np.maximum(a1_mean, least)
    shape = position_curve(a0_mean[:, None], a1_mean[:, None], 0.0, matrix.position)
    shape = shape - (shape @ share)[:, None]
    loss = level.mean[:, None] + shape + pattern.value - pattern.value @ share

    def shape_sd(low: tuple, high: tuple) -> np.ndarray:
        """(m, P) half of the difference between two shapes, which is bounded where a slope is not."""
        below, above = (position_curve(v0[:, None], v1[:, None], 0.0, matrix.position) for v0, v1 in (low, high))
        half = (above - below) / 2
        return half - (half @ share)[:, None]

    sd0 = shape_sd((a0_mean - a0_sd, a1_mean), (a0_mean + a0_sd, a1_mean))
    sd1 = shape_sd((a0_mean, np.maximum(a1_mean - a1_sd, least)), (a0_mean, a1_mean + a1_sd))
    most = np.abs(fits["a0"].to_numpy()[rows]).max()  # the position term lies between 0 and a0
    shared = np.hypot(level.sd[:, None], np.minimum(np.hypot(sd0, sd1), most / Z[95]))
    return PositionForecast(
        x_future,
        matrix.position,
        share,
        a0 if identified else None,
        a1 if identified else None,
        a2,
        level,
        pattern,
        _above_zero(loss, shared, matrix),
        shared,
        _wandered(pattern, x, x_future),
        observed,
    )


def _gap(a0: ArrayLike, a1: ArrayLike, position: np.ndarray, share: np.ndarray) -> np.ndarray:
    """(C,) mean of the position term over positions, nats."""
    return position_curve(np.asarray(a0)[:, None], np.asarray(a1)[:, None], 0.0, position) @ share


@dataclass(frozen=True)
class Pattern:
    """The residual of the law at each position (P,), persistent because every checkpoint has the same sequences.

    It drifts as the model changes: its variance grows by `drift` for every factor e of steps. Both are estimated on the
    observed checkpoints, in bins of the logarithm of position: what the law leaves of the first positions says nothing of others.
    """

    value: np.ndarray  # nats
    variance: np.ndarray  # nats^2, of one measurement about it now
    drift: np.ndarray  # nats^2 per factor e of steps


def _carried(residual: np.ndarray, counted: np.ndarray, position: np.ndarray, x: np.ndarray) -> Pattern:
    """The pattern at the end of `residual` (R, P), measured where `counted` (R, P), at steps `x` (R,) ascending.

    The mean of a bin is carried as it is, what a position has beside it shrunk by its noise; a position that was never measured
    has its bin's mean, or that of the bins beside it.
    """
    member = _members(position)
    bin_of = member.argmax(1)
    noise, drift = (values[bin_of] for values in _noise_and_drift(residual, counted, member, x))
    # average back only as far as the drift over that stretch stays below the noise
    last = len(x) - 1 - counted[::-1].argmax(0)
    near = counted & ((drift * np.log(x[-1] / x)[:, None] <= noise) | (np.arange(len(x))[:, None] == last))
    rows = near.sum(0)
    measured = rows > 0
    value = np.where(near, residual, 0.0).sum(0) / np.maximum(rows, 1)
    of_one = noise / np.maximum(rows, 1)  # variance of a value by the noise
    count = measured @ member
    bins = np.flatnonzero(count)
    middle = np.interp(np.arange(len(count)), bins, (value @ member)[bins] / count[bins])
    beside = np.where(measured, value - middle[bin_of], 0.0)
    by_noise = np.where(measured, of_one, 0.0) @ member / np.maximum(count, 1)
    spread = (beside**2) @ member / np.maximum(count - 1, 1) - by_noise
    # of a bin without a value, what bins differ by
    signal = np.where(count > 0, np.maximum(spread, 0), np.var(middle[bins]))[bin_of]
    keep = np.where(measured, signal / (signal + of_one + 1e-300), 0.0)
    variance = noise + keep * of_one + (1 - keep) * signal + of_one / np.maximum(count, 1)[bin_of]
    return Pattern(middle[bin_of] + keep * beside, variance, drift)


def _members(at: np.ndarray) -> np.ndarray:
    """(n, B) 1 where a position of `at` (n,) is in one of at most PATTERN_BINS bins of its logarithm, those together that have
    fewer than about PATTERN_POSITIONS."""
    bin_of = position_bins(at, PATTERN_BINS)
    bin_of = np.unique(np.searchsorted(bin_of, bin_of) // PATTERN_POSITIONS, return_inverse=True)[1]
    return (bin_of[:, None] == np.arange(bin_of.max() + 1)).astype(float)


def _noise_and_drift(
    residual: np.ndarray, counted: np.ndarray, member: np.ndarray, x: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Variance of one residual, and its growth for every factor e of steps, nats^2, in each bin of `member` (P, B)."""
    bins = member.shape[1]
    pick = np.unique(np.linspace(0, len(x) - 1, min(len(x), 20)).astype(int))
    i, j = np.triu_indices(len(pick), 1)
    lag = np.log(x[pick[j]] / x[pick[i]])[:, None]
    both = counted[pick[i]] & counted[pick[j]]
    weight = both @ member
    if len(x) < 3 or not weight.any():  # no two checkpoints share a position
        return np.full(bins, float(np.var(residual[counted]))), np.zeros(bins)
    change = np.where(both, (residual[pick[j]] - residual[pick[i]]) ** 2, 0.0) @ member / np.maximum(weight, 1)
    total = np.maximum(weight.sum(0), 1)
    mean_lag, mean_change = (weight * lag).sum(0) / total, (weight * change).sum(0) / total
    from_mean = weight * (lag - mean_lag)
    # mean squared change = 2 noise + drift * lag
    drift = np.maximum((from_mean * change).sum(0) / np.maximum((from_mean * lag).sum(0), 1e-300), 0)
    noise = np.maximum(mean_change - drift * mean_lag, 0.1 * mean_change) / 2
    empty = weight.sum(0) == 0
    return tuple(np.where(empty, np.median(values[~empty]), values) for values in (noise, drift))


def _wandered(pattern: Pattern, x: np.ndarray, x_future: np.ndarray) -> np.ndarray:
    """(m, P) variance of one measurement at `x_future` about the carried pattern."""
    ahead = np.log(np.maximum(x_future / x[-1], 1))
    return pattern.variance + pattern.drift * ahead[:, None]


def _level_only(
    matrix: PositionMatrix, x: np.ndarray, x_future: np.ndarray, share: np.ndarray, level: Forecast, fits: pd.DataFrame
) -> PositionForecast:
    """The forecast where the position law is not identified: the late checkpoints' shape, shifted by the mean loss."""
    late = x >= WINDOW * x[-1]
    pattern = _carried(
        (matrix.loss - matrix.mean_loss[:, None])[late], matrix.count[late] > 0, matrix.position, x[late]
    )
    loss = level.mean[:, None] + pattern.value - pattern.value @ share
    variance = _wandered(pattern, x, x_future)
    level.notes.append("not identified: the position law, at too few observed checkpoints; the last shape is carried")
    loss = _above_zero(loss, level.sd[:, None], matrix)
    return PositionForecast(
        x_future, matrix.position, share, None, None, level, level, pattern, loss, level.sd, variance, fits
    )


def _above_zero(loss: np.ndarray, sd: np.ndarray, matrix: PositionMatrix) -> np.ndarray:
    """(m, P) forecasts of a loss that was positive at every position, which its shape takes below 0 where it is small."""
    return above_zero(loss, sd, float(matrix.mean_loss[-1])) if (matrix.loss >= 0).all() else loss
