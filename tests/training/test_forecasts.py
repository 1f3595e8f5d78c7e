"""Ability forecasts during training, from the thresholds of an earlier analysis."""

import json

import numpy as np
import pytest
import yaml

from emergence_train.analysis.emergence.ability_watch import (
    Threshold,
    abilities_ahead,
    format_abilities,
    read_thresholds,
)
from emergence_train.errors import InputError
from emergence_train.tracking.points import name_of, points, view
from support import command, metrics


def result(family="v", eta=None) -> dict:
    return {
        "tasks": [
            {"family": family, "task": "jump", "metric": "acc", "eta": eta},
            {"family": family, "task": "flat", "metric": "acc", "eta": None},
        ]
    }


def test_the_forecast_holds_the_true_crossing_and_narrows(tmp_path):
    """Losses by a known power law at a constant rate: the threshold 3.08 is reached at a step that a formula gives."""
    plan = {"training": {"tokens": 2_000_000_000, "schedule": {"kind": "constant", "lr": 1e-3}}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(plan))
    rng = np.random.default_rng(0)
    truth = 100_000 * 2000 * ((3.08 - 2.4) / 1.2) ** (-1 / 0.45)
    threshold = Threshold("jump", "acc", 3.08, 3.06, 3.10)
    width = []
    for last in (1500, 4500):
        steps = np.unique(np.round(np.geomspace(200, last, 16)).astype(int))
        losses = {int(s): float(2.4 + 1.2 * (s / 2000) ** -0.45 + rng.normal(0, 0.002)) for s in steps}
        abilities = abilities_ahead([threshold], losses, 100_000, tmp_path)
        assert abilities == abilities_ahead([threshold], losses, 100_000, tmp_path)
        ability = abilities["jump/acc"]
        latest = ability.tokens.high95 or np.inf  # none: perhaps not before the run's end
        assert ability.status == "expected" and ability.tokens.low95 < truth < latest, (ability, truth)
        assert ability.probability > 0.9 and "jump/acc at" in format_abilities(abilities)
        width.append(np.log(latest / ability.tokens.low95))
    assert width[1] < width[0]
    never = abilities_ahead([Threshold("jump", "acc", 1.5, 1.4, 1.6)], losses, 100_000, tmp_path)
    assert never["jump/acc"].tokens.value is None and "not before its end" in format_abilities(never)
    reached = abilities_ahead([Threshold("jump", "acc", 4.5, 4.45, 4.55)], losses, 100_000, tmp_path)["jump/acc"]
    crossed = 100_000 * 2000 * ((4.5 - 2.4) / 1.2) ** (-1 / 0.45)
    assert reached.status == "reached" and reached.tokens.value == pytest.approx(crossed, rel=0.15)
    assert abilities_ahead([threshold], {200: 5.7, 300: 5.2}, 100_000, tmp_path) == {}  # too young: no forecast


def test_draws_of_a_threshold_have_its_interval():
    draws = Threshold("t", "acc", 3.0, 2.9, 3.3).draws(np.random.default_rng(0))
    assert np.quantile(draws, [0.025, 0.5, 0.975]) == pytest.approx([2.9, 3.0, 3.3], abs=0.04)


def test_thresholds_are_read_or_refused_in_a_line(tmp_path):
    path = tmp_path / "result.json"
    eta = {"value": 3.0, "low95": 2.9, "high95": 3.1}
    path.write_text(json.dumps(result(eta=eta)))
    assert read_thresholds(path, "v") == [Threshold("jump", "acc", 3.0, 2.9, 3.1)]
    for content, said_ in (
        (json.dumps(result("other", eta)), "do not compare"),
        ("{}", "is not a result.json"),
        ("[1", "is not a result.json"),
    ):
        path.write_text(content)
        with pytest.raises(InputError, match=said_):
            read_thresholds(path, "v")
    with pytest.raises(InputError, match="no such file"):
        read_thresholds(tmp_path / "nowhere.json", "v")
    path.write_text(json.dumps(result()))
    assert read_thresholds(path, "v") == []


def test_training_forecasts_them_at_every_checkpoint(config_file, tmp_path):
    path = tmp_path / "result.json"
    path.write_text(json.dumps(result("", {"value": 5.2, "low95": 5.15, "high95": 5.25})))
    done = command("train", str(config_file), f"abilities={path}", "checkpoints.every_tokens=512")
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs" / "run"
    rows = metrics(run, "abilities")
    lines = [line for line in done.stdout.splitlines() if line.startswith("abilities")]
    assert rows and len(lines) == len(rows) and "jump/acc" in lines[0]
    iid = {row["tokens"]: row["loss"]["iid"] for row in metrics(run, "validation")}
    last = rows[-1]
    assert last["step"] == 12
    assert last["value"]["jump/acc/probability"] == pytest.approx(float(iid[last["tokens"]] < 5.2), abs=0.1)
    shown = view(last)
    assert shown["tokens"] == last["tokens"] and shown["abilities/jump/acc/tokens"] == last["value"]["jump/acc/tokens"]
    open_end = view(
        {"kind": "abilities", "step": 1, "tokens": 2, "value": {"a/acc/probability": 0.1, "a/acc/tokens": None}}
    )
    assert open_end == {"step": 1, "tokens": 2, "abilities/a/acc/probability": 0.1}
    sent = [point for point in points(run) if name_of(point) == "abilities/jump/acc/probability"]
    assert [values["tokens"] for values in sent] == [row["tokens"] for row in rows]

    wrong = command("train", str(config_file), "abilities=nowhere.json", "name=none")
    assert wrong.returncode == 2 and len(wrong.stderr.splitlines()) == 1 and "no such file" in wrong.stderr
    path.write_text(json.dumps(result("")))
    none = command("train", str(config_file), f"abilities={path}", "name=none")
    assert none.returncode == 0 and "no task has a threshold there" in none.stdout
    assert not metrics(tmp_path / "runs" / "none", "abilities")
