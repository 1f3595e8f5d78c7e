"""A jump of the level is found where it is; a curve without one, whatever its schedule, has none."""

import numpy as np
import pytest

from emergence_train.analysis.planned_schedule import PlannedSchedule
from emergence_train.analysis.temporal import analyze_temporal, simulate
from emergence_train.analysis.temporal.jumps import find_jump


@pytest.mark.parametrize("size", [-0.2, 0.08, 0.3])
@pytest.mark.parametrize("rows", [150, 4000])
def test_a_jump_is_found_where_it_is(size, rows):
    x = np.linspace(10000 / rows, 10000, rows)
    y = 2.5 + 40 * x**-0.5 + np.random.default_rng(rows).normal(size=rows) * 0.004
    jump = find_jump(x, y + size * (x > 6000), None)
    assert jump.size == pytest.approx(size, abs=0.02) and jump.step == pytest.approx(6000, rel=0.02)


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


def test_a_jump_in_the_observed_part_is_noted(tmp_path):
    frame, _ = simulate.curve(np.random.default_rng(0), "cosine", rows=200)
    frame.loc[frame["step"] > 8000, "loss"] += 0.2
    frame.to_csv(tmp_path / "run.csv", index=False)
    for fraction, noted in ((0.3, False), (0.7, True)):
        (run,) = analyze_temporal(tmp_path / "run.csv", fit_fraction=fraction).runs
        assert any("jumps by +0.20 nats near step 8000" in note for note in run.notes) == noted, run.notes
