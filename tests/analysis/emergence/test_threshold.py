"""The interval of a threshold: its least width by hand, and its coverage where rises and guesses are not of the fitted forms."""

import numpy as np
import pandas as pd
import pytest

from emergence_train.analysis.emergence import table as emergence_table
from emergence_train.analysis.emergence.analyze import find
from emergence_train.analysis.emergence.shapes import COARSE, JUMPS, Rows, _Basis, _jump, _jumps, posterior
from emergence_train.analysis.emergence.threshold import OF_FOOT, SHAPE, threshold
from support import study


def test_a_threshold_is_no_better_known_than_the_rows_allow():
    """Rows a tenth apart but for one gap of 0.3: an onset known exactly is still as wide as the gap that it lies in."""
    rng = np.random.default_rng(0)
    rows = np.array([0, 0.1, 0.2, 0.3, 0.6, 0.7, 0.8, 0.9, 1.0])
    for onset, gap in ((0.45, 0.3), (0.75, 0.1), (0.595, 0.3)):
        drawn = threshold(np.full(4000, onset), np.zeros(4000), rows, rng)
        low, middle, high = np.quantile(drawn, [0.025, 0.5, 0.975])
        assert gap <= high - low < 1.01 * gap + 0.001 and middle == pytest.approx(onset, abs=0.002)
    wide = threshold(0.5 + 0.2 * rng.standard_normal(4000), np.zeros(4000), rows, rng)
    assert np.std(wide) == pytest.approx(0.2, rel=0.1)


def test_a_threshold_is_the_less_known_the_longer_its_foot():
    """Dense rows, an onset known exactly: a foot of a tenth of the range adds OF_FOOT of that in quadrature."""
    rng, rows = np.random.default_rng(0), np.linspace(0, 1, 2001)
    for foot in (0.0, 0.1):
        drawn = threshold(np.full(4000, 0.5), np.full(4000, foot), rows, rng)
        assert np.std(drawn) == pytest.approx(np.hypot(SHAPE, OF_FOOT * foot), rel=0.05)


def test_feet_of_drawn_rises_are_where_they_reach_a_fiftieth():
    """By hand: a power p of u is at 0.02 where u = 0.02^(1/p), of the rise's length."""
    basis = _Basis(np.linspace(0, 1, 50), np.array([0.2, 0.6]), COARSE)
    powers = np.flatnonzero(basis.onset == 0.2)[: len(COARSE[0])]
    assert basis.foot[powers] == pytest.approx(0.8 * 0.02 ** (1 / np.array(COARSE[0])), rel=0.01, abs=1e-3)
    x = np.linspace(0, 1, 101)
    rows = Rows(x, np.where(x > 0.4, (x - 0.4) ** 2, 0), np.full(101, 1e-8), np.zeros(101, int), np.arange(101))
    drawn = posterior(rows, 0.5, np.random.default_rng(0))
    assert np.median(drawn.foot[drawn.kind == "onset"]) == pytest.approx(0.6 * 0.02**0.5, rel=0.2)
    assert np.all(drawn.foot[drawn.kind != "onset"] == 0)


def jump(seed: int, after) -> tuple[float, float, float, float, float]:
    """(last loss at chance, first loss above it, low, eta, high) of 60 rows at 0.25 that jump and go on by `after`."""
    rng = np.random.default_rng([seed, 18])
    loss = np.sort(rng.uniform(2, 4, 60))[::-1]
    first = int(rng.integers(25, 50))
    rest = (loss[first] - loss[first:]) / (loss[first] - 2)
    share = np.r_[np.full(first, 0.25), after(rest)]
    frame = pd.DataFrame({"run": "a", "params": 1, "step": range(1, 61), "tokens": range(1, 61), "loss": loss})
    frame = frame.assign(task="t", metric="acc", value=rng.binomial(4000, share) / 4000, stderr=0.01, items=4000)
    finding = find(emergence_table.task_metric("", "t", "acc", frame.assign(chance=0.25, higher_is_better=True)))
    assert finding.verdict.name == "emergent"
    value, high, low = (finding.task.loss_at(share) for share in finding.verdict.onset)
    return loss[first - 1], loss[first], low, value, high


@pytest.mark.parametrize("after", [lambda u: 0.6 + 0 * u, lambda u: 0.45 + 0.3 * np.log1p(4 * u) / np.log(5)])
def test_a_jump_is_held_where_it_lies(after):
    """At chance, then at once far above it: the interval holds the whole gap between the two rows, and little more."""
    for seed in range(4):
        before, behind, low, value, high = jump(seed, after)
        assert low - 0.01 < behind < before < high + 0.01 and high - low < 0.5
        assert abs(value - (before + behind) / 2) < 0.08


def test_jumps_lie_between_neighbouring_rows():
    """By hand: three gaps, of which the last is outside the grid of onsets; weights in proportion to the gaps within it."""
    jumps, gaps, mass = _jumps(np.array([0.0, 0.1, 0.1, 0.4, 1.0]), np.array([0.05, 0.2, 0.35]))
    assert [at for at, _ in jumps[:: len(JUMPS)]] == pytest.approx([0.05, 0.25])
    assert gaps[:: len(JUMPS)] == pytest.approx([0.1, 0.3])
    assert mass.sum() == pytest.approx(3) and mass[-1] / mass[0] == pytest.approx(5)
    assert _jump(np.array([0.2, 0.3, 1.0]), 0.25, 0.6) == pytest.approx([0, 0.6 + 0.4 * 0.05 / 0.75, 1])


def test_intervals_cover_thresholds_of_simulated_items():
    """A small part of the study; the whole is committed."""
    rows = [
        row for items in (500, 14_000) for row in study("emergence_thresholds").thresholds(items, "sparse", "sharp", 12)
    ]
    inside = [row["inside"] for row in rows if row["verdict"] == "emergent"]
    assert len(inside) >= 16 and np.mean(inside) >= 0.85
    assert all(row["width"] >= row["gap"] for row in rows if row["verdict"] == "emergent")


def test_a_jump_above_zeros_is_no_noise():
    """Exact zeros, then 0.5 to 0.6 in two of three runs: what a jump taken too small leaves is no correlation."""
    losses = [
        [5.82, 5.09, 4.56, 4.15, 3.86, 3.64, 3.49, 3.36],
        [5.81, 4.95, 4.31, 3.85, 3.50, 3.24, 3.06, 2.88],
        [5.81, 4.81, 4.10, 3.55, 3.15, 2.84, 2.60, 2.45],
    ]
    scores = [[0.0] * 8, [0.0] * 5 + [0.61, 0.59, 0.573], [0.0] * 4 + [0.6, 0.567, 0.543, 0.527]]
    frame = pd.concat(
        pd.DataFrame({"run": f"r{k}", "params": 10 ** (7 + k), "step": range(1, 9), "loss": loss, "value": score})
        for k, (loss, score) in enumerate(zip(losses, scores))
    )
    frame = frame.assign(tokens=frame["step"], task="t", metric="acc", stderr=np.nan, items=300, chance=0.0)
    verdict = find(emergence_table.task_metric("", "t", "acc", frame.assign(higher_is_better=True))).verdict
    assert verdict.name == "emergent" and verdict.probability > 0.9
