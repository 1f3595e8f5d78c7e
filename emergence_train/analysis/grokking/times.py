"""Time to generalise: its median over seeds, and how it grows as data get scarce, with the runs that did not as censored."""

import numpy as np
from scipy import optimize, stats

from emergence_train.analysis.results import Interval

HALF_95 = 0.5 * stats.chi2.ppf(0.95, 1)
SLOPE_LIMIT = 200.0
LEAST_EVENTS = 3


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
    fractions: np.ndarray, times: np.ndarray, happened: np.ndarray, groups: np.ndarray
) -> tuple[Interval, float | None]:
    """The power b of time = level x fraction^b, with its profile interval and p of b = 0.

    Accelerated failure time with Weibull's spread: log time = level of the group + b log fraction + s x (Gumbel), by maximum
    likelihood with right censoring. Groups (n,) in which nothing generalised say nothing of b and are left out. Where
    all came at one measurement nothing is told.
    """
    telling = np.isin(groups, np.unique(groups[happened]))
    fractions, times, happened, groups = (values[telling] for values in (fractions, times, happened, groups))
    alike = len(np.unique(times[happened])) < 2  # all at one measurement: how far apart they are is not known
    if happened.sum() < LEAST_EVENTS or len(np.unique(fractions)) < 2 or alike:
        return Interval(None, None, None), None
    x, y = np.log(fractions), np.log(times)
    _, codes = np.unique(groups, return_inverse=True)
    level = np.eye(codes.max() + 1)[codes]

    def at_best(slope: float | None, start: np.ndarray) -> tuple[float, np.ndarray]:
        """Log-likelihood with the slope given or free, and the free parameters: levels, log s, slope."""

        def cost(free: np.ndarray) -> tuple[float, np.ndarray]:
            b = free[-1] if slope is None else slope
            spread = np.exp(free[level.shape[1]])
            z = (y - level @ free[: level.shape[1]] - b * x) / spread
            power = np.exp(np.minimum(z, 50.0))
            value = (happened * (z - np.log(spread)) - power).sum()
            by_z = happened - power
            gradient = [-(level.T @ by_z) / spread, [-(by_z * z).sum() - happened.sum()]]
            gradient += [[-(by_z * x).sum() / spread]] if slope is None else []
            return -value, -np.concatenate(gradient)

        bounds = [(None, None)] * level.shape[1] + [(-5.0, 4.0)] + [(-SLOPE_LIMIT, SLOPE_LIMIT)] * (slope is None)
        solved = optimize.minimize(cost, start, jac=True, method="L-BFGS-B", bounds=bounds)
        return -float(solved.fun), solved.x

    begin = np.r_[[y[codes == k].max() for k in range(codes.max() + 1)], 0.0]
    best, solution = at_best(None, np.r_[begin, 0.0])
    slope, rest = float(solution[-1]), solution[:-1]

    def short_of(b: float) -> float:
        return best - at_best(b, rest)[0] - HALF_95

    none = at_best(0.0, rest)[0]
    return Interval(slope, _end(short_of, slope, -1.0), _end(short_of, slope, 1.0)), float(
        stats.chi2.sf(2 * max(best - none, 0.0), 1)
    )


def _end(short_of, slope: float, direction: float) -> float | None:  # type: ignore[no-untyped-def]
    """Where the profile leaves the interval; None where it does not before the limit."""
    step = 0.25
    while abs(slope + direction * step) < SLOPE_LIMIT:
        if short_of(slope + direction * step) > 0:
            return float(optimize.brentq(short_of, slope, slope + direction * step, xtol=1e-3))
        step *= 2
    return None
