"""A batch that changes along the run: its fall of the loss is neither learning nor continued. Simulated training, not our law."""

import numpy as np
import pandas as pd
import pytest
from noisy_quadratic import simulate

from emergence_train.analysis.planned_schedule import AT_ONCE, PlannedSchedule
from emergence_train.analysis.temporal import analyze_temporal

RAMPS = {
    "constant": (np.ones_like, 0),
    "doubled": (lambda progress: np.where(progress < 0.3, 0.5, 1.0), 1),
    "four times, in two steps": (lambda progress: np.where(progress < 0.15, 0.25, np.where(progress < 0.3, 0.5, 1)), 1),
    "halved": (lambda progress: np.where(progress < 0.3, 2.0, 1.0), 1),
    "doubled ahead": (lambda progress: np.where(progress < 0.7, 1.0, 2.0), 1),
}


# The slow ones keep the rule of "doubled"
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("four times, in two steps", "halved")]


@pytest.mark.parametrize("name", ["constant", "doubled", "doubled ahead", *SLOW])
@pytest.mark.parametrize("kind", ["cosine", "constant"])
def test_ends_are_held(kind, name, tmp_path):
    """0 of 40 with a batch that doubles within the window, when its fall was taken for learning."""
    batch, notes = RAMPS[name]
    held, errors = [], []
    for seed in range(6):
        run = simulate(np.random.default_rng(seed), kind, 8000, spacing=20, noise=0.01, batch=batch)
        columns = {"run": "r", "params": 10**8, "step": run.step.astype(int), "tokens": run.tokens.astype(int)}
        pd.DataFrame(columns | {"lr": run.rate, "loss": run.loss}).to_csv(tmp_path / "log.csv", index=False)
        (result,) = analyze_temporal(tmp_path / "log.csv", fit_fraction=0.45).runs
        held.append(result.final.curve_low95 <= run.truth[-1] <= result.final.curve_high95)
        errors.append(result.final.loss - run.truth[-1])
        assert sum("tokens a step change along the run" in note for note in result.notes) == notes
    assert sum(held) >= 5 and abs(np.median(errors)) < 0.05


def test_a_fall_of_the_rate_over_the_batch():
    """Rate 1, then 1/2, batch 1, then 2: at once, 1 - 1/4 of what a decay to 0 from 1 does at the first batch."""
    x, tokens = np.array([0.0, 1000, 3000]), np.array([0.0, 1e6, 5e6])
    rates = PlannedSchedule(np.array([1.0, 1000, 1001, 3000]), np.array([1.0, 1, 0.5, 0.5]))
    plan = rates.with_batches(np.linspace(0, 3000, 301), np.interp(np.linspace(0, 3000, 301), x, tokens))
    mean = 5 / 3
    assert plan.by_batch == (1.0, 0.5) and rates.by_batch == (0.0,)
    end = np.array([3000.0])
    assert rates.decay(end, AT_ONCE)[0] == pytest.approx(0.5, abs=0.01)
    assert plan.decay(end, AT_ONCE)[0] == pytest.approx(mean * (1 - 0.25), rel=0.01)
    assert plan.decay(end, AT_ONCE, 0.5)[0] == pytest.approx(mean**0.5 * (1 - 0.5 / 2**0.5), rel=0.01)
    assert np.array_equal(plan.share(end), rates.share(end)) and plan.share_over_batch(end)[0] == pytest.approx(
        mean / 4, rel=0.01
    )
