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
    """The power b of time = level x fraction^b of runs that generalise, with its interval and p of b = 0.

    Accelerated failure time: log time = level of the group + b log fraction + s x (normal), by maximum likelihood of the
    measurements between which each run generalised. A run that did not may come later, or never, as below a critical share: of
    each group and share a part of its own is cured (Farewell 1982). Where that explains the runs better by a likelihood ratio,
    the power is of those that come. Where it does not, the value is that of all coming later, interval and p hold both. Nothing
    is known where no group generalised at two shares, where all came at one measurement, or of one run more than levels.

    Args:
        fractions: (n,) shares of the data. groups: (n,) a level of its own each.
        after: (n,) updates at the last measurement before it generalised, or at its end. until: (n,) at the first from which it
            had, infinite where it did not.
    """
    happened = np.isfinite(until)
    informative = np.isin(groups, np.unique(groups[happened]))
    fractions, after, until, groups, happened = (v[informative] for v in (fractions, after, until, groups, happened))
    _, cell = np.unique(np.column_stack([groups, fractions]), axis=0, return_inverse=True)
    events, missed = (np.bincount(cell, some) for some in (happened, ~happened))
    came = events[cell] > 0
    names, codes = np.unique(groups, return_inverse=True)
    level, x = np.eye(len(names))[codes], np.log(fractions)
    alike = len(np.unique(until[happened])) < 2  # how far apart they are is not known
    if happened.sum() < len(names) + 2 or alike or np.linalg.matrix_rank(np.c_[level, x][came]) <= len(names):
        return Interval(None, None, None), None
    with np.errstate(divide="ignore"):
        first, last = np.log(after), np.log(np.maximum(until, 1))
        odds = (events / missed)[cell]
    first = np.minimum(first, last - FINEST)
    later, slope, p = _profile(first, last, level, x, np.full(len(x), np.inf))
    if not missed.any():
        return slope, p
    cured, of_some, p_of_some = _profile(first[came], last[came], level[came], x[came], odds[came])
    if 2 * (cured - later) > stats.chi2.ppf(0.95, (missed > 0).sum()):
        return of_some, p_of_some
    low = None if slope.low95 is None or of_some.low95 is None else min(slope.low95, of_some.low95)
    high = None if slope.high95 is None or of_some.high95 is None else max(slope.high95, of_some.high95)
    one_sign = (slope.value or 0) * (of_some.value or 0) > 0
    return Interval(slope.value, low, high), max(p, p_of_some) if one_sign else 1.0


def _profile(
    first: np.ndarray, last: np.ndarray, level: np.ndarray, x: np.ndarray, odds: np.ndarray
) -> tuple[float, Interval, float]:
    """Log-likelihood, the power of `x` (n,) with its profile interval, and p.

    The likelihood ratio is compared with that of Student's t, which it is exactly for normal errors, fine measurements and
    runs that all came: each level costs a degree of freedom."""
    best, solution = _fit(first, last, np.column_stack([level, x]), odds)
    slope = float(np.clip(solution[-1] / solution[0], -SLOPE_LIMIT, SLOPE_LIMIT))
    events = int(np.isfinite(last).sum())
    freedom = events - level.shape[1] - 1

    def ratio(b: float) -> float:
        return 2 * max(best - _fit(first - b * x, last - b * x, level, odds)[0], 0.0)

    limit = events * np.log1p(stats.t.ppf(0.975, freedom) ** 2 / freedom)
    low, high = (_end(lambda b: ratio(b) - limit, slope, direction) for direction in (-1.0, 1.0))
    statistic = np.sqrt(freedom * np.expm1(ratio(0.0) / events))
    endless = abs(slope) == SLOPE_LIMIT or min(ratio(-SLOPE_LIMIT), ratio(SLOPE_LIMIT)) < FLAT
    return best, Interval(None if endless else slope, low, high), float(2 * stats.t.sf(statistic, freedom))


def _fit(first: np.ndarray, last: np.ndarray, design: np.ndarray, odds: np.ndarray) -> tuple[float, np.ndarray]:
    """Log-likelihood of normal values between `first` and `last` (n,) and its parameters over s: 1, coefficients of the design.

    `odds` (n,) of runs that came to those that did not, of each run's group and share, infinite if all come in the end: the most
    likely part that never comes is profiled out. Newton's steps, halved where they do not rise; where it is not concave, as it is
    if all come (Burridge 1981), those of expectation and maximization: a run that did not come counts by its chance to come."""
    missing = np.isinf(last)
    near = np.where(missing, first, last)
    coefficients = np.linalg.lstsq(design, near, rcond=None)[0]
    values = np.r_[1.0, coefficients] / (np.abs(near - design @ coefficients).max() + LEAST_SPREAD)
    at_first, at_last = (np.column_stack([np.where(np.isfinite(end), end, 0.0), -design]) for end in (first, last))

    def z(parameters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        low, high = (np.clip(ends @ parameters, -FAR, FAR) for ends in (at_first, at_last))
        return np.where(np.isfinite(first), low, -np.inf), np.where(missing, np.inf, high)

    def likelihood(low: np.ndarray, high: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        """Of all runs; of each if it comes; its chance of coming."""
        between, by_then = _log_between(low, high), special.log_ndtr(low)
        with np.errstate(invalid="ignore"):
            chance = np.where(missing, np.exp(np.minimum(np.log(odds) + between - by_then, 0)), 1.0)
            of_some = odds * (np.log(odds) - np.log1p(odds) - by_then) - np.log1p(odds)
        return float(np.where(chance < 1, of_some, between).sum()), between, chance

    total, probability, chance = likelihood(*z(values))
    for _ in range(STEPS):
        low, high = (np.clip(end, -FAR, FAR) for end in z(values))
        below, above = (np.exp(-0.5 * end**2 - HALF_LOG_2_PI - probability) for end in (low, high))
        above = np.where(missing, 0.0, above)
        gradient = above @ at_last - (chance * below) @ at_first
        mixed = (at_last * (above * below)[:, None]).T @ at_first
        curved = (at_last * (above * (high + above))[:, None]).T @ at_last
        curved += (at_first * (chance * below * (below - low))[:, None]).T @ at_first - mixed - mixed.T
        losing = np.where(chance < 1, chance * below**2 * (1 + chance / odds), 0.0)
        exact = curved - (at_first * losing[:, None]).T @ at_first
        step = np.linalg.lstsq(exact if np.linalg.eigvalsh(exact)[0] > 0 else curved, gradient, rcond=None)[0]
        rise = float(gradient @ step)
        while rise > CLOSE:
            trial = values + step
            if trial[0] > 0 and (new := likelihood(*z(trial)))[0] > total:
                values, (total, probability, chance) = trial, new
                break
            step, rise = step / 2, rise / 2
        if rise <= CLOSE:
            break
    return total, values


def _log_between(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Logarithm of the normal probability between `low` and `high`, by the tail in which both are."""
    low, high = np.where(low > 0, -high, low), np.where(low > 0, -low, high)
    below, above = special.log_ndtr(low), special.log_ndtr(high)
    with np.errstate(divide="ignore"):
        return above + np.log(-np.expm1(below - above))


def _end(short_of: Callable[[float], float], slope: float, direction: float) -> float | None:
    """Where the profile leaves the interval; None where it does not before the limit."""
    step = 0.25
    if short_of(slope) >= 0:  # the power itself is beyond the limit
        return None
    while abs(slope + direction * step) < SLOPE_LIMIT:
        if short_of(slope + direction * step) > 0:
            return float(optimize.brentq(short_of, slope, slope + direction * step, xtol=1e-6))
        step *= 2
    return None
