"""A task's continuous metrics inherit the able runs of its accuracy where those stand apart in them too, and only there."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from emergence_train.analysis.emergence import analyze_emergence
from emergence_train.analysis.emergence.analyze import find
from emergence_train.analysis.emergence.inherited import rise, stand_apart, with_able_runs
from emergence_train.analysis.emergence.table import task_metric


def ladder(loglik: np.ndarray, able: int, seed: int = 0) -> pd.DataFrame:
    """Evaluations of runs of which the first `able` pass at the end, with log-likelihoods (runs, 12)."""
    rng, parts = np.random.default_rng(seed), []
    for run, values in enumerate(loglik):
        x = np.linspace(0, 1, loglik.shape[1])
        share = 0.25 + 0.7 * (run < able) * (x > 0.7)
        about = {"run": f"r{run}", "params": 10**6, "step": np.arange(1, len(x) + 1), "loss": 5 - x}
        parts.append(pd.DataFrame(about).assign(acc=rng.binomial(200, share) / 200, loglik=values))
    frame = pd.concat(parts, ignore_index=True).assign(task="t", items=200, higher_is_better=True)
    frame["tokens"] = frame["step"] * 1000
    acc = frame.assign(metric="acc", value=frame["acc"], stderr=0.03, chance=0.25)
    other = frame.assign(metric="answer_loglik", value=frame["loglik"], stderr=0.2, chance=np.nan)
    return pd.concat([acc, other]).drop(columns=["acc", "loglik"])


def findings(frame: pd.DataFrame):
    return tuple(find(task_metric("", "t", name, rows)) for name, rows in frame.groupby("metric"))


def levels(runs: int, seed: int = 1, spread: float = 0.02) -> np.ndarray:
    return -14 + spread * np.random.default_rng(seed).normal(size=(runs, 1)) + np.zeros(12)


def test_able_runs_are_inherited_where_they_stand_apart(tmp_path):
    values = levels(6)
    values[:2, 9:] += 0.5
    ladder(values, able=2).to_csv(tmp_path / "t.csv", index=False)
    acc, loglik = analyze_emergence(tmp_path / "t.csv").tasks
    assert (acc.metric, loglik.metric) == ("acc", "answer_loglik")
    assert acc.verdict == "not-identified" and loglik.verdict == "not-identified"
    assert loglik.reason.startswith("2 of 6 runs are far above chance by the accuracy, and stand apart")


@pytest.mark.parametrize("change", [0.0, -0.5])
def test_a_metric_that_knows_nothing_inherits_nothing(change):
    values = levels(6)
    values[:2, 9:] += change
    acc, loglik = with_able_runs(findings(ladder(values, able=2)))
    assert acc.verdict.able_runs == 2 and loglik.verdict.able_runs == 0
    assert change or loglik.verdict.name == "at-chance"


def test_no_able_run_leaves_every_finding_as_it_was():
    before = findings(ladder(levels(6, spread=0.2), able=0))
    assert with_able_runs(before) == before


def test_one_other_run_cannot_tell():
    values = levels(2)
    values[:1, 9:] += 0.5
    acc, loglik = findings(ladder(values, able=1))
    assert loglik.verdict.name == "at-chance" and acc.verdict.name != "at-chance"
    acc = replace(acc, verdict=replace(acc.verdict, able=frozenset({0})))
    verdict = with_able_runs((acc, loglik))[1].verdict
    assert verdict.name == "not-identified" and "too few runs" in verdict.reason and verdict.able_runs == 0


@pytest.mark.parametrize("others", [4, 2, 1])
def test_a_metric_without_the_able_runs_is_left_as_it_was(others):
    """The able runs were scored by the accuracy alone: of the others' log-likelihood they say nothing."""
    frame = ladder(levels(2 + others, spread=0.2), able=2)
    frame = frame[(frame["metric"] == "acc") | ~frame["run"].isin(["r0", "r1"])]
    acc, loglik = findings(frame)
    acc = replace(acc, verdict=replace(acc.verdict, able=frozenset({0, 1})))
    loglik = replace(loglik, verdict=replace(loglik.verdict, name="at-chance", able=frozenset()))
    assert with_able_runs((acc, loglik)) == (acc, loglik)


def test_the_level_of_the_test_is_kept_on_skewed_scatter():
    """Against runs that scatter by a lognormal either way: of 400 ladders without a difference at most 5%, give or take."""
    rng, called = np.random.default_rng(3), 0
    base = findings(ladder(levels(6), able=2))[1]
    for number in range(400):
        own = (1 if number % 2 else -1) * rng.lognormal(0, 0.8, 6)
        rows = base.task.rows
        y = -14 + 0.3 * own[rows.run] + 0.05 * rng.normal(size=len(rows.y))
        drawn = replace(base, task=replace(base.task, rows=replace(rows, y=y)))
        called += bool(stand_apart(drawn, frozenset({0, 1})))
    assert called <= 20 + 2 * np.sqrt(400 * 0.05 * 0.95)


def by_tokens(gain: float, seed: int, runs: int = 4, noise: float = 0.02) -> pd.DataFrame:
    """Runs at losses of their own that all pass at the eighth of 12 checkpoints; the log-likelihood gains `gain` there."""
    rng, step = np.random.default_rng(seed), np.tile(np.arange(12), runs)
    run, passes = np.repeat(range(runs), 12), step >= 8
    frame = pd.DataFrame({"run": [f"r{code}" for code in run], "params": 10**7, "step": step + 1, "task": "t"})
    frame = frame.assign(tokens=(step + 1) * 1000, loss=3.2 - 0.25 * run - 0.02 * step, higher_is_better=True)
    acc = rng.binomial(1000, np.where(passes, 0.85, 0.25)) / 1000
    loglik = -2 + gain * passes + rng.normal(0, noise, len(step))
    return pd.concat(
        [
            frame.assign(metric="acc", value=acc, stderr=0.012, items=1000, chance=0.25),
            frame.assign(metric="answer_loglik", value=loglik, stderr=0.02, items=1000, chance=np.nan),
        ]
    )


@pytest.mark.parametrize("seed", range(4))
def test_noise_is_at_chance_where_every_run_rises(seed):
    acc, loglik = with_able_runs(findings(by_tokens(0.0, seed)))
    assert acc.verdict.able_runs == 4 and acc.verdict.rose
    assert loglik.verdict.name == "at-chance" and loglik.verdict.able_runs == 0


def test_every_run_that_rises_is_inherited_where_it_rises_too():
    acc, loglik = findings(by_tokens(0.5, 0))
    loglik = replace(loglik, verdict=replace(loglik.verdict, name="at-chance"))  # as where the curve is drawn flat
    verdict = with_able_runs((acc, loglik))[1].verdict
    assert verdict.name == "not-identified" and verdict.able_runs == 4
    assert verdict.reason == "4 of 4 runs are far above chance by the accuracy, and rise in answer_loglik too"


def test_the_gain_of_a_single_run_cannot_be_told():
    acc, loglik = findings(by_tokens(0.0, 0, runs=1))
    acc = replace(acc, verdict=replace(acc.verdict, able=frozenset({0}), rose=True))
    verdict = with_able_runs((acc, loglik))[1].verdict
    assert verdict.name == "not-identified" and "too few runs" in verdict.reason


def test_the_level_of_the_test_of_gains_is_kept():
    """On drifts of a random walk, whose first and last checkpoints differ far beyond their own scatter."""
    rng, base = np.random.default_rng(5), findings(by_tokens(0.0, 0))[1]
    called = 0
    for _ in range(400):
        y = -2 + 0.1 * rng.normal(size=(4, 12)).cumsum(1).ravel()
        drawn = replace(base, task=replace(base.task, rows=replace(base.task.rows, y=y)))
        called += bool(rise(drawn, frozenset(range(4))))
    assert called <= 20 + 2 * np.sqrt(400 * 0.05 * 0.95)
