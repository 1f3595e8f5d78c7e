"""The size effect where guesses persist along a run: intervals, and p where size has no effect."""

import numpy as np
import pandas as pd

from emergence_train.analysis.emergence import table as emergence_table
from emergence_train.analysis.emergence.shapes import neighbour_correlation
from emergence_train.analysis.emergence.size import size_effect


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
