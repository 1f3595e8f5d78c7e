"""A task's continuous metrics inherit the able runs of its accuracy where those stand apart in them too, and only there."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from emergence_train.analysis.emergence import analyze_emergence
from emergence_train.analysis.emergence.analyze import find
from emergence_train.analysis.emergence.inherited import stand_apart, with_able_runs
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
    assert (
        verdict.name == "not-identified" and "too few of them or of others" in verdict.reason and verdict.able_runs == 0
    )


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
