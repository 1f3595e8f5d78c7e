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
from emergence_train.evaluation.lm_eval_results import choice_rows, generation_settings, rows
from emergence_train.evaluation.suite import Suite
from emergence_train.parallel.mesh import data_parallel
from support import data_of

RECORDED = json.loads((Path(__file__).parent / "recorded" / "lm_eval_results.json").read_text())


def by_metric(name: str, results: dict) -> dict[str, dict]:
    return {row["metric"]: row for row in rows(results, name)}


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
    ours = {row["metric"]: row["value"] for row in choice_rows(name, RECORDED[name]["samples"][name])}
    assert all(ours[metric] == row["value"] for metric, row in scored.items() if metric in ours)  # acc_norm among them
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
    assert rows(results, "mymc") == rows(RECORDED["mymc"], "mymc")
    assert choice_rows("mymc", RECORDED["mygen2"]["samples"]["mygen2"]) == []


def multiple_choice(name: str, targets: list, values: list[list[float]], choices: list[str], **config) -> dict:
    """As lm-eval returns a task of multiple choice; acc by its rule: an index, a text of a choice, or a list of indices."""
    samples = []
    for number, (target, lls) in enumerate(zip(targets, values)):
        gold = choices.index(target) if isinstance(target, str) and target in choices else target
        samples.append(
            {
                "doc_id": number,
                "target": target,
                "arguments": [("question", f" {choice}") for choice in choices],
                "filtered_resps": [(value, False) for value in lls],
                "acc": float(np.argmax(lls) in gold if isinstance(gold, list) else np.argmax(lls) == gold),
            }
        )
    acc = [sample["acc"] for sample in samples]
    scores = {"alias": name, "sample_len": len(acc), "acc,none": np.mean(acc), "acc_stderr,none": np.std(acc, ddof=1)}
    return {
        "results": {name: scores},
        "group_subtasks": {},
        "higher_is_better": {name: {"acc": True}},
        "configs": {name: {"output_type": "multiple_choice", "target_delimiter": " "} | config},
        "samples": {name: samples},
    }


P = np.array([0.5, 0.3, 0.2])  # of the choices


@pytest.mark.parametrize(
    "targets, right",
    [
        (["3", "1"], (0, 1)),
        ([2, 0], (2, 0)),
        (["2", "3"], (2, 0)),
        ([True, False], (1, 0)),
        (list(np.array([2, 1])), (2, 1)),
        ([np.True_, 2.0], (1, 2)),
    ],
)
def test_a_target_is_an_index_or_a_text(targets, right):
    """The text "2" is the third choice, the number 2 is the third place, as in lm-eval's task.py; true equals the place 1."""
    scored = by_metric("t", multiple_choice("t", targets, [np.log(P)] * 2, ["3", "1", "2"]))
    assert scored["correct_choice_prob"]["value"] == pytest.approx(P[list(right)].mean())
    assert scored["answer_loglik"]["value"] == pytest.approx(np.log(P)[list(right)].mean())
    assert scored["acc"]["value"] == np.mean([place == 0 for place in right])


@pytest.mark.parametrize("target", [-1, 2, "\u00b2", "none of them", None, []])
def test_without_a_right_answer_there_is_no_chance(target):
    """No label, one beyond the choices, a text that is none of them: nothing is known of the right choice."""
    scored = by_metric("t", multiple_choice("t", [target] * 2, [[-1.0, -2.0]] * 2, ["a", "b"]))
    assert set(scored) == {"acc"} and np.isnan(scored["acc"]["chance"])
    assert (
        by_metric("t", multiple_choice("t", ["\u00b2"] * 2, [[-1.0, -2.0]] * 2, ["a", "\u00b2"]))["brier"]["items"] == 2
    )


def test_chance_of_several_right_answers_is_their_share():
    """Uniform guesses among four: one and three right ones are guessed at 1/4 and 3/4."""
    values = [[-1.0, -2.0, -3.0, -4.0]] * 4
    results = multiple_choice("t", [[0], [1, 2, 3], [0, 1], [2, 3]], values, list("abcd"))
    scored = by_metric("t", results)
    assert set(scored) == {"acc"} and scored["acc"]["chance"] == pytest.approx((1 + 3 + 2 + 2) / 16)
    guesses = np.random.default_rng(0).integers(0, 4, (4, 20_000))
    targets = [sample["target"] for sample in results["samples"]["t"]]
    drawn = np.mean([np.isin(guess, target) for guess, target in zip(guesses, targets)])
    assert scored["acc"]["chance"] == pytest.approx(drawn, abs=0.01)


def test_a_task_that_scores_itself_has_no_chance():
    """As truthfulqa_mc2: the target is 0, its own process_results takes the mass of several."""
    results = multiple_choice("t", [0, 0], [[-1.0, -2.0, -3.0]] * 2, list("abc"), process_results="def f(): ...")
    scored = by_metric("t", results)
    assert set(scored) == {"acc"} and np.isnan(scored["acc"]["chance"])


def test_each_metric_has_the_chance_of_its_own():
    """No guess gives a text; of lm-eval's brier_score the chance and error are ours, for it is the same sum."""
    results = multiple_choice("t", [0, 1], [np.log(P)] * 2, list("abc"))
    results["results"]["t"] |= {"exact_match,none": 0.0, "f1,none": 0.3, "acc_bytes,none": 0.5}
    results["results"]["t"] |= {"brier_score,none": (0.38 + 0.78) / 2, "brier_score_stderr,none": "N/A"}
    scored = by_metric("t", results)
    chances = {metric: row["chance"] for metric, row in scored.items()}
    assert chances["acc"] == chances["acc_bytes"] == pytest.approx(1 / 3) and chances["exact_match"] == 0
    assert np.isnan(chances["f1"]) and chances["brier_score"] == pytest.approx(2 / 3)
    assert scored["brier_score"] == scored["brier"] | {"metric": "brier_score"}
    assert scored["brier_score"]["stderr"] == pytest.approx((0.78 - 0.38) / 2)


@pytest.fixture
def parts() -> dict:
    """Two tasks: `two` of four items with two choices, `three` of two with three."""
    two = multiple_choice("two", [0, 0, 0, 1], [np.log([0.8, 0.2])] * 4, list("ab"))
    three = multiple_choice("three", [1, 2], [np.log(P)] * 2, list("abc"))
    return {key: two[key] | three[key] for key in two}


@pytest.mark.parametrize("by_size, share", [(True, 4 / 6), (False, 1 / 2)])
def test_a_group_weighs_its_tasks_as_lm_eval_does(parts, by_size, share):
    """By items or alike: value, chance and the continuous metrics."""
    expected = {"acc": (0.75, 0.0), "correct_choice_prob": (0.65, 0.25)}
    acc = 0.75 * share
    parts["results"]["group"] = {"alias": "group", "sample_len": 6, "acc,none": acc, "acc_stderr,none": 0.1}
    scored = {row["metric"]: row for row in rows(parts, "group", {"acc": by_size})}
    for metric, (two, three) in expected.items():
        assert scored[metric]["value"] == pytest.approx(share * two + (1 - share) * three)
        assert scored[metric]["chance"] == pytest.approx(share / 2 + (1 - share) / 3)
    of_two, of_three = np.std([0.8] * 3 + [0.2], ddof=1) / 2, np.std(P[1:], ddof=1) / np.sqrt(2)
    error = np.hypot(share * of_two, (1 - share) * of_three)
    assert scored["correct_choice_prob"]["stderr"] == pytest.approx(error) and scored["acc"]["stderr"] == 0.1
    assert {row["items"] for row in scored.values()} == {6} and {row["task"] for row in scored.values()} == {"group"}


def test_a_groups_chance_is_unknown_where_a_tasks_is(parts):
    parts["results"]["group"] = {"acc,none": 0.5}
    parts["configs"]["three"]["process_results"] = "def f(): ..."
    scored = by_metric("group", parts)
    assert set(scored) == {"acc"} and np.isnan(scored["acc"]["chance"]) and scored["acc"]["items"] == 6


def test_a_groups_metric_that_no_task_has_is_left_out(parts):
    """lm-eval 0.4.13 gives none; another version's results are read."""
    parts["results"]["group"] = {"acc,none": 0.5, "exact_match,strict": 0.25}
    scored = by_metric("group", parts)
    assert scored["acc"]["items"] == 6 and "exact_match_strict" not in scored


@pytest.mark.parametrize("own", [{}, {"group": {"alias": "group", "name": "group"}}])
def test_a_tag_has_the_rows_of_its_tasks(parts, own):
    """lm-eval returns nothing for a tag, and no score for a group without aggregates."""
    parts["results"] |= own
    scored = rows(parts, "group")
    assert {row["task"] for row in scored} == {"group/two", "group/three"}
    for task in ("two", "three"):
        assert [row | {"task": task} for row in scored if row["task"] == f"group/{task}"] == rows(parts, task)


@pytest.mark.parametrize(
    "settings, expected",
    [
        ({"until": ["a"], "max_gen_toks": 3}, (3, ("a",))),
        ({"until": "a", "max_new_tokens": 3}, (3, ("a",))),
        ({"max_tokens": "3", "do_sample": False, "temperature": 1.0}, (3, ())),  # do_sample: false is greedy
        ({"max_completion_tokens": 3, "max_gen_toks": None, "until": None}, (3, ())),
        ({"max_completion_tokens": 9, "max_tokens": 8, "max_new_tokens": 7, "max_gen_toks": 6}, (6, ())),
        ({"do_sample": None, "temperature": 0.0}, (256, ())),
    ],
)
def test_generation_is_limited_by_any_of_lm_eval_s_names(settings, expected):
    assert generation_settings(settings) == expected


@pytest.mark.parametrize("settings", [{"do_sample": True}, {"temperature": 0.7}, {"do_sample": True, "temperature": 0}])
def test_sampling_is_refused(settings):
    with pytest.raises(InputError, match="only greedy generation is supported"):
        generation_settings(settings)


@pytest.fixture
def suite(data_path, monkeypatch):
    """Makes a suite over a stand-in for the adapter, which scores the shots."""

    def run_tasks(lm, name, shots, limit, include_path):
        return [{"task": task, "metric": "acc", "value": shots} for task in (name, f"{name}/part")]

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
    assert [(row["task"], row["value"]) for row in scored] == [
        ("mymc", None),
        ("mymc/part", None),
        ("mc4", 4),
        ("mc4/part", 4),
    ]


@pytest.mark.parametrize("first", [{"task": "copying", "name": "mymc"}, {"task": "lm-eval/mymc", "shots": 0}])
def test_a_name_that_another_task_has_is_refused(suite, first):
    """Both would write rows of one key, which no analysis reads."""
    with pytest.raises(InputError, match="'mymc' is listed twice; give one of them a name of its own"):
        suite(first, {"task": "lm-eval/mymc", "shots": 4})
    suite(first, {"task": "lm-eval/mymc", "shots": 4, "name": "mc4"})
