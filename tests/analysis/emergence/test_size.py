"""The size effect where guesses persist along a run: intervals, and p where size has no effect."""

import numpy as np
import pandas as pd
import pytest

from emergence_train.analysis.emergence import table as emergence_table
from emergence_train.analysis.emergence.shapes import neighbour_correlation
from emergence_train.analysis.emergence.size import FEW_RUNS, _luck, size_effect


def ladder(rng: np.random.Generator, sizes: int, effect: float) -> pd.DataFrame:
    """Runs of 20 checkpoints, straight in the loss; what is guessed right follows an autoregression with coefficient 0.7."""
    parts = []
    for size in range(sizes):
        loss = np.linspace(5, 3.6 - 0.3 * size, 20) + rng.normal(0, 0.01, 20)
        guess = np.zeros(20)
        for k in range(20):
            guess[k] = (0.7 * guess[k - 1] if k else 0) + rng.normal() * (0.51**0.5 if k else 1)
        value = 0.3 + 0.1 * (5 - loss) + effect * size * np.log10(3) + 0.011 * guess
        run = {"run": f"r{size}", "params": 10**8 * 3**size, "step": range(1, 21), "tokens": range(1, 21), "loss": loss}
        parts.append(pd.DataFrame(run | {"value": np.round(value * 1500) / 1500}))
    frame = pd.concat(parts, ignore_index=True)
    return frame.assign(task="t", metric="acc", stderr=0.012, items=1500, chance=0.25, higher_is_better=True)


def p_and_held(effect: float, tables: int = 48) -> tuple[float, float]:
    """(share of p below 0.05, share of intervals that hold the effect) of ladders of 3 to 6 sizes."""
    small, held = [], []
    for seed in range(tables):
        frame = ladder(np.random.default_rng([seed, 21]), 3 + seed % 4, effect)
        size = size_effect(emergence_table.task_metric("", "t", "acc", frame), np.random.default_rng(seed))
        small.append(size.p < 0.05)
        held.append(size.low95 <= effect <= size.high95)
    return float(np.mean(small)), float(np.mean(held))


def test_p_and_intervals_hold_where_guesses_persist():
    small, held = p_and_held(0.0)
    assert small <= 0.06 and held >= 0.91


def test_an_effect_of_three_points_is_seen_where_guesses_persist():
    small, held = p_and_held(0.03)
    assert small >= 0.8 and held >= 0.9


def test_correlation_is_shifted_by_its_standard_error():
    """By hand: residuals 1, 1, -1, -1, 1, 1 of one run: products 1, -1, 1, -1, 1 over 5 of mean square 1 give 0.2."""
    residual, run, order = np.array([1.0, 1, -1, -1, 1, 1]), np.zeros(6, int), np.arange(6)
    assert neighbour_correlation(residual, run, order, errors=1.0) == 0.2 + 1 / np.sqrt(5)
    assert neighbour_correlation(residual, run, order) == 0


def lucky(rng: np.random.Generator, sizes: int, seeds: int) -> pd.DataFrame:
    """No effect of size: each run's logistic of the loss comes 0.05 nats early or late."""
    parts, tokens = [], np.geomspace(1e9, 6e10, 12)
    for size in np.geomspace(1e8, 1e9, sizes).astype(int):
        for seed in range(seeds):
            loss = 1.6 + 0.35 * (1e9 / size) ** 0.3 + 1.1 * (tokens / 1e9) ** -0.3 + rng.normal(0, 0.004, 12)
            share = 0.25 + 0.6 / (1 + np.exp((loss + rng.normal(0, 0.05) - 2.6) / 0.25))
            run = {
                "run": f"{size}-{seed}",
                "params": size,
                "step": range(1, 13),
                "tokens": tokens.round(),
                "loss": loss,
            }
            parts.append(pd.DataFrame(run | {"value": rng.binomial(3000, share) / 3000}))
    frame = pd.concat(parts, ignore_index=True)
    return frame.assign(task="t", metric="acc", stderr=np.nan, items=3000, chance=0.25, higher_is_better=True)


@pytest.mark.parametrize(("sizes", "seeds"), [(4, 1), (2, 2), (3, 3)])
def test_intervals_hold_where_runs_differ_by_luck(sizes, seeds):
    """A moment estimate of two degrees of freedom, used as if known, held 80% of four sizes with a run each."""
    held, small, matter = [], [], []
    for seed in range(80):
        task = emergence_table.task_metric(
            "", "t", "acc", lucky(np.random.default_rng([seed, sizes, seeds]), sizes, seeds)
        )
        size = size_effect(task, np.random.default_rng(seed))
        assert size.details.interval_of == "items and runs"
        held.append(size.low95 <= 0 <= size.high95)
        small.append(size.p < 0.05)
        matter.append(size.details.matters)
    assert np.mean(held) >= 0.92 and np.mean(small) <= 0.08 and not np.any(np.array(matter) & ~np.array(small))


@pytest.mark.parametrize("sizes", [2, 3])
def test_luck_of_few_runs_does_not_matter_as_size(sizes):
    """Of two or three runs luck is not known: the interval is of items, which the result says, and no effect is named."""
    for seed in range(30):
        task = emergence_table.task_metric("", "t", "acc", lucky(np.random.default_rng([seed, sizes]), sizes, 1))
        details = size_effect(task, np.random.default_rng(seed)).details
        assert (details.interval_of, details.matters) == ("items", False) and FEW_RUNS in task.notes


def test_luck_of_runs_is_measured_as_it_is():
    """Offsets of sd 0.1 on rows of sd 0.01: the draws' median is near their variance, of 60 runs at one curve of the loss."""
    rng = np.random.default_rng(0)
    run = np.repeat(np.arange(60), 10)
    x = np.tile(np.linspace(0, 1, 10), 60)
    offset = rng.normal(0, 0.1, 60)
    columns = np.stack([np.ones(600), x], 1)
    y = offset[run] + rng.normal(0, 0.01, 600)
    residual = y - columns @ np.linalg.lstsq(columns, y, rcond=None)[0]
    luck, known = _luck(columns, residual, np.ones(600), run, 1e-4, rng)
    assert known and np.median(luck) == pytest.approx(offset.var(ddof=1), rel=0.05)
