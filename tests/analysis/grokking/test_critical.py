"""The critical share and its trend on sweeps with known truth, in forms that the estimator does not contain.

benchmarks/studies/grokking_critical.py does the same with hundreds of sweeps.
"""

import itertools

import numpy as np
import pytest
from scipy import optimize, stats
from scipy.special import expit, xlogy

from emergence_train.analysis.grokking import critical, simulate

SHARES = np.linspace(0.3, 0.8, 6)
PARAMS = (1000, 3000, 9000)


def group(counts: list[int], seeds: int = 4, params: int = 1000, decay: float = 1.0) -> critical.Group:
    """So many of the seeds generalise at each of SHARES."""
    generalised = np.concatenate([np.arange(seeds) < count for count in counts])
    return critical.Group(np.repeat(SHARES, seeds), generalised, params, decay)


def test_the_estimate_is_that_of_maximum_likelihood():
    """A plain minimisation over centre and scale, where the data do not separate."""
    counts = np.array([0, 1, 3, 6, 7, 8])

    def cost(free):
        chance = expit((SHARES - free[0]) / np.exp(free[1]))
        return -(counts * np.log(chance) + (8 - counts) * np.log1p(-chance)).sum()

    solved = optimize.minimize(cost, [0.5, -2.0], method="Nelder-Mead", options={"xatol": 1e-6, "fatol": 1e-9})

    def profile(centre):
        return optimize.minimize_scalar(lambda scale: cost([centre, scale]), bounds=(-5, 1), method="bounded").fun

    ends = [
        optimize.brentq(lambda centre: profile(centre) - solved.fun - critical.HALF_95, *place)
        for place in ((0.3, solved.x[0]), (solved.x[0], 0.8))
    ]
    share = critical.fit([group(list(counts), seeds=8)]).logistic(0)
    assert share.value == pytest.approx(solved.x[0], abs=0.005)
    assert [share.low95, share.high95] == pytest.approx(ends, abs=0.006)


def test_where_runs_separate_the_gap_is_inside_the_interval():
    """Six runs of six are coins' in 1.6%, four of four in 6.3%: these are too few at one share, and neighbours are asked too."""
    for seeds, ends in ((6, (0.5, 0.6)), (4, (0.4, 0.7))):
        share = critical.fit([group([0, 0, 0, seeds, seeds, seeds], seeds)]).critical(0)
        assert share.value == pytest.approx(0.55, abs=0.01)
        assert (share.low95, share.high95) == pytest.approx(ends)


def test_chances_are_those_of_a_plain_search():
    """The most likely non-decreasing chances of a search over a grid, by dynamic programming over the shares."""
    able, runs = np.array([1, 0, 3, 2, 4]), np.array([4, 3, 4, 4, 4])
    grid = np.linspace(0.001, 0.999, 41)
    total = np.zeros(len(grid))  # the best with the last chance at most that of the grid
    for successes, count in zip(able, runs):
        total = np.maximum.accumulate(total + successes * np.log(grid) + (count - successes) * np.log1p(-grid))
    chances = critical.isotonic(able, runs)
    assert chances == pytest.approx([1 / 7, 1 / 7, 5 / 8, 5 / 8, 1])
    assert (xlogy(able, chances) + xlogy(runs - able, 1 - chances)).sum() == pytest.approx(total.max(), abs=0.02)


@pytest.mark.parametrize("seeds", [1, 2, 3, 4, 6])
def test_an_interval_of_few_seeds_holds_exactly(seeds):
    """All outcomes of three shares by their chances, for shapes that jump, rise or stay at half about the critical share. Three
    seeds held 88% with chi-squared's cut of the likelihood ratio."""
    shares = np.array([0.5, 0.7, 0.9])
    outcomes = list(itertools.product(range(seeds + 1), repeat=3))
    runs = [np.concatenate([np.arange(seeds) < count for count in counts]) for counts in outcomes]
    ends = [critical.any_shape(critical.Group(np.repeat(shares, seeds), able, 1000)) for able in runs]
    low, high = np.array([[-np.inf if a is None else a, np.inf if b is None else b] for a, b in ends]).T
    for centre, width in itertools.product(np.arange(0.405, 1, 0.03), (0.001, 0.03, 0.1, 0.3, 1e6)):
        chances = expit((shares - centre) / width)
        probability = stats.binom.pmf(outcomes, seeds, chances).prod(1)
        assert probability[(low <= centre) & (centre <= high)].sum() >= 0.95


def test_coins_are_counted_out():
    """p of the first stretch of places by all outcomes of the coins, one by one; and more heads are never less extreme."""
    runs = np.array([2, 3, 1, 4])
    outcomes = np.array(list(itertools.product(*(range(n + 1) for n in runs))))
    tails = stats.binom.sf(np.cumsum(outcomes, 1) - 1, np.cumsum(runs), 0.5) * np.arange(1, 5)
    extreme, chance = tails.min(1), stats.binom.pmf(outcomes, runs, 0.5).prod(1)
    p = np.array([critical.coins(heads, runs) for heads in outcomes])
    assert p == pytest.approx([chance[extreme <= each * (1 + 1e-9)].sum() for each in extreme])
    p = p.reshape(runs + 1)
    assert all((np.diff(p, axis=axis) <= 1e-12).all() for axis in range(4))


def test_intervals_hold_where_the_chance_is_not_symmetric():
    """The time that diverges at the critical share: the logistic curve's interval held 79%."""
    shares, held = np.linspace(0.25, 0.85, 9), []
    for number in range(150):
        rng = np.random.default_rng([5, number])
        truth = rng.uniform(0.45, 0.65)
        low, high = critical.any_shape(simulate.groups("time", rng, [1000], np.array([truth]), shares, 8, 0.15)[0])
        held.append((low or 0) <= truth <= (high or 1))
    assert np.mean(held) >= 0.93


@pytest.mark.parametrize(("counts", "open_end"), [([4] * 6, "low95"), ([0] * 6, "high95")])
def test_a_share_outside_the_sweep_has_an_open_end(counts, open_end):
    share = critical.fit([group(counts)]).critical(0)
    assert share.value is None and getattr(share, open_end) is None
    other = share.high95 if open_end == "low95" else share.low95
    assert other is not None and 0.2 < other < 0.9


def test_the_trend_is_a_straight_line_in_the_logarithm():
    """Exact half points on a line: 0.6, 0.5, 0.4 over two decades, many seeds."""
    groups = []
    for params, centre in ((100, 0.6), (1000, 0.5), (10_000, 0.4)):
        counts = np.round(80 * expit((SHARES - centre) / 0.05)).astype(int)
        groups.append(group(list(counts), seeds=80, params=params))
    moved = critical.trend(critical.fit(groups))
    assert moved.slope.value == pytest.approx(-0.1, abs=0.01)
    assert moved.slope.low95 < -0.1 < moved.slope.high95 < 0
    assert moved.p < 1e-6 < 0.05 < moved.straight_p and moved.sizes == 3


def test_a_bend_is_no_straight_line():
    groups = []
    for params, centre in ((100, 0.6), (1000, 0.4), (10_000, 0.6)):
        counts = np.round(50 * expit((SHARES - centre) / 0.05)).astype(int)
        groups.append(group(list(counts), seeds=50, params=params))
    moved = critical.trend(critical.fit(groups))
    assert moved.straight_p < 1e-6 and abs(moved.slope.value) < 0.02


def test_p_of_no_trend_is_that_of_all_deals():
    """Two sizes of four runs at one telling share, all 70 ways to deal four successes; at the others all are alike."""
    groups = [group([0, 0, 3, 4, 4, 4], params=100), group([0, 0, 1, 4, 4, 4], params=1000)]
    size = np.array([2.0] * 4 + [3.0] * 4)
    sums = np.array([size[list(chosen)].sum() for chosen in itertools.combinations(range(8), 4)])
    exact = np.mean(np.abs(sums - sums.mean()) >= abs(3 * 2.0 + 3.0 - sums.mean()) - 1e-9)
    assert critical.trend(critical.fit(groups)).p == pytest.approx(exact, abs=0.02)


ONSETS = {
    "sharp": lambda share, c: (share >= c) * 1.0,
    "a few fail": lambda share, c: np.clip(0.5 + (share - c) / 0.05, 0.04, 0.95),
    "falls again": lambda share, c: np.where(
        share < c + 0.075, np.clip(0.5 + (share - c) / 0.15, 0, 1), np.clip(1 - 1.2 * (share - c - 0.075), 0.6, 1)
    ),
    "a quarter never": lambda share, c: np.clip(0.5 + (share - c) / 0.1, 0, 0.75),
    "a coin at a share tried": lambda share, c: np.where(np.isclose(share, 0.6), 0.5, share > 0.6),
}


def without_a_trend(onset: str, sweeps: int) -> np.ndarray:
    """Sums over sweeps of three sizes alike: critical shares held (of three), p below 0.05, slopes' intervals without 0."""
    shares = np.linspace(0.4, 0.8, 5)
    fractions, sums = np.repeat(shares, 4), np.zeros(3)
    for number in range(sweeps):
        rng = np.random.default_rng([number, 3])
        truth = 0.6 if "coin" in onset else rng.uniform(0.5, 0.7)
        chance = ONSETS[onset](fractions, truth)
        fitted = critical.fit([critical.Group(fractions, rng.random(20) < chance, params) for params in PARAMS])
        shares_found = [fitted.critical(k) for k in range(3)]
        held = sum((share.low95 or 0) <= truth <= (share.high95 or 1) for share in shares_found)
        moved = critical.trend(fitted)
        low, high = moved.slope.low95, moved.slope.high95
        excluded = (low is not None and low > 0) or (high is not None and high < 0)
        sums += held, moved.p is not None and moved.p < 0.05, excluded
    return sums


def test_without_a_trend_none_is_found():
    """Six sweeps of each onset, 30 in all, of which p and the interval find a trend in few."""
    held, small, excluded = np.sum([without_a_trend(onset, 6) for onset in ONSETS], axis=0)
    assert held >= 0.93 * 90 and small <= 4 and excluded <= 4


@pytest.mark.slow
@pytest.mark.parametrize("onset", ONSETS)
def test_without_a_trend_of_each_onset(onset):
    """30 sweeps: the shares are held, and p and the interval find a trend in few (of 5%, 4 at most)."""
    held, small, excluded = without_a_trend(onset, 30)
    assert held >= 0.93 * 90 and small <= 4 and excluded <= 4


def test_nothing_is_told_of_one_share_or_where_more_data_hurt():
    """One share tried; runs that generalise at the smaller shares alone."""
    single = [critical.Group(np.full(3, 0.5), np.array([True, True, False]), params) for params in (100, 1000)]
    reversed_ = [group([4, 4, 4, 0, 0, 0], params=params) for params in (100, 1000)]
    for groups in (single, reversed_):
        fitted = critical.fit(groups)
        moved = critical.trend(fitted)
        assert fitted.critical(0).value is None
        assert (moved.p, moved.slope.value, moved.slope.low95, moved.slope.high95) == (None,) * 4


def test_sizes_that_share_no_fraction_are_not_compared():
    able = np.repeat([False, True], 6)
    low, high = np.repeat([0.2, 0.3], 6), np.repeat([0.6, 0.7], 6)
    fitted = critical.fit([critical.Group(low, able, 100), critical.Group(high, able, 1000)])
    moved = critical.trend(fitted)
    assert fitted.critical(0).value is not None
    assert (moved.p, moved.slope.value, moved.slope.low95, moved.slope.high95) == (None,) * 4


def test_sizes_that_say_nothing_are_left_out():
    groups = [group([0, 0, 2, 4, 4, 4], params=100), group([0] * 6, params=1000)]
    assert critical.trend(critical.fit(groups)).slope.value is None
    groups.append(group([0, 2, 4, 4, 4, 4], params=10_000))
    assert critical.trend(critical.fit(groups)).sizes == 2


def test_weight_decays_have_their_own_level_and_one_slope():
    groups = []
    for decay, shift in ((0.5, 0.1), (1.0, 0.0)):
        for params, centre in ((100, 0.55), (10_000, 0.45)):
            counts = np.round(60 * expit((SHARES - centre - shift) / 0.05)).astype(int)
            groups.append(group(list(counts), seeds=60, params=params, decay=decay))
    moved = critical.trend(critical.fit(groups))
    assert moved.slope.value == pytest.approx(-0.05, abs=0.01) and moved.straight_p is not None


@pytest.mark.parametrize("form", simulate.FORMS)
def test_half_of_the_simulated_runs_generalise_at_the_truth(form):
    share = simulate.generalised(form, np.random.default_rng(1), np.full(200_000, 0.55), 0.55, 0.1).mean()
    assert share == pytest.approx(0.5, abs=0.005)


def test_intervals_hold_the_truth_of_other_forms():
    """24 sweeps, 6 of each form: 72 critical shares, 24 slopes."""
    held, slopes, small = [], [], []
    for number in range(24):
        rng = np.random.default_rng([number, 5])
        slope = (0.0, -0.12)[number % 2]
        truth = simulate.critical_shares(PARAMS, rng.uniform(0.45, 0.65), slope)
        fitted = critical.fit(simulate.groups(simulate.FORMS[number // 2 % 4], rng, PARAMS, truth, SHARES, 4))
        for k, value in enumerate(truth):
            share = fitted.critical(k)
            held.append((share.low95 or -1) <= value <= (share.high95 or 2))
        moved = critical.trend(fitted)
        slopes.append((moved.slope.low95 or -9) <= slope <= (moved.slope.high95 or 9))
        small += [moved.p < 0.05] if slope == 0 else []
    assert np.mean(held) >= 0.87 and np.mean(slopes) >= 0.8  # of 95%, less two standard errors and discreteness
    assert np.mean(small) <= 0.25


@pytest.mark.parametrize("apart", [1, 2, 3, 4])
def test_the_least_p_is_that_of_all_that_differ(apart):
    """One run of two sizes at each share; at so many the larger alone generalises: all on one side have a chance of 2 / 2^n."""
    smaller = np.arange(6) >= 5
    larger = np.arange(6) >= 5 - apart
    groups = [critical.Group(SHARES, smaller, 1000), critical.Group(SHARES, larger, 9000)]
    trend = critical.trend(critical.fit(groups))
    assert trend.p == trend.least_p == pytest.approx(2 / 2**apart, abs=0.03)


SPACED = {
    "1-2-5": [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 0.9],
    "by a factor": list(np.geomspace(0.001, 0.5, 10)),
    "one small gap": [0.001, 0.002, 0.004, 0.006, 0.1, 0.3, 0.5, 0.7, 0.9],
    "from nothing": [0.0, 0.001, 0.003, 0.01, 0.03, 0.1],
}


@pytest.mark.parametrize("spacing", SPACED)
def test_a_sharp_threshold_is_told_by_any_spacing(spacing):
    """All six runs from a size's threshold on generalise, none below: its value lies between the two shares, and the trend
    falls with its whole interval, as its p says."""
    shares = np.array(SPACED[spacing])
    fractions, firsts = np.repeat(shares, 6), (4, 3, 2)
    groups = [critical.Group(fractions, fractions >= shares[k], n) for k, n in zip(firsts, (10**3, 10**4, 10**5))]
    fitted = critical.fit(groups)
    for number, first in enumerate(firsts):
        share = fitted.critical(number)
        assert (share.low95, share.high95) == pytest.approx((shares[first - 1], shares[first]))
        assert shares[first - 1] < share.value < shares[first]
    moved = critical.trend(fitted)
    assert moved.p < 0.001 and moved.slope.low95 < moved.slope.value < moved.slope.high95 < 0


@pytest.mark.parametrize(
    ("shares", "log"),
    [
        ([0.45, 0.5, 0.55, 0.65, 0.75, 0.85], False),  # even ones, and two between that were added
        ([0.1, 0.3, 0.5, 1.0], False),
        ([0.5, 0.6, 0.75], False),
        ([0.1, 0.1001, 0.3, 0.5, 0.7, 0.9], False),
        ([0.2, 0.4, 0.8], True),
        ([0.1, 0.2, 0.5], True),
    ],
)
def test_shares_are_by_factors_where_that_is_clear(shares, log):
    fractions = np.repeat(shares, 4)
    assert critical.fit([critical.Group(fractions, fractions >= shares[1], 1000)]).log is log


def test_a_shift_reads_between_places_and_the_end_beyond():
    rows = np.random.default_rng(0).normal(size=(2, 9))
    for places in (-20.0, -3.7, -0.2, 0.0, 0.4, 5.0, 7.9, 30.0):
        wanted = [np.interp(np.arange(9) + places, np.arange(9), row) for row in rows]
        np.testing.assert_allclose(critical._shifted(rows, places), wanted, atol=1e-12)


def test_a_power_law_is_told_of_shares_by_factors():
    """Half points 0.1, 0.03, 0.009: a straight line in the logarithm; the slope is that at the middle, 0.03 log(0.3)."""
    shares, groups = np.geomspace(0.001, 0.8, 12), []
    for params, centre in ((100, 0.1), (1000, 0.03), (10_000, 0.009)):
        chance = 1 / (1 + (centre / shares) ** 3)
        able = np.concatenate([np.arange(60) < count for count in np.round(60 * chance)])
        groups.append(critical.Group(np.repeat(shares, 60), able, params))
    moved = critical.trend(critical.fit(groups))
    assert moved.log and moved.straight_p > 0.05
    assert moved.slope.value == pytest.approx(0.03 * np.log(0.3), rel=0.03)


def test_the_slope_of_shares_by_factors_allows_for_their_middle():
    """The middle is not known exactly either: with its estimate alone a steep slope was held in 89% of sweeps."""
    held, shares, params = [], np.array([0.01, 0.02, 0.05, 0.1, 0.2, 0.5]), (1000, 3000, 9000)
    for number in range(16):
        rng = np.random.default_rng([number, 230, 3, 9])
        middle, sizes = np.exp(rng.uniform(np.log(0.05), np.log(0.15))), np.log10(params)
        truth = middle * 10 ** -(sizes - sizes.mean())
        moved = critical.trend(critical.fit(simulate.groups("lognormal", rng, params, truth, shares, 3, 0.5)))
        assert moved.log and moved.slope.high95 < 0 and moved.p < 0.05
        held.append(moved.slope.low95 <= -middle * np.log(10) <= moved.slope.high95)
    assert all(held)


def test_a_value_is_within_its_exact_interval():
    """Lapses at either end pull the curve, and never out of what the runs leave open."""
    shares = np.array(SPACED["1-2-5"])
    for number in range(12):
        rng = np.random.default_rng([number, 11])
        chance = np.where(shares >= 0.02, 0.9, 0.1)
        able = rng.random(60) < np.repeat(chance, 6)
        share = critical.fit([critical.Group(np.repeat(shares, 6), able, 1000)]).critical(0)
        low, high = critical.any_shape(critical.Group(np.repeat(shares, 6), able, 1000))
        assert (share.low95, share.high95) == (low, high)
        assert share.value is None or (low or 0) <= share.value <= (high or 1)


def test_a_trend_open_on_both_sides_is_none():
    """One run of each size at each share, one of which differs: p is 1, and no slope is bounded."""
    groups = [critical.Group(SHARES, np.arange(6) >= place, params) for place, params in ((3, 1000), (2, 2000))]
    trend = critical.trend(critical.fit(groups))
    assert (trend.p, trend.least_p) == (1.0, 1.0)
    assert (trend.slope.value, trend.slope.low95, trend.slope.high95) == (None,) * 3
