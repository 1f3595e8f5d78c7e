"""Time to generalise: its median over seeds, and how it grows as data get scarce, with the runs that did not as censored."""

from collections.abc import Callable

import numpy as np
from scipy import optimize, special, stats

from emergence_train.analysis.results import Interval

HALF_LOG_2_PI = 0.5 * np.log(2 * np.pi)
SLOPE_LIMIT = 200.0
FLAT = 1e-6  # twice the log-likelihood
STEPS = 100  # of Newton at most
CLOSE = 1e-9  # of the log-likelihood to its highest
LEAST_SPREAD = 0.01  # of logarithms of time, where the search begins
FINEST = 1e-5  # width of an interval of logarithms of time: of narrower ones differences are lost in rounding
FAR = 1e3  # standard deviations: no density


def median_time(times: np.ndarray, happened: np.ndarray) -> float | None:
    """The first time at which the estimate of Kaplan and Meier of the share that has not generalised is at most a half.

    Args:
        times: (n,) updates until it generalised, or until its end. happened: (n,) whether it generalised.
    """
    left = 1.0
    for time in np.unique(times[happened]):
        at_risk = (times >= time).sum()
        left *= 1 - (happened & (times == time)).sum() / at_risk
        if left <= 0.5 + 1e-12:
            return float(time)
    return None


def time_trend(
    fractions: np.ndarray, after: np.ndarray, until: np.ndarray, groups: np.ndarray
) -> tuple[Interval, float | None]:
    """The power b of time = level x fraction^b, with its profile interval and p of b = 0.

    Accelerated failure time: log time = level of the group + b log fraction + s x (normal), by maximum likelihood of the
    measurements between which each run generalised. The likelihood ratio is compared with that of Student's t, which it is
    exactly for normal errors and fine measurements: each level costs a degree of freedom. Groups in which nothing generalised
    say nothing of b and are left out. Nothing is known where all came at one measurement, or of one run more than levels.

    Args:
        fractions: (n,) shares of the data. groups: (n,) a level of its own each.
        after: (n,) updates at the last measurement before it generalised, or at its end. until: (n,) at the first from which it
            had, infinite where it did not.
    """
    happened = np.isfinite(until)
    informative = np.isin(groups, np.unique(groups[happened]))
    fractions, after, until, groups = (values[informative] for values in (fractions, after, until, groups))
    names, codes = np.unique(groups, return_inverse=True)
    events = int(happened.sum())
    freedom = events - len(names) - 1
    alike = len(np.unique(until[np.isfinite(until)])) < 2  # how far apart they are is not known
    if freedom < 1 or len(np.unique(fractions)) < 2 or alike:
        return Interval(None, None, None), None
    x = np.log(fractions)
    with np.errstate(divide="ignore"):
        first, last = np.log(after), np.log(np.maximum(until, 1))
    first = np.minimum(first, last - FINEST)
    level = np.eye(len(names))[codes]
    best, solution = _fit(first, last, np.column_stack([level, x]))
    slope = float(np.clip(solution[-1] / solution[0], -SLOPE_LIMIT, SLOPE_LIMIT))

    def ratio(b: float) -> float:
        return 2 * max(best - _fit(first - b * x, last - b * x, level)[0], 0.0)

    limit = events * np.log1p(stats.t.ppf(0.975, freedom) ** 2 / freedom)
    low, high = (_end(lambda b: ratio(b) - limit, slope, direction) for direction in (-1.0, 1.0))
    statistic = np.sqrt(freedom * np.expm1(ratio(0.0) / events))
    endless = min(ratio(-SLOPE_LIMIT), ratio(SLOPE_LIMIT)) < FLAT  # where runs of one share alone generalised
    return Interval(None if endless else slope, low, high), float(2 * stats.t.sf(statistic, freedom))


def _fit(first: np.ndarray, last: np.ndarray, design: np.ndarray) -> tuple[float, np.ndarray]:
    """Log-likelihood of normal values between `first` and `last` (n,) and its parameters over s: 1, coefficients of the design.

    It is concave in them (Burridge 1981): Newton's steps, halved where they do not rise."""
    near = np.where(np.isfinite(last), last, first)
    coefficients = np.linalg.lstsq(design, near, rcond=None)[0]
    values = np.r_[1.0, coefficients] / (np.abs(near - design @ coefficients).max() + LEAST_SPREAD)
    at_first, at_last = (np.column_stack([np.where(np.isfinite(end), end, 0.0), -design]) for end in (first, last))

    def z(parameters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        low, high = at_first @ parameters, at_last @ parameters
        return np.where(np.isfinite(first), low, -np.inf), np.where(np.isfinite(last), high, np.inf)

    probability = _log_between(*z(values))
    for _ in range(STEPS):
        low, high = (np.clip(end, -FAR, FAR) for end in z(values))
        below, above = (np.exp(-0.5 * end**2 - HALF_LOG_2_PI - probability) for end in (low, high))
        gradient = above @ at_last - below @ at_first
        mixed = (at_last * (above * below)[:, None]).T @ at_first
        curved = (at_last * (above * (high + above))[:, None]).T @ at_last
        curved += (at_first * (below * (below - low))[:, None]).T @ at_first - mixed - mixed.T
        step = np.linalg.lstsq(curved, gradient, rcond=None)[0]
        rise = float(gradient @ step)
        while rise > CLOSE:
            trial = values + step
            value = _log_between(*z(trial)) if trial[0] > 0 else np.array(-np.inf)
            if value.sum() > probability.sum():
                values, probability = trial, value
                break
            step, rise = step / 2, rise / 2
        if rise <= CLOSE:
            break
    return float(probability.sum()), values


def _log_between(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Logarithm of the normal probability between `low` and `high`, by the tail in which both are."""
    low, high = np.where(low > 0, -high, low), np.where(low > 0, -low, high)
    below, above = special.log_ndtr(low), special.log_ndtr(high)
    with np.errstate(divide="ignore"):
        return above + np.log(-np.expm1(below - above))


def _end(short_of: Callable[[float], float], slope: float, direction: float) -> float | None:
    """Where the profile leaves the interval; None where it does not before the limit."""
    step = 0.25
    while abs(slope + direction * step) < SLOPE_LIMIT:
        if short_of(slope + direction * step) > 0:
            return float(optimize.brentq(short_of, slope, slope + direction * step, xtol=1e-6))
        step *= 2
    return None
