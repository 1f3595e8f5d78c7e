"""What a product of steps explains: intervals against simulated items whose steps are independent, or go together."""

import numpy as np
import pytest

from emergence_train.analysis.composition_share import share_by_product
from emergence_train.analysis.results import Interval
from support import study

line_steps = study("line_steps")


def explained(right: np.ndarray) -> Interval:
    """Of (checkpoints, items, steps) right steps; the noise by drawing the items again."""
    return Interval(**line_steps.explained(right)["explained"])


def independent(rng: np.random.Generator, chances, items: int, steps: int) -> np.ndarray:
    return rng.random((len(chances), items, steps)) < np.asarray(chances)[:, None, None]


@pytest.mark.parametrize(
    ("items", "steps", "chances"),
    [(100, 3, [0.1, 0.15, 0.2, 0.25]), (50, 5, [0.2, 0.3, 0.4, 0.5, 0.55]), (200, 4, [0.3, 0.4, 0.5, 0.6])]
    + [(1000, 4, np.linspace(0.02, 0.98, 8))],
)
def test_independent_steps_explain_all_in_the_interval(items, steps, chances):
    """A bootstrap that counted the sampling of items twice held 1 in none of 200, and the values were 0.09 to 0.9."""
    rng, held, values = np.random.default_rng(1), [], []
    for _ in range(100):
        right = independent(rng, chances, items, steps)
        if np.ptp(right.all(2).mean(1)) > 0:
            share = explained(right)
            held.append(share.high95 == 1)
            values += [] if share.value is None else [share.value]
    assert np.mean(held) >= 0.93
    assert len(values) < 20 or np.median(values) > 0.97


def by_factor(rng: np.random.Generator, items: int, shared: float) -> np.ndarray:
    """(8, items, 4): an item's steps are right from normal places on that have the correlation `shared`."""
    place = np.linspace(-2.5, 2.5, 8)
    common, own = rng.standard_normal((items, 1)), rng.standard_normal((items, 4))
    return (np.sqrt(shared) * common + np.sqrt(1 - shared) * own) < place[:, None, None]


def by_difficulty(rng: np.random.Generator, items: int, alike: float) -> np.ndarray:
    """(6, items, 5): the chance of an item's steps is drawn anew at each checkpoint, from a beta distribution."""
    mean = np.linspace(0.1, 0.8, 6)[:, None] * np.ones(items)
    return rng.random((6, items, 5)) < rng.beta(mean * alike, (1 - mean) * alike)[..., None]


@pytest.mark.parametrize(
    ("items", "form", "alike"),
    [(50, by_factor, 0.1), (200, by_factor, 0.3), (200, by_factor, 0.6), (100, by_difficulty, 6.0)]
    + [(400, by_difficulty, 3.0), (400, by_difficulty, 1.0)],
)
def test_dependent_steps_have_their_share_in_the_interval(items, form, alike):
    """The truth is that of 400,000 items: 0.998, 0.99, 0.94, 0.84, 0.63 and 0.02."""
    rng, held, values = np.random.default_rng(2), [], []
    many = form(rng, 400_000, alike)
    whole, product = many.all(2).mean(1), many.mean(1).prod(1)
    known = 1 - np.mean((whole - product) ** 2) / whole.var()
    for _ in range(100):
        share = explained(form(rng, items, alike))
        held.append(share.low95 <= known <= share.high95)
        values.append(share.value)
    assert np.mean(held) >= 0.9
    assert np.median(values) == pytest.approx(known, abs=0.03)


@pytest.mark.parametrize("together", [False, True])
def test_steps_together_are_less_sharp_than_their_product(together):
    """Steps rise smoothly and the whole of eight jumps where they are independent; it is as smooth as a step where all of an item
    are right or wrong together."""
    chances = 1 / (1 + np.exp(-np.linspace(-2, 4, 9)))
    right = np.random.default_rng(1).random((9, 2000, 1 if together else 8)) < chances[:, None, None]
    result = line_steps.explained(np.repeat(right, 8, axis=2) if together else right)
    if together:
        assert result["explained"]["high95"] < 0.7 and result["correlated"] > 0.1
        assert result["sharpest_whole"] == pytest.approx(result["sharpest_step"])
    else:
        assert result["explained"]["low95"] > 0.95 and abs(result["correlated"]) < 0.02
        assert result["sharpest_whole"] > result["sharpest_step"]


def test_a_share_without_sampling_is_that_of_the_formula():
    whole, product = np.array([0.1, 0.4, 0.7]), np.array([0.1, 0.3, 0.6])
    share = share_by_product(whole - product, whole, np.zeros((10, 3)), np.zeros((10, 3)))
    expected = 1 - (0.02 / 3) / 0.06
    assert (share.value, share.low95, share.high95) == pytest.approx((expected,) * 3, abs=2e-4)


def test_a_whole_that_sampling_may_have_moved_has_no_share():
    noise = 0.1 * np.random.default_rng(3).standard_normal((500, 4))
    share = share_by_product(np.zeros(4), np.array([0.1, 0.15, 0.12, 0.2]), 0 * noise, noise)
    assert share.value is None and share.low95 is None and share.high95 == 1
