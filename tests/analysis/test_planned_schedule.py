"""The learning-rate plan: clocks, decays, warm-up."""

import numpy as np
import pandas as pd
import pytest

from emergence_train.analysis.planned_schedule import AT_ONCE, INTRINSIC, MOMENTUM, MULTI_POWER, PlannedSchedule
from emergence_train.analysis.runs import load
from emergence_train.analysis.temporal import simulate
from emergence_train.errors import InputError

X = np.linspace(0, 10000, 1001)


def test_constant_rate():
    plan = PlannedSchedule(X, np.full(1001, 3e-4))
    assert plan.peak == 3e-4
    assert plan.warmup_end == 0
    np.testing.assert_allclose(plan.clock(X), X, atol=1e-6)
    for kernel in (*INTRINSIC, MOMENTUM, MULTI_POWER, AT_ONCE):
        assert np.all(plan.decay(X, kernel) == 0)


def test_cosine_decay_at_once_is_one_minus_the_rate():
    rate = 1e-3 * (0.1 + 0.45 * (1 + np.cos(np.pi * X / X[-1])))
    plan = PlannedSchedule(X, rate)
    inside = X[10:]  # half a grid cell of difference at most
    np.testing.assert_allclose(plan.decay(inside, AT_ONCE), 1 - rate[10:] / 1e-3, atol=3e-3)
    assert plan.clock(X[-1:])[0] == pytest.approx(10000 * 0.55, rel=1e-3)


def test_the_mean_rate_ahead():
    """By hand: constant, a line to 0 over the last fifth, a cosine from its middle on; beyond the end the last rate."""
    assert PlannedSchedule(X, np.full(1001, 3e-4)).mean_share_after(4000.0) == pytest.approx(1.0)
    wsd = PlannedSchedule(np.array([0.0, 8000, 10000]), np.array([1e-3, 1e-3, 0.0]))
    assert wsd.mean_share_after(5000.0) == pytest.approx((3000 + 1000) / 5000, rel=1e-3)
    assert wsd.mean_share_after(10000.0) == wsd.mean_share_after(2e4) == 0.0
    cosine = PlannedSchedule(X, 1e-3 * (1 + np.cos(np.pi * X / X[-1])) / 2)
    assert cosine.mean_share_after(5000.0) == pytest.approx(0.5 - 1 / np.pi, rel=1e-3)


def test_a_sudden_drop_takes_effect_as_the_kernels_say():
    plan = PlannedSchedule(np.array([0.0, 5000, 5010, 10000]), np.array([1e-3, 1e-3, 1e-4, 1e-4]))
    at = plan._middle[np.diff(plan.e) < -1e-12].mean()  # where the drop sits on the grid
    after = np.array([at + 1000.0])
    work = plan.clock(after) - plan.clock(np.array([at]))
    assert plan.decay(after, MOMENTUM)[0] == pytest.approx(0.9 * (1 - 0.999**1000), rel=0.02)
    fast = next(kernel for kernel in INTRINSIC if kernel.name == "fast^1")
    assert plan.decay(after, fast)[0] == pytest.approx(0.9 * -np.expm1(-work[0] / 100), rel=0.05)
    assert np.all(plan.decay(np.array([4000.0]), fast) == 0)


@pytest.mark.parametrize("kernel", [*INTRINSIC, MOMENTUM, MULTI_POWER, AT_ONCE], ids=lambda kernel: kernel.name)
@pytest.mark.parametrize("kind", ["cosine", "wsd"])
def test_decay_grows_from_nothing_to_at_most_all(kernel, kind):
    values = PlannedSchedule(X, simulate.learning_rate(kind, X)).decay(X, kernel)
    assert values[0] == 0
    assert np.all(np.diff(values) > -1e-9)
    assert values[-1] <= 1


def test_warmup_is_not_a_negative_decay():
    plan = PlannedSchedule(X, simulate.learning_rate("wsd", X))
    assert plan.warmup_end == pytest.approx(100, abs=15)
    assert np.all(plan.decay(np.linspace(0, 7900, 50), INTRINSIC[0]) == 0)


def test_restarts_give_back_what_the_decay_took():
    decay = PlannedSchedule(X, simulate.learning_rate("restarts", X)).decay(X, AT_ONCE)
    assert decay[330] > 0.85
    assert decay[345] < 0.1


def test_a_log_that_starts_after_its_warmup():
    plan = PlannedSchedule(np.arange(2000.0, 10001, 100), np.full(81, 3e-4))
    assert plan.warmup_end == 2000
    assert plan.clock(np.array([2000.0]))[0] == pytest.approx(1000, rel=0.01)


@pytest.mark.parametrize("rate", [[0.0, 0.0], [1e-3, -1e-3], [1e-3, np.nan], [np.inf, 1e-3]])
def test_impossible_rates(rate):
    with pytest.raises(InputError, match="learning rate"):
        PlannedSchedule(np.array([0.0, 10.0]), np.array(rate))


@pytest.mark.parametrize("missing", [[], [5], [0], [10, 11, 40], range(1, 100)])
def test_rates_known_in_part_are_the_schedule(tmp_path, missing):
    """Of a linear decay any rows that have a rate give it between them; from 1e-3 to 1e-5."""
    step = np.arange(1, 101)
    rate = 1e-3 * (1.01 - step / 100)
    frame = pd.DataFrame(
        {"run": "a", "params": 10, "step": step, "tokens": step * 64, "lr": rate, "loss": 2 + step**-0.5}
    )
    frame.loc[[row for row in missing if row < 99], "lr"] = np.nan
    frame.to_csv(tmp_path / "c.csv", index=False)
    (series,) = load(tmp_path / "c.csv")
    later = step[1:] if 0 in missing else step
    np.testing.assert_allclose(
        series.plan.peak * np.interp(later, series.plan.x, series.plan.e), rate[later - 1], rtol=1e-4
    )


def test_a_past_of_other_rates_keeps_the_peak_of_the_plan():
    """A log that began at step 1,000 and was at half the planned rate from 3,000 to 5,000, by hand; a batch belongs to both."""
    logged = PlannedSchedule(np.array([1000.0, 3000, 3001, 5000]), np.array([4e-4, 4e-4, 2e-4, 2e-4]))
    plan = PlannedSchedule(X, np.full(1001, 4e-4), 100.0).with_past(logged, 5000.0)
    assert plan.past.peak == 4e-4 and plan.clock(X[-1:])[0] == pytest.approx(10000)
    at = np.array([500.0, 2000, 4000, 5000])
    np.testing.assert_allclose(plan.past.share(at), [1, 1, 0.5, 0.5])
    np.testing.assert_allclose(plan.past.clock(at), [500, 2000, 3500, 4000], atol=6)
    np.testing.assert_allclose(plan.past.decay(at, AT_ONCE), [0, 0, 0.5, 0.5], atol=1e-3)
    grown = plan.with_batches(np.array([100.0, 2500, 5000]), np.array([1e4, 2.5e5, 7.5e5]))
    assert grown.by_batch == grown.past.by_batch and plan.past is not grown.past


def test_a_plan_behind_a_log_has_both_rates():
    """The log's up to step 5,000, from which the plan goes on; by hand."""
    logged = PlannedSchedule(np.array([0.0, 3000, 3001, 5000]), np.array([4e-4, 4e-4, 2e-4, 2e-4]))
    plan = PlannedSchedule(X, np.full(1001, 2e-4), 100.0).behind(logged, 5000.0)
    np.testing.assert_allclose(plan.peak * plan.share(np.array([2000.0, 4000, 9000])), [4e-4, 2e-4, 2e-4])
    assert plan.past is plan and plan.x[-1] == X[-1]


def test_interpolated_decays_are_of_their_own_plan():
    """They are computed once; a copy with another peak or batch has its own."""
    plan = PlannedSchedule(X, 3e-4 * (1 - X / 20000))
    tokens = np.where(X < 5000, X, 2 * X - 5000) * 100.0
    for _ in range(2):
        for each in (plan, plan.with_peak(3e-3), plan.with_batches(X, tokens)):
            seen = each.interpolated_decays(each.x, AT_ONCE, MULTI_POWER)
            exact = [each.decay(each.x, kernel, power) for kernel in (AT_ONCE, MULTI_POWER) for power in each.by_batch]
            assert len(seen) == len(exact) and np.array_equal(seen, exact)


def test_a_rate_below_zero_by_rounding_is_zero(tmp_path):
    """The last of a decay to 0 in float32 and float64; a rate that is negative is refused still."""
    decay = np.float32(1e-3) * (1 - np.sqrt(np.float32(1)) - np.float32(3e-8))
    steps = np.arange(1, 101)
    for last, message in ((-2.9e-19, None), (float(decay), None), (-1e-5, "row 100, column 'lr': -1e-05 is negative")):
        rate = np.r_[np.linspace(1e-3, 1e-5, 99), last]
        frame = pd.DataFrame(dict(run="r", params=1, step=steps, tokens=steps * 100, lr=rate, loss=3 - steps / 100))
        frame.to_csv(tmp_path / "run.csv", index=False)
        if message is None:
            (series,) = load([tmp_path / "run.csv"])
            assert series.plan.rows[1][-1] == 0 and PlannedSchedule(steps, rate).rows[1][-1] == 0
            continue
        with pytest.raises(InputError, match=message):
            load([tmp_path / "run.csv"])
        with pytest.raises(InputError, match="not negative"):
            PlannedSchedule(steps, rate)
