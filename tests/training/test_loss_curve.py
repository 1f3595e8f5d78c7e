"""A run's losses in bounded memory: by hand, against means of blocks, and what its forecast loses by it."""

import numpy as np
import pytest

from emergence_train.analysis.temporal import forecast_final
from emergence_train.training.loss_curve import LossCurve


def test_pairs_are_averaged_when_it_is_full():
    curve = LossCurve(most=4)
    for step, loss in ((1, 8.0), (2, 6.0), (3, 5.0), (4, 3.0), (5, 2.0)):
        curve.add(step, loss)
    steps, losses = curve.points()
    assert (steps.tolist(), losses.tolist(), curve.each) == ([1.5, 3.5], [7.0, 4.0], 2)  # step 5 waits for its pair
    curve.add(6, 0.0)
    assert curve.points()[0].tolist() == [1.5, 3.5, 5.5] and curve.points()[1][-1] == 1.0


@pytest.mark.parametrize("count", [1, 63, 64, 65, 1000, 4097])
def test_points_are_means_of_equal_blocks(count):
    losses = np.random.default_rng(count).normal(size=count)
    curve = LossCurve(zip(range(1, count + 1), losses), most=64)
    steps, means = curve.points()
    whole = count // curve.each * curve.each
    assert len(curve) < 64 and len(curve) == whole // curve.each
    np.testing.assert_allclose(means, losses[:whole].reshape(-1, curve.each).mean(1), atol=1e-14)
    np.testing.assert_allclose(steps, np.arange(1, whole + 1).reshape(-1, curve.each).mean(1))


def test_a_resumed_run_has_the_same_bits():
    losses = np.random.default_rng(0).normal(size=1000)
    rows = list(zip(range(1, 1001), losses))
    whole, resumed = LossCurve(rows, most=32), LossCurve(rows[:777], most=32)
    for row in rows[777:]:
        resumed.add(*row)
    for ours, theirs in zip(whole.points(), resumed.points()):
        assert ours.tobytes() == theirs.tobytes()


def test_a_forecast_of_averaged_steps_is_that_of_all():
    """Losses that fall as a power of the steps, with noise: 40,000 steps as they are and as at most 4,096 points."""
    steps = np.arange(1.0, 40_001)
    losses = 2.5 + 20 * steps**-0.5 + np.random.default_rng(1).normal(0, 0.05, len(steps))
    planned = np.linspace(1, 100_000, 500)
    ends = []
    for most in (1 << 20, 4096):
        curve = LossCurve(zip(steps, losses), most=most)
        ends.append(forecast_final(*curve.points(), planned, np.full(500, 1e-3), 100_000, 1000))
    assert ends[0].loss == pytest.approx(ends[1].loss, abs=0.1 * (ends[0].high95 - ends[0].low95))
    assert ends[1].low95 < 2.5 + 20 * 100_000**-0.5 < ends[1].high95
