"""What lm-eval 0.4.13 returned (recorded/lm_eval_results.json: eight items, without examples), without lm-eval.

`mymc` has choices of three and four; `mymi` is the same with acc_mutual_info; `mygen2` generates and has two filters.
"""

import copy
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from emergence_train import evaluation
from emergence_train.config import TaskConfig
from emergence_train.data.dataset import Dataset
from emergence_train.errors import InputError
from emergence_train.evaluation.lm_eval_results import choice_rows, rows
from emergence_train.evaluation.suite import Suite
from emergence_train.parallel.mesh import data_parallel
from support import data_of

RECORDED = json.loads((Path(__file__).parent / "recorded" / "lm_eval_results.json").read_text())


def by_metric(name: str, results: dict) -> dict[str, dict]:
    return {row["metric"]: row for row in rows(results, [name])}


@pytest.mark.parametrize("name", ["mymc", "mymi"])
def test_chance_and_continuous_metrics_are_those_by_hand(name):
    """Softmax over the choices under the context, by the choices of the task; requests without context are no choices."""
    scored = by_metric(name, RECORDED[name])
    shares, briers, chances, logs = [], [], [], []
    for sample in RECORDED["mymc"]["samples"]["mymc"]:
        values = np.array([value for value, _ in sample["filtered_resps"]])
        p = np.exp(values) / np.exp(values).sum()
        shares.append(p[sample["target"]])
        briers.append(((np.eye(len(p))[sample["target"]] - p) ** 2).sum())
        chances.append(1 / len(p))
        logs.append(values[sample["target"]])
    assert {1 / 3, 1 / 4} == set(chances)
    for metric, value, chance in (
        ("correct_choice_prob", np.mean(shares), np.mean(chances)),
        ("brier", np.mean(briers), 1 - np.mean(chances)),
        ("answer_loglik", np.mean(logs), np.nan),
    ):
        assert scored[metric]["value"] == pytest.approx(value, rel=1e-6)
        assert scored[metric]["chance"] == pytest.approx(chance, nan_ok=True)
    assert scored["acc"]["value"] == RECORDED[name]["results"][name]["acc,none"]
    assert {row["items"] for row in scored.values()} == {8}
    extra = {"mymc": "acc_norm", "mymi": "acc_mutual_info"}[name]
    assert scored[extra]["chance"] == scored["acc"]["chance"] == pytest.approx(np.mean(chances))


def test_items_of_several_filters_count_once():
    results = RECORDED["mygen2"]
    assert len(results["samples"]["mygen2"]) == 16
    scored = by_metric("mygen2", results)
    assert set(scored) == {"exact_match_strict-match", "exact_match_flexible-extract"}
    assert [row["items"] for row in scored.values()] == [8, 8]


def test_choices_of_several_filters_count_once():
    results = copy.deepcopy(RECORDED["mymc"])
    results["samples"]["mymc"] += [sample | {"filter": "second"} for sample in results["samples"]["mymc"]]
    assert rows(results, ["mymc"]) == rows(RECORDED["mymc"], ["mymc"])
    assert choice_rows("mymc", RECORDED["mygen2"]["samples"]["mygen2"]) == []


def test_a_groups_items_are_its_tasks_together():
    """Their items have the same numbers."""
    both = {name: RECORDED[name] for name in ("mymc", "mymi")}
    results = {
        "results": {"group": {"acc,none": 0.5}},
        "group_subtasks": {"group": list(both)},
        "higher_is_better": {},
        "samples": {name: result["samples"][name] for name, result in both.items()},
    }
    scored = by_metric("group", results)
    assert scored["acc"]["items"] == scored["brier"]["items"] == 16
    assert scored["brier"]["value"] == pytest.approx(by_metric("mymc", RECORDED["mymc"])["brier"]["value"])


@pytest.fixture
def suite(data_path, monkeypatch):
    """Makes a suite over a stand-in for the adapter, which scores the shots."""

    def run_tasks(lm, names, shots, limit, include_path):
        return [{"task": name, "metric": "acc", "value": shots} for name in names]

    stand_in = SimpleNamespace(reach=lambda *given: None, EmergenceLM=lambda *given: None, run_tasks=run_tasks)
    monkeypatch.setitem(sys.modules, "emergence_train.evaluation.lm_eval_adapter", stand_in)
    monkeypatch.setattr(evaluation, "lm_eval_adapter", stand_in, raising=False)
    dataset = Dataset(data_of(data_path), 1, verify=False)
    return lambda *wanted: Suite([TaskConfig(**keys) for keys in wanted], dataset, 32)


def test_a_name_in_the_tables_is_the_tasks_own(suite):
    task = {"task": "lm-eval/mymc"}
    scored, _ = suite(task, task | {"name": "mc4", "shots": 4}).score(
        torch.nn.Identity(), data_parallel(0, 1, 0, torch.device("cpu"))
    )
    assert [(row["task"], row["value"]) for row in scored] == [("mymc", None), ("mc4", 4)]


@pytest.mark.parametrize("first", [{"task": "copying", "name": "mymc"}, {"task": "lm-eval/mymc", "shots": 0}])
def test_a_name_that_another_task_has_is_refused(suite, first):
    """Both would write rows of one key, which no analysis reads."""
    with pytest.raises(InputError, match="'mymc' is listed twice; give one of them a name of its own"):
        suite(first, {"task": "lm-eval/mymc", "shots": 4})
    suite(first, {"task": "lm-eval/mymc", "shots": 4, "name": "mc4"})
