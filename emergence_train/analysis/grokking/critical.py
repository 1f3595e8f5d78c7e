"""The critical share of data: where half of the seeds generalise within the budget, by size, and its trend with size.

A run says only whether its own critical share lies below the share it was trained on (current-status data).

The estimate and the trend take the chance to generalise at share f to be 1 / (1 + exp(-(f - c) / s)): c is the critical share
of a size and weight decay, s one scale for all. Where the shares that were tried are spaced by factors, f and c are logarithms:
one scale for shares of 0.001 and 0.9 would be that of neither. All is computed on a grid, finer than the smallest gap, since with
few seeds the data often separate (every run above a share generalises, none below): then the likelihood has no maximum in s to
converge to. A value never leaves the exact interval below.

The trend's p is of a permutation: without a trend the sizes of the runs at one share are exchangeable, and the sum of
log10(parameters) over those that generalised is compared with sizes dealt anew. The likelihood ratio's own p is too small where
few runs decide: for four of four against none of four at one share it is 0.0009, dealt anew 0.029. The ratio is scaled down to
the permutation's p, and the trend's interval is that of the scaled profile likelihood.

The interval of a critical share takes only that more data never hurt, and is exact: below c every chance is at most half, so
that runs there generalise no more often than coins fall heads, and above c no less often. An end is a share that was tried where
coins are excluded at 2.5%. That takes six of six runs, at one share or at neighbours: coins do 3 of 3 in 12.5%. The profile of
the logistic curve is narrower, and held 78 to 99% of truths where the chance is not symmetric about c.
benchmarks/studies/grokking_critical.py measures the coverage."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats
from scipy.special import log_expit

from emergence_train.analysis.results import Interval

CENTRES, SCALES, SLOPES = 361, 21, 60  # grid points at least, steps of slopes; the slopes are searched twice
MOST_CENTRES, MOST_SLOPES = 6000, 600
EVENLY = 2.0  # so many times as evenly as the shares must their logarithms be spaced to be taken
FINE = 4  # centres to the smallest gap between two shares, at least
REACH = 1.0  # the grid of c reaches so many ranges of the shares beyond them
HALF_95 = 0.5 * stats.chi2.ppf(0.95, 1)
SIDE = 0.025  # by which either end of an exact interval may be wrong
FLAT = 1e-3  # nats: likelihoods that count as equal
DEALS = 4999  # permutations
LEAST_SCALE = 0.05  # of the likelihood ratio: where a deal is as good as any, its interval is wide, not endless


@dataclass(frozen=True)
class Group:
    """The runs of one size and weight decay: shares (n,), whether each generalised (n,), parameters."""

    fractions: np.ndarray
    generalised: np.ndarray
    params: int
    weight_decay: float = 0.0


@dataclass(frozen=True)
class Fit:
    """Log-likelihood (groups, scales, centres) on a grid of c (centres,), of groups that all have the same scale.

    `log`: centres, gap, lowest and highest are logarithms of shares."""

    groups: tuple[Group, ...]
    centres: np.ndarray
    likelihood: np.ndarray
    lowest: float
    highest: float
    gap: float
    log: bool

    def critical(self, number: int) -> Interval:
        """The critical share of a group, with the interval that needs no shape; ends that the shares do not bound are None."""
        value = self.logistic(number).value if _rises(self.groups[number]) else None
        low, high = any_shape(self.groups[number])
        if value is not None:
            value = max(value if high is None else min(value, high), -np.inf if low is None else low)
        return Interval(value, low, high)

    def logistic(self, number: int) -> Interval:
        """The same with the profile interval of the logistic curve."""
        best = self.likelihood.max(2)  # of each group by scale
        others = best.sum(0) - best[number]
        profile = (self.likelihood[number] + others[:, None]).max(0)
        interval = self._interval(self.centres, profile, self.lowest, self.highest)
        return _each(interval, np.exp) if self.log else interval

    @staticmethod
    def _interval(grid: np.ndarray, profile: np.ndarray, lowest: float, highest: float) -> Interval:
        """Where the profile is within reach of its maximum; the middle of the maximum, where that is in [lowest, highest]."""
        best = grid[profile >= profile.max() - FLAT]
        value = float((best[0] + best[-1]) / 2)
        known = best[0] > grid[0] and best[-1] < grid[-1] and lowest <= value <= highest
        above = profile - profile.max() + HALF_95
        return Interval(value if known else None, _crossing(grid, above), _crossing(grid[::-1], above[::-1]))


def _each(interval: Interval, change: Callable[[float], float]) -> Interval:
    """The value and the ends that are known, each changed."""
    ends = (interval.value, interval.low95, interval.high95)
    return Interval(*(None if end is None else float(change(end)) for end in ends))


def _crossing(grid: np.ndarray, above: np.ndarray) -> float | None:
    """Where `above` first rises over 0, linear between grid points; None where it is over 0 from the start."""
    first = int(np.argmax(above > 0))
    if first == 0:
        return None
    weight = above[first] / (above[first] - above[first - 1])
    return float(grid[first] + weight * (grid[first - 1] - grid[first]))


def fit(groups: list[Group]) -> Fit:
    """The likelihood of all groups on one grid."""
    tried = np.unique(np.concatenate([group.fractions for group in groups]))
    tried = tried if len(tried) else np.array([0.5])  # no run at all: a flat likelihood
    log = _by_factors(tried)
    places = np.log(tried) if log else tried
    span = max(float(places[-1] - places[0]), 0.05)
    gap = float(np.diff(places).min()) if len(places) > 1 else span
    count = np.clip(int(FINE * (1 + 2 * REACH) * span / gap) + 2, CENTRES, MOST_CENTRES)
    centres = np.linspace(places[0] - REACH * span, places[-1] + REACH * span, count)
    scales = np.geomspace(gap / 20, 2 * span, SCALES)
    placed = [replace(group, fractions=np.log(group.fractions)) for group in groups] if log else groups
    likelihood = np.stack([_likelihood(group, centres, scales) for group in placed])
    return Fit(tuple(groups), centres, likelihood, float(places[0]), float(places[-1]), gap, log)


def _by_factors(shares: np.ndarray) -> bool:
    """Whether sorted `shares` (n,) are spaced clearly more evenly in their logarithm: a share more beside even ones is none."""
    if len(shares) < 3 or shares[0] <= 0:
        return False
    steps, factors = np.diff(shares), np.diff(np.log(shares))
    return bool(EVENLY * factors.max() / factors.min() <= steps.max() / steps.min() * (1 + 1e-9))


def _likelihood(group: Group, centres: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """(scales, centres): runs of one share count together."""
    total = np.zeros((len(scales), len(centres)))
    for share in np.unique(group.fractions):
        of_share = group.generalised[group.fractions == share]
        place = (share - centres) / scales[:, None]
        total += of_share.sum() * log_expit(place) + (~of_share).sum() * log_expit(-place)
    return total


def any_shape(group: Group) -> tuple[float | None, float | None]:
    """Exact 95% interval of the share where the chance is half, for any non-decreasing chance; its ends are shares that were
    tried, None where the runs exclude nothing.

    From the outermost share inwards, shares are excluded as long as their own tests do, so that there is one chance to err on
    either side.
    """
    shares, place = np.unique(group.fractions, return_inverse=True)
    runs = np.bincount(place)
    able = np.bincount(place, weights=group.generalised).astype(int)
    low = high = None
    for k in range(len(shares)):
        if coins(runs[k:] - able[k:], runs[k:]) > SIDE:
            break
        low = float(shares[k])
    for k in range(len(shares), 0, -1):
        if coins(able[:k][::-1], runs[:k][::-1]) > SIDE:
            break
        high = float(shares[k - 1])
    return low, high


def coins(heads: np.ndarray, runs: np.ndarray) -> float:
    """p of `heads` (n,) in `runs` (n,) at each of n places, if they are of coins that fall heads half of the time or less often.

    What counts is the first stretch of places with the most unlikely number of heads: its tail times its length, so that few
    places are asked first. More heads are never less extreme, so that fair coins are the worst case; theirs is counted out.
    """
    total, tossed, length = np.cumsum(heads), np.cumsum(runs), np.arange(1, len(runs) + 1)
    least = (length * stats.binom.sf(total - 1, tossed, 0.5)).min() * (1 + 1e-9)
    without = np.ones(1)  # chance of each number of heads so far, no stretch of them being so extreme
    for here, count, places in zip(runs, tossed, length):
        without = np.convolve(without, stats.binom.pmf(np.arange(here + 1), here, 0.5))
        without[places * stats.binom.sf(np.arange(count + 1) - 1, count, 0.5) <= least] = 0.0
    return 1.0 - float(without.sum())


def isotonic(able: np.ndarray, runs: np.ndarray) -> np.ndarray:
    """(n,) the most likely non-decreasing chances: neighbours that decrease are pooled."""
    pools: list[tuple[float, float, int]] = []  # successes, runs, shares
    for successes, count in zip(able, runs):
        pool = (float(successes), float(count), 1)
        while pools and pools[-1][0] * pool[1] > pool[0] * pools[-1][1]:
            last = pools.pop()
            pool = (last[0] + pool[0], last[1] + pool[1], last[2] + pool[2])
        pools.append(pool)
    return np.repeat([pool[0] / pool[1] for pool in pools], [pool[2] for pool in pools])


@dataclass(frozen=True)
class TrendFit:
    """Change of the critical share for ten times the parameters, with p of none; `straight_p` of a line against free
    values. `log`: the line is one of the share's logarithm, and the change its slope at the middle of the sizes."""

    slope: Interval
    p: float | None
    straight_p: float | None
    sizes: int
    least_p: float | None = None  # the smallest p of any deal of these runs
    log: bool = False


def trend(fitted: Fit) -> TrendFit:
    """The critical share, or its logarithm, as a straight line in log10(parameters), one slope for all weight decays, each with
    its own level.

    Only groups in which some runs generalised and some did not say where their critical share is; a weight decay needs
    two such sizes to take part. Sizes that share no fraction cannot be compared: no slope, and no p."""
    informative = [k for k, group in enumerate(fitted.groups) if 0 < group.generalised.sum() < len(group.generalised)]
    strata = {}
    for decay in {fitted.groups[k].weight_decay for k in informative}:
        members = [k for k in informative if fitted.groups[k].weight_decay == decay]
        if len({fitted.groups[k].params for k in members}) > 1:
            strata[decay] = members
    used = [k for members in strata.values() for k in members]
    sizes = len({fitted.groups[k].params for k in used})
    p, least_p = _permutation([fitted.groups[k] for k in used]) if used else (None, None)
    if p is None or not any(_rises(fitted.groups[k]) for k in used):
        return TrendFit(Interval(None, None, None), None, None, sizes)
    slopes, profile, at_zero = _searched(fitted, list(strata.values()), p)
    best = float(profile.max())
    slope = Fit._interval(slopes, best + _scale(best - at_zero, p) * (profile - best), -np.inf, np.inf)
    if slope.low95 is None and slope.high95 is None:  # a value that nothing bounds is none
        slope = Interval(None, None, None)
    if fitted.log and slope.value is not None:
        levels = np.mean([_level(fitted, members, slope.value) for members in strata.values()], axis=0)
        slope = _of_share(slope, *np.exp(levels))
    free = float(fitted.likelihood[used].max(2).sum(0).max())
    spare = len(used) - len(strata) - 1
    straight_p = float(stats.chi2.sf(2 * max(free - best, 0.0), spare)) if spare > 0 else None
    return TrendFit(slope, p, straight_p, sizes, least_p, fitted.log)


def _searched(fitted: Fit, strata: list[list[int]], p: float) -> tuple[np.ndarray, np.ndarray, float]:
    """Slopes (n,), denser near the best one, their log-likelihood (n,), and that of no slope."""

    def profile_of(slopes: np.ndarray) -> np.ndarray:
        return np.max(sum(_stratum(fitted, members, slopes) for members in strata), axis=1)

    span = fitted.highest - fitted.lowest
    spread = max(np.ptp([np.log10(fitted.groups[k].params) for k in members]) for members in strata)
    half = int(np.clip(2 * span / fitted.gap, SLOPES, MOST_SLOPES)) // 2
    slopes = np.linspace(-1.5 * span / spread, 1.5 * span / spread, 2 * half + 1)
    profile = profile_of(slopes)
    best, at_zero = float(profile.max()), float(profile[half])
    (near,) = np.nonzero(best - profile <= HALF_95 / _scale(best - at_zero, p))
    finer = np.linspace(slopes[max(near[0] - 1, 0)], slopes[min(near[-1] + 1, 2 * half)], SLOPES + 1)
    slopes, first = np.unique(np.r_[slopes, finer], return_index=True)
    return slopes, np.r_[profile, profile_of(finer)][first], at_zero


def _scale(rise: float, p: float) -> float:
    """Of the log-likelihood, so that its ratio of the best to no slope has the permutation's p."""
    return max(min(1.0, float(stats.chi2.isf(p, 1)) / (2 * rise)), LEAST_SCALE) if 2 * rise > FLAT else 1.0


def _rises(group: Group) -> bool:
    """Whether more data went with more runs that generalise: the most likely chances are not all one."""
    if not len(group.fractions):
        return False
    _, place = np.unique(group.fractions, return_inverse=True)
    runs, able = np.bincount(place), np.bincount(place, weights=group.generalised)
    return bool(np.ptp(isotonic(able, runs)) > 0)


def _permutation(groups: list[Group]) -> tuple[float | None, float | None]:
    """(two-sided p of no trend, the least p of any deal), sizes dealt anew among the runs of one share and weight decay; None
    where no share has two sizes.

    Where none of the deals goes as far, the normal tail of the same sum (Mantel 1963) is taken, if it is smaller.
    """
    share = np.concatenate([group.fractions for group in groups])
    decay = np.concatenate([np.full(len(group.fractions), group.weight_decay) for group in groups])
    able = np.concatenate([group.generalised for group in groups]).astype(float)
    size = np.concatenate([np.full(len(group.fractions), np.log10(group.params)) for group in groups])
    rng, observed, dealt, variance, compared = np.random.default_rng(0), 0.0, np.zeros(DEALS), 0.0, False
    for key in sorted(set(zip(decay, share))):
        here = (decay == key[0]) & (share == key[1])
        centred, right = size[here] - size[here].mean(), able[here]
        compared |= bool(np.ptp(centred) > 0)
        observed += float(right @ centred)
        dealt += rng.permuted(np.tile(right, (DEALS, 1)), axis=1) @ centred
        if len(right) > 1:
            variance += right.var() * len(right) / (len(right) - 1) * float(centred @ centred)
    if not compared:
        return None, None
    size_of_deal = np.abs(dealt)
    beyond, farthest = (int((size_of_deal >= far - 1e-9).sum()) for far in (abs(observed), size_of_deal.max()))
    p, least = (1 + beyond) / (1 + DEALS), (1 + farthest) / (1 + DEALS)
    if not beyond and variance > 0:
        p = min(p, float(stats.chi2.sf(observed**2 / variance, 1)))
    return p, min(p, least)


def _stratum(fitted: Fit, members: list[int], slopes: np.ndarray) -> np.ndarray:
    """(slopes, scales): log-likelihood of one weight decay's sizes on a line, its level at its best."""
    return np.stack([_on_line(fitted, members, slope).max(1) for slope in slopes])


def _level(fitted: Fit, members: list[int], slope: float) -> tuple[float, float, float]:
    """The best place, at the middle of the sizes, of a line with this slope, and the ends of its interval."""
    total = _on_line(fitted, members, slope).max(0)
    within = fitted.centres[total >= total.max() - HALF_95]
    return float(fitted.centres[total >= total.max() - FLAT].mean()), float(within[0]), float(within[-1])


def _of_share(slope: Interval, middle: float, least: float, most: float) -> Interval:
    """A slope of the logarithm as one of the share, at the middle of the sizes, which lies itself between `least` and `most`:
    each end takes the one that is farther from the value, so that no sign changes."""
    value, low, high = slope.value, slope.low95, slope.high95
    return Interval(
        None if value is None else float(value * middle),
        None if low is None else float(low * (most if low < 0 else least)),
        None if high is None else float(high * (least if high < 0 else most)),
    )


def _on_line(fitted: Fit, members: list[int], slope: float) -> np.ndarray:
    """(scales, centres): log-likelihood of sizes on a line that is at each centre at the middle of the sizes."""
    sizes = np.log10([fitted.groups[k].params for k in members])
    step = fitted.centres[1] - fitted.centres[0]
    total = np.zeros(fitted.likelihood.shape[1:])
    for k, size in zip(members, sizes - sizes.mean()):
        total += _shifted(fitted.likelihood[k], slope * size / step)
    return total


def _shifted(likelihood: np.ndarray, places: float) -> np.ndarray:
    """(scales, centres) read `places` grid points further on, linear between them, the end's value beyond the ends."""
    count = likelihood.shape[1]
    whole = int(np.floor(places))
    read = np.take(likelihood, np.clip(np.arange(count + 1) + whole, 0, count - 1), axis=1)
    return read[:, :-1] + (places - whole) * np.diff(read, axis=1)
