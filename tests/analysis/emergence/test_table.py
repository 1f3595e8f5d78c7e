"""Scores as people write them: the same numbers as shares, in percent or as shares of wrong items have the same verdict."""

import numpy as np
import pandas as pd
import pytest

from emergence_train.analysis.emergence import simulate
from emergence_train.analysis.emergence.analyze import find, task_result
from emergence_train.analysis.emergence.table import task_metric
from emergence_train.errors import InputError

ITEMS = 2000
CURVES = {  # of the loss, and its verdict where guessing scores 0.25
    "saturated": lambda loss: 0.9 + 0 * loss,
    "at-chance": lambda loss: 0.25 + 0 * loss,
    "emergent": lambda loss: 0.25 + 0.6 * np.clip((3.2 - loss) / 0.8, 0, 1),
    "gradual": lambda loss: 0.25 + 0.06 * 0.75 * (4.5 - loss) / 2 + 0.2,
}


def ladder(curve, seed: int = 0, **columns) -> pd.DataFrame:
    """Three sizes, 12 checkpoints each, a share of right items that is `curve` of the loss."""
    rng = np.random.default_rng([seed, 29])
    frame = simulate.ladder(rng, sizes=3, checkpoints=12)
    frame["loss"] = 4.5 - 2.2 * (frame["loss"].max() - frame["loss"]) / np.ptp(frame["loss"])
    value = rng.binomial(ITEMS, curve(frame["loss"])) / ITEMS
    stderr = np.sqrt(value * (1 - value) / ITEMS)
    return frame.assign(value=value, stderr=stderr, items=ITEMS, chance=0.25, higher_is_better=True, **columns)


def percent(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(**{name: 100 * frame[name] for name in ("value", "stderr", "chance")})


def wrong(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(value=1 - frame["value"], chance=1 - frame["chance"], higher_is_better=False)


def result(frame: pd.DataFrame, metric: str):
    return task_result(find(task_metric("", "t", metric, frame)))


@pytest.mark.parametrize("metric", ["acc", "f1", "mc2", "winrate", "em_score", "correct_pct", "score", "primary_score"])
@pytest.mark.parametrize("verdict", CURVES)
@pytest.mark.parametrize("known", [True, False])
def test_percent_and_shares_have_one_verdict(metric, verdict, known):
    frame = ladder(CURVES[verdict])
    if not known:
        frame = frame.assign(chance=np.nan)
    shares, percents = result(frame, metric), result(percent(frame), metric)
    assert known is False or shares.verdict == verdict
    assert (percents.verdict, percents.probability) == (shares.verdict, pytest.approx(shares.probability, abs=0.02))
    assert percents.size_effect.value == pytest.approx(shares.size_effect.value)
    if known:
        assert percents.chance == pytest.approx(25) and shares.chance == pytest.approx(0.25)


@pytest.mark.parametrize("unit", [1, 100])
@pytest.mark.parametrize("verdict", CURVES)
def test_shares_of_wrong_items_have_the_verdict_of_right_ones(verdict, unit):
    frame = ladder(CURVES[verdict])
    right, table = result(frame, "acc"), wrong(frame)
    errors = result(percent(table) if unit == 100 else table, "error_rate")
    assert errors.verdict == right.verdict == verdict
    assert errors.probability == pytest.approx(right.probability, abs=0.05)
    assert errors.size_effect.value == pytest.approx(right.size_effect.value)
    assert errors.chance == pytest.approx(0.75 * unit) and errors.spearman == pytest.approx(-right.spearman)
    if verdict == "emergent":
        assert errors.eta.value == pytest.approx(right.eta.value, abs=0.05)
        assert errors.plateau.level == pytest.approx(unit * (1 - right.plateau.level), rel=0.02)


@pytest.mark.parametrize("metric", ["loss", "wer", "bits_per_byte", "perplexity"])
def test_metrics_without_a_highest_value_keep_their_verdict(metric):
    """Between 0 and 1 or a hundred times that: a scale, so that only the change counts."""
    frame = ladder(CURVES["gradual"]).assign(chance=np.nan, items=np.nan)
    frame["value"], frame["higher_is_better"] = 0.2 * frame["loss"] + frame["stderr"], False
    low, high = result(frame, metric), result(percent(frame), metric)
    assert low.verdict == high.verdict == "gradual"
    assert high.size_effect.value == pytest.approx(100 * low.size_effect.value, abs=1e-4)


def test_ratings_are_no_percent_and_low_scores_are_noted():
    rng = np.random.default_rng(0)
    frame = ladder(CURVES["gradual"]).assign(chance=np.nan, items=np.nan, stderr=0.05)
    frame["value"] = 10 - 1.5 * frame["loss"] + rng.normal(0, 0.05, len(frame))
    rated = result(frame, "rating")
    assert rated.verdict == "gradual" and any("without a highest score" in note for note in rated.notes)


@pytest.mark.parametrize("beyond", [2e-16, 1e-7, 9.8e-4])
@pytest.mark.parametrize("unit", [1, 100])
def test_rounding_beyond_the_ends_is_the_ends(beyond, unit):
    """Of float64, float32 and float16, above the highest score and below the lowest."""
    frame = ladder(CURVES["emergent"]).assign(chance=0.0)
    at = [int(frame["value"].argmax()), int(frame["value"].argmin())]
    frame.loc[frame.index[at], "value"] = [1.0, 0.0]
    rounded = frame.copy()
    rounded.loc[rounded.index[at], "value"] = [1 + beyond, -beyond]
    if unit == 100:
        frame, rounded = percent(frame), percent(rounded)
    exact, task = task_metric("", "t", "acc", frame), task_metric("", "t", "acc", rounded)
    np.testing.assert_array_equal(task.rows.y, exact.rows.y)
    assert task.sign == unit and task.notes == exact.notes


def test_a_value_above_one_beside_shares_is_refused():
    frame = ladder(CURVES["emergent"])
    frame.loc[5, "value"] = 1.7
    with pytest.raises(InputError, match=r"t, acc has a value of 1.7 beside shares \(chance 0.25\); correct it"):
        task_metric("", "t", "acc", frame)


@pytest.mark.parametrize("above", [3, 9])
def test_a_run_that_changes_its_unit_is_refused(above):
    """Shares at its first checkpoints, percent at its last ones."""
    frame = ladder(CURVES["emergent"])
    last = frame["run"].eq(frame["run"].iloc[0]) & (frame.groupby("run").cumcount() >= 12 - above)
    frame.loc[last, "value"] *= 100
    if above > 6:
        assert task_metric("", "t", "acc", frame).notes  # as percent, which most of its values are
    else:
        with pytest.raises(InputError, match=r"beside shares \(chance 0.25\); correct it, or write .* as shares"):
            task_metric("", "t", "acc", frame)


def test_percents_of_a_task_of_1000_choices_are_read():
    """Values of 0.2 to 9.9 percent and a chance of 0.1 percent: most are below 1, as shares are."""
    frame = ladder(lambda loss: 0.002 + 0.097 * np.clip((3.0 - loss) / 0.7, 0, 1)).assign(chance=0.001)
    shares, percents = task_metric("", "t", "acc", frame), task_metric("", "t", "acc", percent(frame))
    assert 0.1 < (frame["value"] > 0.01).mean() < 0.5
    np.testing.assert_allclose(percents.rows.y, shares.rows.y)
    assert percents.chance == pytest.approx(0.001)
    assert "chance 0.1 beside values above 1 is taken as percent too" in percents.notes


def test_wrong_percents_with_a_share_as_chance_are_refused():
    """Guessing 0.75 percent wrong made of a clear rise one that does not reach chance."""
    errors = wrong(ladder(CURVES["emergent"]))
    with pytest.raises(InputError, match=r"beside shares \(chance 0.75\); correct it, or write values and chance as"):
        task_metric("", "t", "error_rate", percent(errors).assign(chance=errors["chance"]))
    assert result(errors, "error_rate").verdict == "emergent"


def test_small_models_near_nothing_are_in_percent_too():
    """A checkpoint of each of ten sizes, exact match 0.4 to 50 percent: 0.4 beside 50 is no share."""
    share = np.geomspace(0.004, 0.5, 10)
    frame = pd.DataFrame(
        {"run": [f"m{k}" for k in range(10)], "params": 10 ** np.arange(1, 11), "step": 1, "tokens": 1}
    )
    frame = frame.assign(loss=np.linspace(3.5, 2, 10), value=100 * share, stderr=np.nan, items=1000, chance=0.0)
    task = task_metric("", "t", "exact_match", frame.assign(higher_is_better=True))
    np.testing.assert_allclose(task.rows.y, share)
