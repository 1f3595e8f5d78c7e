"""Explanations of a threshold, on simulated tasks whose explanation was chosen; shares and intervals against known truth."""

import numpy as np
import pandas as pd
import pytest

from emergence_train.analysis.emergence import analyze_emergence
from emergence_train.analysis.emergence.explanations import composition
from emergence_train.analysis.emergence.size import collapse
from emergence_train.analysis.emergence.table import task_metric

STEPS = 4
SIZES = (100_000, 1_000_000)
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
def test_interval_of_composition_holds_the_truth(together):
    """100 tables of shares from counted items; steps rise as an arctangent."""
    rng, held, values = np.random.default_rng(1), [], []
    share = 0.5 + np.arctan(np.linspace(-1.5, 3, 10)) / np.pi
    for _ in range(100):
        right = bits(rng, share, together, 200)
        counted = np.column_stack([right.all(2).mean(1), right.mean(1)])
        interval = composition(counted, counted * (1 - counted) / 200, rng)
        held.append(interval.low95 <= truth(share, together) <= interval.high95)
        values.append(interval.value)
    assert np.mean(held) >= 0.93
    assert np.mean(values) == pytest.approx(truth(share, together), abs=0.04)


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
    assert "4 steps scored by themselves at 32 checkpoints" in by["steps"].evidence


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


def test_nothing_is_said_of_what_was_not_measured(tmp_path):
    """One run: no curves; no steps and no continuous metric: no entry. A step alone is no composition."""
    frame = table(0.0, runs=SIZES[1:])
    assert list(explained(tmp_path, frame)) == ["metric", "steps"]
    assert list(explained(tmp_path, frame[frame["metric"].isin(["exact_match", "step_1"])])) == []


def test_steps_at_other_checkpoints_are_not_compared(tmp_path):
    """Each step was scored at two checkpoints: too few, however many the whole has."""
    frame = table(0.0, runs=SIZES[1:])
    kept = frame[~frame["metric"].str.startswith("step_") | frame["step"].isin([3, 14])]
    assert list(explained(tmp_path, kept)) == ["metric"]
