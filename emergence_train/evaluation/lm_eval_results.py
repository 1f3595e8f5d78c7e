"""Rows of metrics from what lm-eval returns, and its generation settings; without lm-eval itself."""

from collections.abc import Iterator, Mapping

import numpy as np

from emergence_train.errors import InputError
from emergence_train.evaluation.items import Item, Task
from emergence_train.evaluation.metrics import choice_metrics

CONTINUOUS = ("correct_choice_prob", "brier", "answer_loglik", "answer_bits_per_byte")
OF_CHOICES = ("acc", "acc_norm", "acc_bytes", "acc_mutual_info")  # right by the likeliest choice
OF_TEXTS = {"loglikelihood": "acc", "generate_until": "exact_match", "multiple_choice": "exact_match"}  # chance 0
LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # lm-eval's names, the first first
NEW_TOKENS = 256


def generation_settings(settings: dict) -> tuple[int, tuple[str, ...]]:
    """The most tokens to generate and the stop strings, as lm-eval's normalize_gen_kwargs. Raises InputError for sampling."""
    sample = settings.get("do_sample")
    if sample or (sample is None and settings.get("temperature", 0)):
        raise InputError(f"lm-eval asks for sampling ({settings}); only greedy generation is supported")
    until = settings.get("until") or []
    most = next((settings[name] for name in LIMITS if settings.get(name) is not None), NEW_TOKENS)
    return int(most), (until,) if isinstance(until, str) else tuple(until)


def rows(results: dict, name: str, by_size: Mapping[str, bool] | None = None) -> list[dict]:
    """Rows, as of metrics.choice_metrics, from what simple_evaluate returns for one name: lm-eval's own metrics, and for multiple
    choice also the continuous ones of the same log-likelihoods.

    A group has lm-eval's aggregates; `by_size` says of each of them whether its tasks count by their items or alike. A tag, or a
    group without aggregates, has the rows of its tasks, NAME/TASK.
    """
    tasks = {task: _of_task(task, results) for task in results["samples"]}
    if name in tasks:
        return tasks[name]
    own = list(_scores(results["results"].get(name, {})))
    if not own:
        return [row | {"task": f"{name}/{row['task']}"} for scored in tasks.values() for row in scored]
    by_size = by_size or {}
    scores = []
    for metric, label, given in own:
        parts = [row for scored in tasks.values() for row in scored if row["metric"] == label]
        if not parts:  # of another version of lm-eval: no task has it
            continue
        scores.append(_mean(parts, by_size.get(metric, True)) | given | {"task": name})
    for metric in CONTINUOUS:
        parts = [row for scored in tasks.values() for row in scored if row["metric"] == metric]
        if len(parts) == len(tasks):
            scores.append(_mean(parts, all(by_size.values())) | {"task": name})
    return scores


def _mean(parts: list[dict], by_size: bool) -> dict:
    """The row of a group from its tasks', by their items or alike; what a task lacks (chance, stderr) the group lacks too."""
    items = np.array([row["items"] for row in parts])
    weights = items / items.sum() if by_size else np.full(len(parts), 1 / len(parts))
    value, chance, stderr = (np.array([row[key] for row in parts]) for key in ("value", "chance", "stderr"))
    return parts[0] | {
        "value": float(weights @ value),
        "stderr": float(np.sqrt(weights**2 @ stderr**2)),
        "items": int(items.sum()),
        "chance": float(weights @ chance),
    }


def _scores(values: dict) -> Iterator[tuple[str, str, dict[str, float]]]:
    """(metric, its name in the tables, value and standard error) of each number that lm-eval returns for a task."""
    for key, value in values.items():
        metric, _, filter_name = key.partition(",")
        if not isinstance(value, (int, float)) or metric.endswith("_stderr") or metric in ("alias", "sample_len"):
            continue
        stderr = values.get(f"{metric}_stderr,{filter_name}")
        given = {"value": float(value), "stderr": float(stderr) if isinstance(stderr, (int, float)) else np.nan}
        yield metric, metric if filter_name in ("none", "") else f"{metric}_{filter_name}", given


def _of_task(name: str, results: dict) -> list[dict]:
    config = results["configs"][name]
    logged: dict[int, dict] = {}
    for sample in results["samples"][name]:  # one for each filter of the task: the first is kept
        logged.setdefault(sample["doc_id"], sample)
    samples = list(logged.values())
    # What is right in a task that scores its answers itself is not known here.
    kind = None if "process_results" in config else config.get("output_type")
    delimiter = config.get("target_delimiter", " ")
    continuous = (
        {row["metric"]: row for row in choice_rows(name, samples, delimiter)} if kind == "multiple_choice" else {}
    )
    chances = _chances(kind, samples, delimiter)
    scores = []
    for metric, label, given in _scores(results["results"][name]):
        about = {
            "task": name,
            "metric": label,
            "items": len(samples),
            "chance": chances.get(metric, np.nan),
            "higher_is_better": bool(results["higher_is_better"].get(name, {}).get(metric, True)),
        }
        if metric == "brier_score" and "brier" in continuous:  # the same, and lm-eval gives no standard error
            about, given = continuous["brier"] | {"metric": label}, {"value": given["value"]}
        scores.append(about | given)
    return scores + [continuous[metric] for metric in CONTINUOUS if metric in continuous]


def _chances(kind: str | None, samples: list[dict], delimiter: str) -> dict[str, float]:
    """Chance of lm-eval's metrics, where it is known: uniform guesses among choices; no guess gives a text."""
    chances = {OF_TEXTS[kind]: 0.0} if kind in OF_TEXTS else {}
    if kind == "multiple_choice":
        asked = [_choices(sample) for sample in samples]
        right = [_right(sample, pairs, delimiter) for sample, pairs in zip(samples, asked)]
        if right and all(right):
            share = float(np.mean([len(some) / len(pairs) for some, pairs in zip(right, asked)]))
            chances |= dict.fromkeys(OF_CHOICES, share)
    return chances


def choice_rows(name: str, samples: list[dict], delimiter: str = " ") -> list[dict]:
    """Our metrics of lm-eval's samples of multiple choice with one right answer each; [] where an item has another number."""
    items, values = [], []
    for sample in samples:
        pairs = _choices(sample)
        right = _right(sample, pairs, delimiter) if len(pairs) > 1 else ()
        if len(right) != 1:
            return []
        items.append(Item("", tuple(text for _, text in pairs), right[0], tuple(context for context, _ in pairs)))
        values.append(_likelihoods(sample, pairs))
    return choice_metrics(Task(name, tuple(items)), values) if items else []


def _choices(sample: dict) -> list[tuple[str, str]]:
    """(context, continuation) of each choice."""
    arguments = sample["arguments"]
    arguments = list(arguments.values()) if isinstance(arguments, dict) else arguments
    pairs = [(a["arg_0"], a["arg_1"]) if isinstance(a, dict) else tuple(a[:2]) for a in arguments]
    # With acc_mutual_info the choices come once more, without their context.
    return pairs[: len(pairs) // 2] if "acc_mutual_info" in sample else pairs


def _likelihoods(sample: dict, pairs: list[tuple[str, str]]) -> np.ndarray:
    return np.array([float(answer[0]) for answer in sample["filtered_resps"][: len(pairs)]])


def _right(sample: dict, pairs: list[tuple[str, str]], delimiter: str) -> tuple[int, ...]:
    """Indices of the right choices as lm-eval takes them: a number is an index (true is 1), a text that of the choice; () where
    none is given.

    Where choices differ in the context instead (WinoGrande) the target is their common continuation, and of two choices the right
    one follows from lm-eval's score of the likeliest.
    """
    gold = sample["target"]
    if len({context for context, _ in pairs}) > 1:
        likeliest = int(_likelihoods(sample, pairs).argmax())
        right = likeliest if sample.get("acc") == 1 else 1 - likeliest
        return (right,) if sample.get("acc") == 1 or (sample.get("acc") == 0 and len(pairs) == 2) else ()
    if isinstance(gold, str):
        texts = [text.removeprefix(delimiter) for _, text in pairs]
        gold = texts.index(gold) if gold in texts else -1
    golds = gold if isinstance(gold, list) else [gold]
    return tuple(index for index in range(len(pairs)) if index in golds)
