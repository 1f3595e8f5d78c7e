"""Thresholds between runs of one checkpoint each: of the loss, or of size, tokens or a recipe; forms that no fit contains."""

import numpy as np
import pandas as pd
import pytest

from emergence_train.analysis.emergence import analyze_emergence
from emergence_train.analysis.emergence.analyze import find
from emergence_train.analysis.emergence.confounding import shares_by_name
from emergence_train.analysis.emergence.table import task_metric

SIZES = (2e8, 1e9, 8e9)


def runs(rng: np.random.Generator, spread: float = 0.25, each: int = 16, checkpoints: int = 1) -> pd.DataFrame:
    """Recipes whose losses differ by `spread` nats, at three sizes, with twenty to a hundred tokens a parameter."""
    params = np.repeat(SIZES, each)
    tokens = params * rng.choice([20, 50, 100], len(params))
    loss = 1.8 + 406 * params**-0.34 + 410 * tokens**-0.28 + spread * rng.normal(size=len(params))
    own = {"run": [f"r{k}" for k in range(len(params))], "params": params, "tokens": tokens, "loss": loss}
    frame = pd.DataFrame(own).loc[np.repeat(np.arange(len(params)), checkpoints)].reset_index(drop=True)
    step = np.tile(np.arange(1, checkpoints + 1), len(params))
    left = 1 - step / checkpoints
    frame = frame.assign(step=step, tokens=(frame["tokens"] * step / checkpoints).round(), loss=frame["loss"] + left)
    return frame.astype({"params": int, "tokens": int})


def scored(frame: pd.DataFrame, share: np.ndarray, rng: np.random.Generator, items: int = 2000) -> pd.DataFrame:
    value = rng.binomial(items, np.clip(share + 0.01 * rng.normal(size=len(frame)), 0, 1)) / items
    about = {"task": "t", "metric": "acc", "items": items, "stderr": 0.01, "chance": 0.25, "higher_is_better": True}
    return frame.assign(value=value, unigram_loss=7.4, **about)


def judged(frame: pd.DataFrame):
    task = task_metric("", "t", "acc", frame)
    return find(task).verdict, task.notes


def by_loss(frame: pd.DataFrame) -> np.ndarray:
    """A quarter sine from the middle of the range on."""
    x = (frame["loss"].max() - frame["loss"]) / np.ptp(frame["loss"])
    return (0.25 + 0.5 * np.sin(np.pi / 2 * np.clip((x - 0.5) / 0.5, 0, 1))).to_numpy()


def largest_alone(frame: pd.DataFrame, rng: np.random.Generator) -> np.ndarray:
    return 0.25 + 0.4 * (frame["params"] > 5e9).to_numpy()


def tokens_alone(frame: pd.DataFrame, rng: np.random.Generator) -> np.ndarray:
    late = np.log(frame["tokens"] / frame["tokens"].max())
    return 0.25 + 0.5 * np.clip(1 + late / 1.5, 0, 1).to_numpy()


def lucky_recipes(frame: pd.DataFrame, rng: np.random.Generator) -> np.ndarray:
    """None of the small, a few of the middle and most of the large runs, whatever their loss."""
    often = frame["params"].map(dict(zip(map(int, SIZES), (0, 0.2, 0.8)))).to_numpy(float)
    return 0.25 + 0.5 * (rng.random(len(frame)) < often)


@pytest.mark.parametrize("decides", [largest_alone, tokens_alone, lucky_recipes])
def test_no_threshold_where_the_loss_does_not_decide(decides):
    """Of five tables each; before, the largest size alone was emergent in most."""
    names = []
    for seed in range(5):
        rng = np.random.default_rng([seed, 11])
        frame = runs(rng)
        verdict, _ = judged(scored(frame, decides(frame, rng), rng))
        names.append(verdict.name)
        if verdict.confounded:
            assert verdict.onset is None and verdict.begins_by is None and not len(verdict.onset_draws)
            assert "shares of the variance that one curve explains: size" in verdict.reason
    assert "emergent" not in names


@pytest.mark.parametrize("checkpoints", [1, 3, 8])
def test_thresholds_of_the_loss_stay(checkpoints):
    names = []
    for seed in range(4):
        rng = np.random.default_rng([seed, 12])
        frame = runs(rng, each=16 if checkpoints == 1 else 4, checkpoints=checkpoints)
        names.append(judged(scored(frame, by_loss(frame), rng))[0].name)
    assert names.count("emergent") >= 3


def test_loss_and_compute_that_go_together_have_a_note():
    """Of one recipe: the threshold is one of the loss and of the compute alike."""
    rng = np.random.default_rng(3)
    params = np.geomspace(1e8, 1e10, 24).astype(int)
    loss = 1.8 + 1400 * params**-0.34 + 0.01 * rng.normal(size=24)
    frame = pd.DataFrame({"run": [f"r{k}" for k in range(24)], "params": params, "tokens": 20 * params, "loss": loss})
    verdict, notes = judged(scored(frame.assign(step=100), by_loss(frame), rng))
    assert verdict.name == "emergent" and any(
        note.startswith("these runs of few checkpoints do not tell whether the loss or ") for note in notes
    )


def test_what_does_not_vary_or_is_unknown_is_no_rival():
    """A size of 0 is one that is not known, in some runs or in all; of two runs the loss had a rival in a constant size."""
    rng = np.random.default_rng(0)
    frame = runs(rng)
    frame = scored(frame, by_loss(frame), rng)
    unknown = frame.assign(params=frame["params"].where(frame["value"] > 0.4, 0))
    constant = frame.assign(params=10**9, tokens=10**10)
    assert {*shares_by_name(task_metric("", "t", "acc", unknown))} == {"tokens", "loss"}
    assert {*shares_by_name(task_metric("", "t", "acc", constant))} == {"loss"}
    two = runs(rng, each=2, checkpoints=4)[:12].assign(params=10**9, tokens=10**9)
    verdict, notes = judged(scored(two, by_loss(two), rng))
    assert verdict.name == "emergent" and not any("few checkpoints" in note for note in notes)


def test_checkpoints_of_each_run_need_no_such_comparison():
    """As the reason's remedy says: the same recipes, in eight checkpoints each."""
    rng = np.random.default_rng(5)
    frame = runs(rng, each=4, checkpoints=8)
    verdict, notes = judged(scored(frame, by_loss(frame), rng))
    assert verdict.name == "emergent" and not any("few checkpoints" in note for note in notes)


def test_a_confounded_threshold_has_explanations_and_no_forecast(tmp_path):
    rng = np.random.default_rng([1, 11])
    frame = runs(rng)
    scored(frame, largest_alone(frame, rng), rng).to_csv(tmp_path / "t.csv", index=False)
    result = analyze_emergence(tmp_path / "t.csv")
    (task,) = result.tasks
    assert task.verdict == "not-identified" and task.eta is None and task.plateau is None and not result.abilities
    assert task.probabilities["emergent"] > 0.5 and task.reason.startswith("emergent (probability")
    assert {entry.explanation for entry in result.explanations} == {"loss", "tokens", "compute"}
