"""Forecasts of abilities: when a run that is not finished will have one."""

import numpy as np
import pandas as pd
import yaml

from emergence_train.analysis.emergence import analyze_emergence
from emergence_train.analysis.emergence.forecast import LossDraws, crossing
from emergence_train.analysis.results import as_json
from emergence_train.recorder import tables


def test_an_unfinished_run_has_an_ability_forecast(tmp_path):
    """Three finished runs and one at 30% of its plan, losses by a known law: the forecast covers the true crossing."""
    rng = np.random.default_rng(0)
    total, eta, directories, truth = 20_000, 3.08, [], {}
    for name, params, share in (("s", 10**7, 1), ("m", 3 * 10**7, 1), ("l", 10**8, 1), ("xl", 3 * 10**8, 0.3)):
        floor = 2.2 + 0.5 * (1e7 / params) ** 0.3
        truth[name] = 100_000 * 2000 * ((eta - floor) / 1.2) ** (-1 / 0.45)
        step = np.unique(np.round(np.geomspace(200, total, 24)).astype(int))
        step = step[step <= share * total]
        loss = floor + 1.2 * (step / 2000) ** -0.45 + rng.normal(0, 0.003, len(step))
        frame = pd.DataFrame({"run": name, "params": params, "step": step, "tokens": step * 100_000, "loss": loss})
        value = rng.binomial(5000, 0.25 + 0.6 * np.maximum(eta - loss, 0)) / 5000
        frame = frame.assign(
            task="t",
            metric="acc",
            value=value,
            stderr=0.006,
            items=5000,
            chance=0.25,
            higher_is_better=True,
            unigram_loss=7.0,
        )
        directories.append(tmp_path / name)
        tables.write(tables.EVALUATIONS, frame, tmp_path / name / "evaluations" / "a.parquet", vocabulary="v")
        plan = {"training": {"tokens": total * 100_000, "schedule": {"kind": "constant", "lr": 1e-3}}}
        (tmp_path / name / "config.yaml").write_text(yaml.safe_dump(plan))
    result = as_json(analyze_emergence(directories))
    assert result["tasks"][0]["eta"]["low95"] < eta < result["tasks"][0]["eta"]["high95"]
    runs = {run["run"]: run for run in result["abilities"][0]["runs"]}
    assert [runs[name]["status"] for name in ("s", "m", "l", "xl")] == [
        "not-before-the-end",
        "reached",
        "reached",
        "expected",
    ]
    for name in ("m", "l", "xl"):
        assert runs[name]["tokens"]["low95"] < truth[name] < runs[name]["tokens"]["high95"], (name, runs[name], truth)
    assert truth["s"] > 2e9 and runs["s"]["probability"] < 0.5 and runs["xl"]["planned_end_known"]


def test_a_crossing_before_the_first_row_has_no_lower_end():
    """A run first saved below the threshold crossed it at or before that row; one saved above, between its rows."""
    tokens, rng = np.array([1e9, 2e9, 3e9]), np.random.default_rng(0)
    below = crossing(LossDraws("r", 1, tokens, np.array([2.8, 2.6, 2.5]), True), np.array([4.0]), rng)
    assert below.status == "reached"
    assert (below.tokens.value, below.tokens.low95, below.tokens.high95) == (1e9, 0.0, 1e9)
    above = crossing(LossDraws("r", 1, tokens, np.array([4.5, 3.5, 2.5]), True), np.array([4.0]), rng).tokens
    assert above.low95 == above.value == above.high95 == round(1e9 * np.sqrt(2))


def test_a_partly_censored_crossing_has_an_open_lower_end():
    """A tenth of the thresholds lie above the first row's loss."""
    eta = np.r_[np.full(100, 4.6), np.linspace(3.6, 4.4, 900)]
    draws = LossDraws("r", 1, np.array([1e9, 2e9]), np.array([4.5, 3.5]), True)
    tokens = crossing(draws, eta, np.random.default_rng(0)).tokens
    assert tokens.low95 == 0.0 and 1e9 < tokens.value < tokens.high95 < 2e9
