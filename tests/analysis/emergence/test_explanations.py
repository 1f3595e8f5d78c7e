"""Explanations of a threshold, on simulated tasks whose explanation was chosen; shares and intervals against known truth."""

from collections import Counter

import numpy as np
import pandas as pd
import pytest

from emergence_train.analysis.emergence import analyze_emergence
from emergence_train.analysis.emergence.explanations import composition, verdict_of
from emergence_train.analysis.emergence.size import collapse
from emergence_train.analysis.emergence.table import task_metric
from emergence_train.analysis.results import Interval

STEPS = 4
SIZES = (100_000, 200_000, 400_000, 800_000, 1_600_000)
TOKENS = np.geomspace(1e6, 1e9, 16).round()
ITEMS = 800


def bits(rng: np.random.Generator, share: np.ndarray, together: float, items: int) -> np.ndarray:
    """(checkpoints, items, STEPS) whether a step is right, each with `share` (checkpoints,); in the part `together` of all items
    one coin decides all steps."""
    each = rng.random((len(share), items, STEPS)) < share[:, None, None]
    joint = rng.random((len(share), items, 1)) < share[:, None, None]
    return np.where(rng.random((len(share), items, 1)) < together, joint, each)


def truth(share: np.ndarray, together: float) -> float:
    """Explained by the product, of endless items: the whole is together x share + (1 - together) x share^STEPS."""
    product = share**STEPS
    whole = together * share + (1 - together) * product
    return float(1 - np.mean((whole - product) ** 2) / np.var(whole))


@pytest.mark.parametrize("together", [0.0, 0.3, 0.7])
@pytest.mark.parametrize("runs", [1, 4])
def test_interval_of_composition_holds_the_truth(together, runs):
    """100 tables of shares from counted items; steps rise as an arctangent."""
    rng, held, values = np.random.default_rng(1), [], []
    share = np.tile(0.5 + np.arctan(np.linspace(-1.5, 3, 10)) / np.pi, runs)
    for _ in range(100):
        interval = of_counts(bits(rng, share, together, 200), runs, rng)
        held.append(interval.low95 <= truth(share, together) <= interval.high95)
        values.append(interval.value)
    assert np.mean(held) >= 0.93
    assert np.median(values) == pytest.approx(truth(share, together), abs=0.02)


def of_counts(right: np.ndarray, runs: int, rng: np.random.Generator) -> Interval:
    counted = np.column_stack([right.all(2).mean(1), right.mean(1)])
    run = np.repeat(np.arange(runs), len(counted) // runs)
    return composition(counted, counted * (1 - counted) / right.shape[1], run, rng)


def test_independent_steps_are_not_part_of_an_explanation():
    """The truth is 1. With the sampling of items left in, in-part was the verdict of 187 of 200 such tables of five runs."""
    rng = np.random.default_rng(3)
    share = np.tile([0.3, 0.32, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6], 5)
    intervals = [of_counts(rng.random((40, 300, 5)) < share[:, None, None], 5, rng) for _ in range(100)]
    verdicts = Counter(verdict_of(interval) for interval in intervals)
    assert verdicts["in-part"] + verdicts["does-not"] <= 5 and verdicts["explains"] >= 50, verdicts
    assert np.mean([interval.high95 == 1 for interval in intervals]) >= 0.95


def test_items_that_stay_right_are_in_the_interval():
    """Each item has its own thresholds, of which some are shared by its steps: the same at all checkpoints of the one run."""
    rng, held = np.random.default_rng(5), []
    place = np.linspace(-2.5, 2.5, 20)

    def right(items: int) -> np.ndarray:
        shared, own = rng.standard_normal((items, 1)), rng.standard_normal((items, 8))
        return (np.sqrt(0.95) * shared + np.sqrt(0.05) * own) < place[:, None, None]

    many = right(100_000)
    whole, product = many.all(2).mean(1), many.mean(1).prod(1)
    known = 1 - np.mean((whole - product) ** 2) / np.var(whole)
    for _ in range(60):
        interval = of_counts(right(200), 1, rng)
        held.append(interval.low95 <= known <= interval.high95)
    assert np.mean(held) >= 0.87


def test_runs_that_differ_widen_the_interval():
    """Of 5 runs each has its own part of items whose steps come together: the share of all runs lies in the interval."""
    rng, held, over_items = np.random.default_rng(2), [], []
    share = 0.5 + np.arctan(np.linspace(-1.5, 3, 10)) / np.pi

    def counted(runs: int) -> np.ndarray:
        parts = [bits(rng, share, rng.beta(0.6, 1.2), 200) for _ in range(runs)]
        return np.concatenate([np.column_stack([right.all(2).mean(1), right.mean(1)]) for right in parts])

    many = counted(400)
    known = 1 - np.mean((many[:, 0] - many[:, 1:].prod(1)) ** 2) / np.var(many[:, 0])
    for _ in range(60):
        values = counted(5)
        run = np.repeat(np.arange(5), len(share))
        interval = composition(values, values * (1 - values) / 200, run, rng)
        alone = composition(values, values * (1 - values) / 200, run * 0, rng)
        held.append(interval.low95 <= known <= interval.high95)
        over_items.append(alone.low95 <= known <= alone.high95)
    assert np.mean(held) >= 0.9 > np.mean(over_items)


def rows(task: str, metric: str, value: np.ndarray, items: int = ITEMS, **keys) -> dict:
    chance = 0.0 if metric == "exact_match" else np.nan
    stderr = np.sqrt(value * (1 - value) / items) if metric != "answer_loglik" else 0.01
    given = {"task": task, "metric": metric, "value": value, "stderr": stderr, "items": items, "chance": chance}
    return given | {"higher_is_better": True, "unigram_loss": 6.0} | keys


def table(together: float, of: str = "loss", runs: tuple[int, ...] = SIZES) -> pd.DataFrame:
    """A task of steps that each have a threshold in the loss, or in the tokens whatever the size; a log-likelihood of its answers
    that is a straight line in the same."""
    rng, parts = np.random.default_rng(3), []
    for params in runs:
        loss = 2.2 + 600 / params**0.6 + 60 / TOKENS**0.25
        x = (3.4 - loss) / 0.7 if of == "loss" else (np.log10(TOKENS) - 7.4) / 1.0
        right = bits(rng, 0.02 + 0.9 * np.clip(x, 0, 1), together, ITEMS)
        base = {"run": f"r{params}", "params": params, "step": np.arange(1, 17), "tokens": TOKENS, "loss": loss}
        scores = [rows("chain", "exact_match", right.all(2).mean(1)), rows("chain", "answer_loglik", x - 4.0)]
        scores += [rows("chain", f"step_{k + 1}", right[:, :, k].mean(1)) for k in range(STEPS)]
        parts += [pd.DataFrame(base | score) for score in scores]
    return pd.concat(parts, ignore_index=True)


def explained(tmp_path, frame: pd.DataFrame) -> dict:
    frame.to_csv(tmp_path / "t.csv", index=False)
    result = analyze_emergence(tmp_path / "t.csv")
    assert {entry.metric for entry in result.explanations} <= {"exact_match"}
    assert next(task for task in result.tasks if task.metric == "exact_match").verdict == "emergent"
    return {entry.explanation: entry for entry in result.explanations}


def test_independent_steps_explain_the_jump(tmp_path):
    by = explained(tmp_path, table(0.0))
    assert list(by) == ["metric", "steps", "loss", "tokens", "compute"]
    assert by["steps"].verdict == "explains" and by["steps"].explained.value > 0.98
    assert by["metric"].verdict == "explains", by["metric"].evidence  # the log-likelihood is a straight line
    assert "4 steps scored by themselves at 80 checkpoints" in by["steps"].evidence


def test_steps_that_come_together_do_not(tmp_path):
    by = explained(tmp_path, table(1.0))
    assert by["steps"].explained.value < 0.5 and by["steps"].verdict != "explains", by["steps"].explained
    assert "above the product" in by["steps"].evidence


def test_loss_explains_where_the_loss_decides(tmp_path):
    """Two sizes whose thresholds are at one loss, and so at other numbers of tokens."""
    by = explained(tmp_path, table(0.0))
    assert by["loss"].verdict == "explains" and by["loss"].explained.value > 0.97
    assert by["tokens"].explained.value < by["loss"].explained.value - 0.02


def test_tokens_explain_where_tokens_decide():
    """Two sizes whose thresholds are at one number of tokens: one curve of tokens leaves less than one of loss."""
    frame = table(0.0, "tokens")
    shares = collapse(task_metric("", "chain", "exact_match", frame[frame["metric"] == "exact_match"]))
    assert shares.r2_tokens > 0.97 and shares.r2_loss < shares.r2_tokens - 0.02


def test_two_runs_are_too_few_for_a_verdict(tmp_path):
    """The shares are the same as with more, near 1; of two runs nothing is said of others."""
    by = explained(tmp_path, table(0.0, runs=(100_000, 1_000_000)))
    for name in ("loss", "compute"):
        assert by[name].explained.value > 0.8 and by[name].verdict == "open"
        assert by[name].explained.low95 is None and by[name].evidence.endswith("an interval needs 3 runs")
    assert by["steps"].explained.low95 is not None and "the interval is of items alone" in by["steps"].evidence


@pytest.mark.parametrize(
    ("ends", "verdict"),
    [
        ((0.81, 0.95), "explains"),
        ((0.79, 0.99), "in-part"),
        ((0.79, 1.0), "open"),
        ((0.49, 0.99), "open"),
        ((0.1, 0.51), "open"),
        ((0.1, 0.49), "does-not"),
        ((None, 0.99), "open"),
        ((None, None), "open"),
    ],
)
def test_a_verdict_is_of_the_interval(ends, verdict):
    assert verdict_of(Interval(0.9, *ends)) == verdict


def test_an_ability_of_some_runs_alone_has_explanations(tmp_path):
    """Two of five runs learn it, at losses at which the others do not: no verdict, but rows of explanations."""
    frame = table(0.0)
    dull = frame["params"].isin([SIZES[0], SIZES[1], SIZES[3]]) & ~frame["metric"].eq("answer_loglik")
    frame.loc[dull, "value"] = np.where(frame.loc[dull, "metric"].eq("exact_match"), 0.0, 0.02)
    frame.loc[frame["metric"].eq("exact_match"), "chance"] = 0.001
    frame.to_csv(tmp_path / "t.csv", index=False)
    result = analyze_emergence(tmp_path / "t.csv")
    assert next(task for task in result.tasks if task.metric == "exact_match").verdict == "not-identified"
    by = {entry.explanation: entry for entry in result.explanations}
    assert by["steps"].verdict == "explains" and by["loss"].verdict != "explains"


def test_nothing_is_said_of_what_was_not_measured(tmp_path):
    """One run: no curves; no steps and no continuous metric: no entry. A step alone is no composition."""
    frame = table(0.0, runs=SIZES[-1:])
    assert list(explained(tmp_path, frame)) == ["metric", "steps"]
    assert list(explained(tmp_path, frame[frame["metric"].isin(["exact_match", "step_1"])])) == []


def test_steps_at_other_checkpoints_are_not_compared(tmp_path):
    """Each step was scored at two checkpoints: too few, however many the whole has."""
    frame = table(0.0, runs=SIZES[-1:])
    kept = frame[~frame["metric"].str.startswith("step_") | frame["step"].isin([3, 14])]
    assert list(explained(tmp_path, kept)) == ["metric"]
