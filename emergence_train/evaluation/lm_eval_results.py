"""Rows of metrics from what lm-eval returns; without lm-eval itself."""

import numpy as np

from emergence_train.evaluation.items import Item, Task
from emergence_train.evaluation.metrics import choice_metrics

CONTINUOUS = ("correct_choice_prob", "brier", "answer_loglik", "answer_bits_per_byte")


def rows(results: dict, names: list[str]) -> list[dict]:
    """Rows, as of metrics.choice_metrics, from what simple_evaluate returns: lm-eval's own metrics, and for multiple choice also
    the continuous ones of the same log-likelihoods."""
    scores = []
    for name in names:
        values = results["results"][name]
        # lm-eval logs an item for each filter of the task: the first is kept
        logged: dict[tuple, dict] = {}
        for task in _leaves(name, results.get("group_subtasks", {})):
            for sample in results["samples"].get(task, []):
                logged.setdefault((task, sample["doc_id"]), sample)
        samples = list(logged.values())
        choices = choice_rows(name, samples)
        chance = choices[0]["chance"] if choices else 0.0
        for key, value in values.items():
            metric, _, filter_name = key.partition(",")
            if not isinstance(value, (int, float)) or metric.endswith("_stderr") or metric in ("alias", "sample_len"):
                continue
            label = metric if filter_name in ("none", "") else f"{metric}_{filter_name}"
            stderr = values.get(f"{metric}_stderr,{filter_name}")
            scores.append(
                {
                    "task": name,
                    "metric": label,
                    "value": float(value),
                    "stderr": float(stderr) if isinstance(stderr, (int, float)) else np.nan,
                    "items": len(samples),
                    "chance": chance if metric.startswith(("acc", "exact_match", "em")) else np.nan,
                    "higher_is_better": bool(results["higher_is_better"].get(name, {}).get(metric, True)),
                }
            )
        scores += [row for row in choices if row["metric"] in CONTINUOUS]
    return scores


def _leaves(name: str, groups: dict[str, list[str]]) -> list[str]:
    """The tasks of a group (mmlu has 57), or the task itself."""
    return [leaf for task in groups[name] for leaf in _leaves(task, groups)] if groups.get(name) else [name]


def choice_rows(name: str, samples: list[dict]) -> list[dict]:
    """Our metrics of a multiple-choice task from lm-eval's samples; [] for other kinds of task."""
    items, values = [], []
    for sample in samples:
        answers = sample["filtered_resps"]
        if "acc_mutual_info" in sample:  # then the choices come once more, without their context
            answers = answers[: len(answers) // 2]
        if len(answers) < 2 or not all(isinstance(a, (tuple, list)) and len(a) == 2 for a in answers):
            return []
        arguments = list(sample["arguments"].values()) if isinstance(sample["arguments"], dict) else sample["arguments"]
        pairs = [(a["arg_0"], a["arg_1"]) if isinstance(a, dict) else tuple(a[:2]) for a in arguments[: len(answers)]]
        likelihoods = np.array([float(a[0]) for a in answers])
        answer = _right(sample, [text for _, text in pairs], likelihoods)
        if answer is None:
            return []
        items.append(Item("", tuple(text for _, text in pairs), answer, tuple(context for context, _ in pairs)))
        values.append(likelihoods)
    return choice_metrics(Task(name, tuple(items)), values) if items else []


def _right(sample: dict, texts: list[str], likelihoods: np.ndarray) -> int | None:
    """Index of the right choice: the target has its number or its text. Where choices differ in the context instead (WinoGrande)
    the target is their common continuation, and of two choices the right one follows from lm-eval's score of the likeliest."""
    target = str(sample["target"])
    if target.isdigit() and int(target) < len(texts):
        return int(target)
    stripped = [text.strip() for text in texts]
    if stripped.count(target.strip()) == 1:
        return stripped.index(target.strip())
    likeliest = int(likelihoods.argmax())
    if sample.get("acc") == 1:
        return likeliest
    return 1 - likeliest if sample.get("acc") == 0 and len(texts) == 2 else None
