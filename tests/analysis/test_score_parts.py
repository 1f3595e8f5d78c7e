"""Scores of one run, step and task that differ in shots, subsets, seeds or data: each a curve of its own, none lost."""

import itertools
import json

import numpy as np
import pandas as pd
import pytest

from emergence_train.analysis.emergence import metric_names
from emergence_train.analysis.scores import options_of, with_scores
from emergence_train.errors import InputError

STEPS = [1000, 2000, 3000]
PLAIN = {"format": "auto", "run": "m", "params": ["70e6"], "tokens_per_step": 1000, "columns": [], "loss": None}


def scores(*paths, **options) -> tuple[pd.DataFrame, list[str]]:
    (frame,), notes = with_scores(list(paths), options_of(**{**PLAIN, **options}))
    return getattr(frame, "frame", frame.rows if hasattr(frame, "rows") else frame), notes


def written(path, rows):
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


def value(step: int, kind: object) -> float:
    return round(0.3 + step / 1e5 + (sum(map(ord, str(kind))) % 97) / 1000, 6)


def series(frame: pd.DataFrame, *by: str) -> dict:
    return {key if len(by) > 1 else key[0]: rows["value"].tolist() for key, rows in frame.groupby(list(by))}


TASKS = {
    "num_fewshot": {0: "arc_easy:0shot", 25: "arc_easy:25shot"},
    "n-shot": {0: "arc_easy:0shot", 5: "arc_easy:5shot"},
    "dataset": {"squad": "arc_easy:squad", "triviaqa": "arc_easy:triviaqa"},
    "subset": {"law": "arc_easy:law", "bio": "arc_easy:bio"},
    "split": {"test": "arc_easy:test", "validation": "arc_easy:validation"},
    "prompt_variant": {0: "arc_easy:0", 1: "arc_easy:1"},
}


@pytest.mark.parametrize("column", TASKS)
@pytest.mark.parametrize("turn", [False, True])
def test_what_tells_tasks_apart_is_in_their_names(column, turn, tmp_path):
    rows = [
        {"step": s, "loss": 3.0, "task": "arc_easy", column: kind, "acc": value(s, kind)}
        for kind in TASKS[column]
        for s in STEPS
    ]
    rows = sorted(rows, key=lambda row: row["step"]) if turn else rows
    frame, notes = scores(written(tmp_path / "x.csv", rows))
    assert series(frame, "task") == {task: [value(s, kind) for s in STEPS] for kind, task in TASKS[column].items()}
    assert set(frame["run"]) == {"m"} and set(frame["chance"]) == {0.25} and not any("again" in note for note in notes)
    frame, _ = scores(written(tmp_path / "x.csv", [row for row in rows if row[column] == next(iter(TASKS[column]))]))
    assert set(frame["task"]) == {"arc_easy"}


@pytest.mark.parametrize("column, named", [("seed", "seed{}"), ("trial", "trial{}"), ("data", "{}"), ("recipe", "{}")])
def test_what_tells_runs_apart_is_in_their_names(column, named, tmp_path):
    kinds = [0, 1] if named != "{}" else ["c4", "dclm"]
    rows = [
        {"step": s, "loss": 3.0, "task": "piqa", column: kind, "acc": value(s, kind)} for s in STEPS for kind in kinds
    ]
    frame, notes = scores(written(tmp_path / "x.csv", rows))
    assert series(frame, "run") == {f"m-{named.format(kind)}": [value(s, kind) for s in STEPS] for kind in kinds}
    assert f"a run for each {column!r}" in notes
    if named == "{}":
        assert sorted(set(frame["data"])) == kinds
    frame, _ = scores(written(tmp_path / "x.csv", [{"model": f"k{row[column]}", **row} for row in rows]), run=None)
    assert sorted(set(frame["run"])) == [f"k{kind}" for kind in kinds]  # the model says it already


def test_sizes_data_and_seeds_are_runs(tmp_path):
    """DataDecide's columns."""
    rows = [
        {
            "params": size,
            "data": data,
            "task": "piqa",
            "step": s,
            "seed": seed,
            "acc": value(s, size + data + seed),
            "loss": 3.0,
        }
        for size, data, s, seed in itertools.product(("60M", "150M"), ("C4", "DCLM"), STEPS, ("default", "small aux 2"))
    ]
    frame, _ = scores(written(tmp_path / "x.csv", rows), params=[])
    expected = {
        (f"m-{size}-{data}-{seed}", data): [value(s, size + data + seed) for s in STEPS]
        for size, data, seed in itertools.product(("60M", "150M"), ("C4", "DCLM"), ("default", "small aux 2"))
    }
    assert series(frame, "run", "data") == expected
    with pytest.raises(InputError, match="run is not said by the results; give run: --run NAME"):
        scores(tmp_path / "x.csv", run=None, params=[])


def test_other_columns_that_tell_scores_apart_are_refused(tmp_path):
    rows = [
        {
            "step": s,
            "loss": 3.0,
            "task": "piqa",
            "optimizer": k,
            "acc": value(s, k),
            "date": f"2026-01-0{1 + (k == 'muon')}",
        }
        for k in ("adamw", "muon")
        for s in STEPS
    ]
    path = written(tmp_path / "x.csv", rows)
    with pytest.raises(
        InputError, match=r"differ by 'optimizer' \(adamw, muon\); give --column run=optimizer, or keep"
    ):
        scores(path)
    frame, _ = scores(path, run=None, columns=["run=optimizer"])
    assert series(frame, "run") == {k: [value(s, k) for s in STEPS] for k in ("adamw", "muon")}
    frame, notes = scores(written(path, [{k: v for k, v in row.items() if k != "optimizer"} for row in rows]))
    assert series(frame, "run") == {"m": [value(s, "muon") for s in STEPS]}  # made again later
    assert any("3 scores are of a run, step, task and metric that come again later" in note for note in notes)


def lm_eval(step, shots, acc):
    return {
        "results": {"arc_easy": {"acc,none": acc, "acc_stderr,none": 0.01}, "piqa": {"acc,none": 0.5}},
        "n-shot": {"arc_easy": shots, "piqa": 0},
        "config": {"model_args": f"pretrained=org/k-70m,revision=step{step}"},
    }


def lighteval(step, shots, acc):
    return {
        "config_general": {"model_name": "org/k-70m", "model_config": {"revision": f"step-{step}"}},
        "results": {f"arc_easy|{shots}": {"acc": acc}, "piqa|0|0": {"acc": 0.5}, "all": {"acc": 0.1}},
    }


@pytest.mark.parametrize("write", [lm_eval, lighteval])
def test_shots_of_a_harness_are_in_the_tasks_names(write, tmp_path):
    (tmp_path / "loss.csv").write_text("step,loss\n1000,3.5\n2000,3.0\n")
    files = [(1000, 0, 0.4), (2000, 25, 0.6)]
    for k, file in enumerate(files):
        (tmp_path / f"{k}.json").write_text(json.dumps(write(*file)))
    frame, notes = scores(tmp_path / "0.json", tmp_path / "1.json", run=None, loss=str(tmp_path / "loss.csv"))
    assert series(frame, "task") == {"arc_easy:0shot": [0.4], "arc_easy:25shot": [0.6], "piqa": [0.5, 0.5]}
    assert "'num_fewshot' tells tasks apart" in notes


def test_shots_that_differ_between_runs_part_the_tasks(tmp_path):
    rows = [
        {"model": f"m{k}", "step": s, "loss": 3.0, "task": "piqa", "shots": k, "acc": 0.5}
        for k in (0, 5)
        for s in STEPS
    ]
    frame, _ = scores(written(tmp_path / "x.csv", rows), run=None)
    assert set(zip(frame["run"], frame["task"])) == {("m0", "piqa:0shot"), ("m5", "piqa:5shot")}


def test_filters_of_a_printed_table_are_in_the_metrics(tmp_path):
    text = "|Tasks|Version|Filter|n-shot|Metric|Value|\n|---|--:|---|--:|---|--:|\n"
    text += (
        "|piqa|1|none|0|acc|0.6|\n|gsm8k|3|flexible-extract|5|exact_match|0.01|\n| | |strict-match|5|exact_match|0.0|\n"
    )
    (tmp_path / "loss.csv").write_text("step,loss\n1000,3.5\n2000,3.0\n")
    (tmp_path / "step1000.md").write_text(text)
    frame, _ = scores(tmp_path / "step1000.md", loss=str(tmp_path / "loss.csv"))
    expected = {"acc": [0.6], "exact_match_flexible-extract": [0.01], "exact_match_strict-match": [0.0]}
    assert series(frame, "metric") == expected


OLD = {"piqa": {"acc": 0.62, "acc_stderr": 0.0113, "acc_norm": 0.63, "acc_norm_stderr": 0.0112}, "wsc": {"ppl": 23.1}}


@pytest.mark.parametrize(
    "arguments, name",
    [
        ("pretrained=org/k-160m,revision=step512", "a.json"),
        ({"load": "/x"}, "k-160m_step512.json"),
        ("", "k-160m_step512.json"),
    ],
)
def test_results_of_an_old_lm_eval_are_read(arguments, name, tmp_path):
    """Before 0.4: no filters in the keys."""
    content = {
        "results": OLD,
        "versions": {"piqa": 0},
        "config": {"model": "gpt2", "model_args": arguments, "num_fewshot": 0},
    }
    (tmp_path / name).write_text(json.dumps(content))
    (tmp_path / "loss.csv").write_text("step,loss\n0,10.5\n1000,3.0\n")
    frame, notes = scores(tmp_path / name, run=None, loss=str(tmp_path / "loss.csv"))
    assert set(frame["run"]) == {"k-160m"} and set(frame["step"]) == {512} and "lm-eval" in notes[0]
    assert dict(zip(frame["metric"], frame["stderr"])) == pytest.approx(
        {"acc": 0.0113, "acc_norm": 0.0112, "ppl": float("nan")}, nan_ok=True
    )
    (tmp_path / "step0.json").write_text(json.dumps({**content, "config": {"model_args": ""}}))
    frame, _ = scores(tmp_path / "step0.json", loss=str(tmp_path / "loss.csv"))
    assert set(frame["step"]) == {0}


@pytest.mark.parametrize("errors", ["arc_easy/acc_stderr", "arc_easy/acc_se", "arc_easy_acc_stderr"])
def test_errors_of_some_tasks_alone_are_read(errors, tmp_path):
    own = errors.rpartition("_")[0]
    rows = [
        {"step": s, "loss": 3.0, own: 0.3, errors: 0.01, "piqa/acc" if "/" in own else "piqa_acc": 0.5} for s in STEPS
    ]
    frame, _ = scores(written(tmp_path / "x.csv", rows))
    assert frame.loc[frame["task"] == "arc_easy", "stderr"].tolist() == [0.01] * 3
    assert frame.loc[frame["task"] == "piqa", "stderr"].isna().all() and set(frame["chance"]) == {0.25, 0.5}


@pytest.mark.parametrize("form", ["step{}", "ckpt-{}", "stage1-step{}-tokens20B", "{}", "checkpoint_{}"])
@pytest.mark.parametrize(
    "column, given", [("step", []), ("_step", []), ("revision", []), ("checkpoint", []), ("point", ["step=point"])]
)
def test_steps_of_checkpoints_names_are_read(form, column, given, tmp_path):
    rows = [{column: form.format(s), "loss": 3.0, "task": "piqa", "acc": 0.5} for s in STEPS]
    frame, notes = scores(
        written(tmp_path / "x.csv", rows), columns=given, tokens_per_step=None if "20B" in form else 1000
    )
    assert frame["step"].tolist() == STEPS and "no numbers" not in notes[0]
    assert set(frame["tokens"]) == ({20 * 10**9} if "20B" in form else {1000 * s for s in STEPS})


def test_a_revision_that_is_no_step_says_none(tmp_path):
    rows = [{"revision": "main", "loss": 3.0, "task": "piqa", "acc": 0.5}]
    frame, _ = scores(written(tmp_path / "step3000.csv", rows))
    assert frame["step"].tolist() == [3000]


def test_a_last_score_that_is_shorter_counts(tmp_path):
    values = [0.2512, 0.3125, 0.4217, 0.5213, 0.7311, 1.0]
    rows = "".join(f"\n{s},3.0,arc_easy,acc,{v}" for s, v in zip(range(1000, 7000, 1000), values))
    (tmp_path / "x.csv").write_text("step,loss,task,metric,value" + rows)
    assert scores(tmp_path / "x.csv")[0]["value"].tolist() == values


def test_a_dataset_that_names_the_task_parts_nothing(tmp_path):
    rows = [
        {"step": s, "loss": 3.0, "task": t, "dataset": t, "acc": value(s, t)} for t in ("piqa", "boolq") for s in STEPS
    ]
    frame, _ = scores(written(tmp_path / "x.csv", rows))
    assert series(frame, "run", "task") == {("m", t): [value(s, t) for s in STEPS] for t in ("piqa", "boolq")}


AGAIN = {
    "duration_s": lambda k: 14.5 + k,
    "n_correct": lambda k: 20 + k,
    "batch_size": lambda k: 8 if k < 3 else 16,
    "run_id": lambda k: f"job{k}",
    "note": lambda k: f"n{k}",
}


@pytest.mark.parametrize("column", AGAIN)
@pytest.mark.parametrize("steps", [STEPS[-1:], STEPS[1:]])
def test_a_score_that_was_made_again_counts_as_its_last(column, steps, tmp_path):
    scored = [(s, value(s, 0)) for s in STEPS] + [(s, value(s, 1)) for s in steps]
    rows = [
        {"step": s, "loss": 3.0, "task": "qa", column: AGAIN[column](k), "acc": v} for k, (s, v) in enumerate(scored)
    ]
    frame, notes = scores(written(tmp_path / "x.csv", rows))
    assert series(frame, "run", "task") == {("m", "qa"): [*dict(scored).values()]}
    assert any(f"{len(steps)} scores are of a run, step, task and metric that come again" in note for note in notes)


def test_items_of_a_task_are_no_tasks(tmp_path):
    rows = [
        {"step": s, "loss": 3.0, "task": "qa", "prompt": f"What is {k} and one?", "acc": float(s > 100 * k)}
        for k in range(30)
        for s in STEPS
    ]
    assert set(scores(written(tmp_path / "x.csv", rows))[0]["task"]) == {"qa"}
    with pytest.raises(InputError, match="differ by 'prompt' .* or keep the rows of one"):
        scores(written(tmp_path / "x.csv", [row for row in rows if " 1" in row["prompt"] or " 2 " in row["prompt"]]))


def test_a_revision_of_digits_is_no_step(tmp_path):
    rows = [
        {"model": f"m-step{s}-70m", "revision": revision, "loss": 3.0, "task": "qa", "acc": value(s, 0)}
        for s, revision in zip(STEPS, (1234567, 7654321, 2345678))
    ]
    frame, _ = scores(written(tmp_path / "x.csv", rows), run=None)
    assert series(frame, "run") == {"m-70m": [value(s, 0) for s in STEPS]} and frame["step"].tolist() == STEPS


LABELS = {
    "accuracy": "acc",
    "length-normalized accuracy": "len_norm",
    "CE loss": "ce_loss",
    "BPB": "bpb",
    "PMI-DC accuracy": "pmi_dc",
    "soft loss": "soft",
    "log soft loss": "soft_log",
    "F1 score": "f1",
}


@pytest.mark.parametrize("again", ["", " v2"])
def test_olmo_cores_labels_are_metrics(again, tmp_path):
    """eval/downstream/TASK (LABEL) as OLMo-core logs them, each with its own direction, noise and chance."""
    columns = {
        f"eval/downstream/arc_easy_test_mc_5shot_fast ({label}{again})": [value(step, label) for step in STEPS]
        for label in LABELS
    }
    rows = {"_step": STEPS, "throughput/total tokens": [1e6 * step for step in STEPS], "val_loss": [4.0, 3.5, 3.2]}
    frame, notes = scores(written(tmp_path / "history.csv", rows | columns), tokens_per_step=None)
    suffix = "_v2" if again else ""
    assert series(frame, "metric") == {
        metric + suffix: [value(step, label) for step in STEPS] for label, metric in LABELS.items()
    }
    assert set(frame["task"]) == {"arc_easy_test_mc_5shot_fast"}
    assert frame["tokens"].tolist() == [1e6 * step for step in STEPS] * len(LABELS)
    chance = frame.groupby("metric")["chance"].first()
    for metric in LABELS.values():
        right = metric in ("acc", "len_norm", "pmi_dc")
        assert metric_names.is_right(metric + suffix) == right
        assert metric_names.lower_is_better(metric + suffix) == (metric in ("ce_loss", "bpb"))
        assert metric_names.continuous(metric + suffix) == (metric in ("ce_loss", "bpb", "soft", "soft_log"))
        assert chance[metric + suffix] == 0.25 if right else np.isnan(chance[metric + suffix])


def test_other_words_in_brackets_are_no_metric(tmp_path):
    rows = {"step": STEPS, "loss": [4.0, 3.5, 3.2], "piqa_acc": [0.5, 0.6, 0.7], "piqa (total time)": [1, 2, 3]}
    frame, notes = scores(written(tmp_path / "x.csv", rows))
    assert series(frame, "task", "metric") == {("piqa", "acc"): [0.5, 0.6, 0.7]}
    assert any("left out: piqa (total time)" in note for note in notes)
