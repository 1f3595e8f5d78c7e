"""Counterfactual memorisation: by a plain loop, and its interval on simulated models with a known effect."""

import numpy as np
import pandas as pd
import pytest

from emergence_train.analysis.memorisation import analyze, counterfactual
from emergence_train.analysis.memorisation.counterfactual import over_models


def halves(rng: np.random.Generator, models: int, items: int) -> np.ndarray:
    """(models, items) bool: each item is in the data of half of the models."""
    return np.stack([rng.permutation(np.arange(models) % 2 == 0) for _ in range(items)], 1)


def frame(trained: np.ndarray, loss: np.ndarray, seen: float = 4.0, **keys) -> pd.DataFrame:
    model, item = (part.ravel() for part in np.indices(trained.shape))
    given = {"params": 1000, "step": 5, "prefix": 8, "continuation": 4} | keys
    columns = {"run": [f"m{k}" for k in model], "item": [f"i{k}" for k in item], "seen": seen * trained.ravel()}
    return pd.DataFrame(columns | {"loss": loss.ravel(), "extracted": loss.ravel() < 1}).assign(**given)


def test_value_is_that_of_a_plain_loop():
    rng = np.random.default_rng(1)
    trained, loss = rng.random((5, 40)) < 0.4, rng.gamma(3, size=(5, 40))
    differences, shares = [], []
    for item in range(40):
        inside = [loss[m, item] for m in range(5) if trained[m, item]]
        outside = [loss[m, item] for m in range(5) if not trained[m, item]]
        if inside and outside:
            differences.append(np.mean(outside) - np.mean(inside))
            shares.append(np.mean([x < 1 for x in inside]) - np.mean([x < 1 for x in outside]))
    result = counterfactual(frame(trained, loss))[0]
    assert (result.seen, result.models, result.items) == ("all", 5, len(differences))
    assert result.nats.value == pytest.approx(np.mean(differences))
    assert result.extracted.value == pytest.approx(np.mean(shares))


def test_common_text_is_not_memorised():
    """Every model knows half of the texts by heart, trained on them or not: low losses, no difference."""
    rng = np.random.default_rng(2)
    loss = np.where(np.arange(60) < 30, 0.01, 3.0) + 0.001 * rng.random((4, 60))
    result = counterfactual(frame(halves(rng, 4, 60), loss))[0]
    assert abs(result.nats.value) < 0.002 and result.extracted.value == 0


@pytest.mark.parametrize("models", [4, 8])
def test_intervals_hold_a_known_effect(models):
    """Gains are of a text (skewed), of a model and of both; models differ in level. The truth is the expectation over models
    for these texts; the interval has it in 95% of draws, and would be far too short were texts the draws."""
    rng, held, naive = np.random.default_rng(3), [], []
    for _ in range(300):
        trained = halves(rng, models, 50)
        gains = rng.gamma(1.0, 0.6, size=50)
        by_model = 1 + 0.5 * rng.normal(size=(models, 1))
        loss = 3 + rng.normal(size=50) + 0.3 * rng.normal(size=(models, 1)) + 0.4 * rng.normal(size=(models, 50))
        value = -(loss - trained * gains * by_model)
        interval = over_models(trained, value)
        held.append(interval.low95 <= gains.mean() <= interval.high95)
        inside = (value * trained).sum(0) / trained.sum(0) - (value * ~trained).sum(0) / (~trained).sum(0)
        reach = 1.96 * inside.std() / 50**0.5
        naive.append(interval.value - reach <= gains.mean() <= interval.value + reach)
    assert 0.92 <= np.mean(held) <= 0.985, np.mean(held)
    assert np.mean(naive) < np.mean(held) - 0.05


def test_levels_are_powers_of_two_by_times_seen():
    rng = np.random.default_rng(4)
    trained = halves(rng, 4, 30)
    loss = 3 - trained * np.repeat([0.0, 1.0, 2.0], 10)
    rows = frame(trained, loss)
    rows["seen"] *= np.tile(np.repeat([0.25, 1.1, 6.2], 10), 4)  # 1, 4.4 and 24.8 times
    values = {row.seen: row.nats.value for row in counterfactual(rows)}
    assert values == pytest.approx({"all": 1.0, "1": 0.0, "4": 1.0, "32": 2.0})


def test_nothing_to_compare_gives_nothing():
    rng = np.random.default_rng(5)
    trained = np.repeat(rng.random((1, 20)) < 0.5, 3, 0)  # all models alike
    rows = frame(trained, rng.random((3, 20)))
    assert counterfactual(rows) == () and analyze(rows).counterfactual is None
    two = counterfactual(frame(halves(rng, 2, 20), rng.random((2, 20))))[0]
    assert two.nats.low95 is None and two.nats.value is not None
    sizes = pd.concat([frame(halves(rng, 2, 20)[:1], rng.random((1, 20)), params=p, run=f"m{p}") for p in (1, 2)])
    assert counterfactual(sizes) == ()  # one run a size
