"""Results as the source of each harness writes them, with scores that are known; facts of the formats, none of their code."""

import json

import pandas as pd
import pytest

from emergence_train.analysis.scores import ScoreOptions, with_scores
from emergence_train.analysis.scores.harness import _scores_of
from emergence_train.errors import InputError
from emergence_train.recorder import tables

STEPS = (1000, 2000)
VALUES = {
    (step, task): 0.3 + step / 10_000 + k / 10 for step in STEPS for k, task in enumerate(("arc_easy:mc", "piqa"))
}


def read(folder) -> tuple[pd.DataFrame, list[str]]:
    (folder / "loss.csv").write_text("step,loss\n500,3.5\n2500,2.5\n")
    options = ScoreOptions(params={"": 70}, tokens_per_step=10, loss=str(folder / "loss.csv"))
    known, notes = with_scores([folder / "results"], options)
    return tables.read(tables.EVALUATIONS, known).set_index(["step", "task", "metric"]).sort_index(), notes


def olmes_record(step: int, task: str, value: float) -> dict:
    return {
        "task_name": task.partition(":")[0],
        "task_hash": "a1",
        "model_hash": "b2",
        "model_config": {"model": "m-70m", "revision": f"step{step}", "model_path": None, "model_type": "hf"},
        "task_config": {"task_name": task.partition(":")[0], "metadata": {"alias": task}},
        "compute_config": {"batch_size": "4"},
        "processing_time": 12.5,
        "num_instances": 500,
        "beaker_info": {},
        "metrics": {"primary_score": value, "acc_raw": value, "acc_per_char": value / 2},
        "task_idx": 0,
    }


@pytest.mark.parametrize("files", ["all", "tasks", "summary"])
def test_what_olmes_writes_is_read_once(files, tmp_path):
    """allenai/olmes, oe_eval/run_eval.py (a copy; the repository itself was not to be had).

    The same scores stand in metrics-all.jsonl, in a file a task, and in metrics.json, whose tasks are `task` and whose metrics
    lie among other keys, without the model: the directory names the step.
    """
    for step in STEPS:
        folder = tmp_path / "results" / "m-70m" / f"step{step}"
        folder.mkdir(parents=True)
        records = [olmes_record(step, task, value) for (at, task), value in VALUES.items() if at == step]
        summary = [
            {"task": r["task_name"], **r["metrics"], "num_instances": 500, "task_config": r["task_config"]}
            for r in records
        ]
        if files != "tasks":
            text = {"all_primary_scores": ["piqa: 0.4"], "metrics": summary, "model_config": "model=m-70m"}
            (folder / "metrics.json").write_text(json.dumps(text))
        for k, record in enumerate(records if files != "summary" else []):
            name = f"task-{k:03d}-{record['task_name']}"
            (folder / f"{name}-metrics.json").write_text(json.dumps(record))
            (folder / f"{name}-predictions.jsonl").write_text(
                json.dumps({"doc_id": 0, "metrics": {"acc_raw": 1}}) + "\n"
            )
        if files == "all":
            (folder / "metrics-all.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    frame, notes = read(tmp_path)
    assert set(frame["run"]) == {"m-70m"} and len(frame) == 8 and set(frame["items"]) == {500}
    for (step, task), value in VALUES.items():
        assert frame.loc[(step, task, "acc_raw"), "value"] == value
        assert frame.loc[(step, task, "acc_per_char"), "value"] == value / 2
    assert not any("come again" in note for note in notes)


def lighteval_results(step: int) -> dict:
    scores = {f"{task}|0": {"acc": v, "acc_stderr": 0.01} for (at, task), v in VALUES.items() if at == step}
    return {
        "config_general": {
            "lighteval_sha": "?",
            "max_samples": None,
            "start_time": 1.5,
            "model_config": {"model_name": "me/m-70m", "revision": f"step{step}", "batch_size": 4},
            "model_name": "me/m-70m",
        },
        "results": scores | {"mmlu:_average|0": {"acc": 0.5}, "all": {"acc": 0.9, "acc_stderr": 0.1}},
        "versions": {"piqa|0": 0},
        "config_tasks": {},
        "summary_tasks": {},
        "summary_general": {"truncated": 0},
    }


def test_what_lighteval_writes_is_read(tmp_path):
    """huggingface/lighteval, src/lighteval/logging/evaluation_tracker.py and info_loggers.py, 3fd1526."""
    for step in STEPS:
        folder = tmp_path / "results" / "results" / "me" / "m-70m"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"results_2026-11-0{step // 1000}T10-00-00.json").write_text(
            json.dumps(lighteval_results(step), indent=2)
        )
    frame, notes = read(tmp_path)
    assert frame["value"].to_dict() == {(step, task, "acc"): value for (step, task), value in VALUES.items()}
    assert set(frame["stderr"]) == {0.01} and "lighteval, 2 metrics of m-70m, step 1000" in notes[0]
    empty = lighteval_results(1000) | {"results": {"all": {"acc": 0.5}}}
    (tmp_path / "x.json").write_text(json.dumps(empty))
    with pytest.raises(InputError, match="its results have no metrics that are numbers; give results_"):
        with_scores([tmp_path / "x.json"], ScoreOptions())


def test_an_error_is_found_by_its_metrics_whole_name():
    """lm-eval writes a filter behind a comma and the error before it; a name of lighteval may have a comma of its own."""
    values = {"pass@k:k=1,n=8": 0.5, "pass@k:k=1,n=8_stderr": 0.05, "acc,none": 0.4, "acc_stderr,none": 0.01}
    expected = {"pass@k:k=1,n=8": {"value": 0.5, "stderr": 0.05}, "acc,none": {"value": 0.4, "stderr": 0.01}}
    assert dict(_scores_of(values)) == expected
