"""A jump of the level is found where it is; a curve without one, whatever its schedule, has none."""

import numpy as np
import pytest

from emergence_train.analysis.planned_schedule import PlannedSchedule
from emergence_train.analysis.temporal import analyze_temporal, simulate
from emergence_train.analysis.temporal.forecast import forecast
from emergence_train.analysis.temporal.jumps import find_jump
from emergence_train.analysis.temporal.mean_law import SCHEDULE_AWARE


@pytest.mark.parametrize("size", [-0.2, 0.08, 0.3])
@pytest.mark.parametrize("rows", [150, 4000])
def test_a_jump_is_found_where_it_is(size, rows):
    x = np.linspace(10000 / rows, 10000, rows)
    y = 2.5 + 40 * x**-0.5 + np.random.default_rng(rows).normal(size=rows) * 0.004
    jump = find_jump(x, y + size * (x > 6000), None)
    assert jump.size == pytest.approx(size, abs=0.02) and jump.step == pytest.approx(6000, rel=0.02)


@pytest.mark.parametrize(("rows", "size"), [(240, 0.25), (600, 0.25), (2400, 0.15)])
def test_a_jump_within_noise_is_found_by_more_rows(rows, size):
    """Of 4 to 6 deviations of a row; with twelve rows on each side one of a hundred was found."""
    x = np.linspace(10, 2400, rows)
    for seed in range(10):
        y = 2.5 + 13 * x**-0.5 + np.random.default_rng(seed).normal(0, 0.04, rows)
        jump = find_jump(x, y + size * (x > 1400), None)
        assert jump.size == pytest.approx(size, abs=0.07) and jump.step == pytest.approx(1400, rel=0.1)
        assert find_jump(x, y, None) is None


@pytest.mark.parametrize("kind", ["constant", "cosine", "wsd", "restarts"])
@pytest.mark.parametrize("noise", [0.0, 0.003, 0.03])
def test_a_schedule_makes_no_jump(kind, noise):
    for seed in range(3):
        frame, _ = simulate.curve(np.random.default_rng(seed), kind, rows=(100, 600, 4000)[seed], noise=noise)
        x, y, lr = (frame[name].to_numpy(float) for name in ("step", "loss", "lr"))
        assert find_jump(x, y, PlannedSchedule(x, lr)) is None, seed


def test_spikes_and_few_rows_are_no_jump():
    x = np.linspace(100, 10000, 100)
    y = 2.5 + 40 * x**-0.5 + np.random.default_rng(0).normal(size=100) * 0.004
    y[[50, 51, 70]] += [1.0, 0.4, 2.0]
    assert find_jump(x, y, None) is None
    assert find_jump(x[:20], y[:20], None) is None


@pytest.mark.parametrize(("height", "tau"), [(0.5, 300), (0.3, 600), (0.2, 1000), (1.0, 150)])
def test_a_spike_that_recovers_slowly_is_no_new_level(height, tau):
    """Set to a level that the loss has left again, the rows before it made the end 0.12 to 0.31 too low."""
    x = np.linspace(50, 10000, 300)
    spike = np.where(x > 6000, height * np.exp(-(x - 6000) / tau), 0)
    for seed in range(4):
        y = 2.5 + 8 * x**-0.35 + spike + np.random.default_rng(seed).normal(0, 0.01, 300)
        jump, ahead = find_jump(x, y, None), forecast(x, y, np.array([20000.0]), None)
        assert jump is None or not jump.lasts
        assert (jump is None) == (ahead.jump is None) and (jump is None or "it comes back" in ahead.jump)
        low, high = ahead.interval(95, noisy=False)
        assert low[0] <= 2.5 + 8 * 20000**-0.35 <= high[0]


@pytest.mark.parametrize("size", [-0.15, 0.25])
def test_the_end_behind_a_jump_is_held(size):
    """Own curve, noise of 0.02, jump halfway in the 45% that is seen: a law across the jump held 4 and 0 of ten."""
    held, steps = 0, np.linspace(20, 6000, 300)
    true = 2.4 + 9 * (steps / 10) ** -0.45 + size * (steps > 1400)
    plan, seen = PlannedSchedule(steps, np.full(300, 1e-3)), steps <= 2700
    for seed in range(10):
        loss = true + np.random.default_rng(seed).normal(0, 0.02, 300)
        ahead = forecast(steps[seen], loss[seen], steps[-1:], plan, laws=SCHEDULE_AWARE)
        low, high = ahead.interval(95, noisy=False)
        held += ahead.jump is not None and bool(low[0] <= true[-1] <= high[0])
    assert held >= 9


def test_a_jump_in_the_observed_part_is_noted(tmp_path):
    frame, _ = simulate.curve(np.random.default_rng(0), "cosine", rows=200)
    frame.loc[frame["step"] > 8000, "loss"] += 0.2
    frame.to_csv(tmp_path / "run.csv", index=False)
    for fraction, noted in ((0.3, False), (0.7, True)):
        (run,) = analyze_temporal(tmp_path / "run.csv", fit_fraction=fraction).runs
        assert any("jumps by +0.20 nats near step 8000" in note for note in run.notes) == noted, run.notes
