"""Results of the harnesses as JSON: results_*.json of lm-eval and lighteval, metrics.json and metrics-all.jsonl of OLMES."""

import functools
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from emergence_train.analysis.logs.encoded import suffix_of, text_of
from emergence_train.analysis.logs.records import objects_of
from emergence_train.analysis.scores.options import Format, ScoreOptions, Scores, place_of, place_of_results
from emergence_train.analysis.scores.parts import OTHER, SHOTS
from emergence_train.errors import InputError

NO_METRIC = ("alias", "name", "sample_len", "sample_count", "samples")
ARGUMENT = re.compile(r"(?:^|,)\s*(pretrained|revision|model|path)\s*=\s*([^,]+)")


@functools.lru_cache(maxsize=4)
def _objects(path: Path) -> tuple[dict, ...]:
    """The objects of a JSON or JSON-lines file; none where it is neither."""
    if suffix_of(path) not in (".json", ".jsonl"):
        return ()
    try:
        return tuple(entry for entry in objects_of(text_of(path)) if isinstance(entry, dict))
    except (OSError, ValueError, RecursionError, InputError):
        return ()


# ---------------------------------------------------------------------------------------------------------------- lm-eval


def _is_lm_eval(path: Path) -> bool:
    objects = _objects(path)
    results = objects[0].get("results") if len(objects) == 1 else None
    if not isinstance(results, dict) or not all(isinstance(values, dict) for values in results.values()):
        return False
    filtered = any("," in str(key) for values in results.values() for key in values)
    return filtered or {"versions", "config"} <= objects[0].keys()  # before 0.4, without filters


def _read_lm_eval(path: Path, options: ScoreOptions) -> list[Scores]:
    content = _objects(path)[0]
    settings = content.get("config") or {}
    arguments = settings.get("model_args")
    if not isinstance(arguments, dict):
        arguments = dict(ARGUMENT.findall(str(arguments or "")))
    model = arguments.get("pretrained") or arguments.get("path") or content.get("model_name")
    stem = path.parent / path.stem
    # Of results that are named by their checkpoints
    own = place_of(str(stem.resolve())) if model is None else {"step": None}
    place = (
        own
        if own["step"] is not None
        else place_of_results(str(model or path.parent.name), arguments.get("revision"), path.parent)
    )
    if settings.get("model_num_parameters"):
        place["params"] = int(settings["model_num_parameters"])
    rows = []
    for task, values in content["results"].items():
        counts = (content.get("n-samples") or {}).get(task) or {}
        items = counts.get("effective", values.get("sample_len"))  # of a group: the latter
        shots = (content.get("n-shot") or {}).get(task, settings.get("num_fewshot"))
        for key, scores in _scores_of(values):
            metric, _, filtered = key.partition(",")
            better = (content.get("higher_is_better") or {}).get(task, {}).get(metric)
            named = metric if filtered in ("none", "") else f"{metric}_{filtered}"
            about = {"task": task, "metric": named, "items": items, "higher_is_better": better}
            rows.append(place | about | scores | {OTHER + SHOTS: shots})
    return [Scores(path, pd.DataFrame(rows), f"{path}: lm-eval, {len(content['results'])} tasks of {_named(place)}")]


# -------------------------------------------------------------------------------------------------------------- lighteval


def _is_lighteval(path: Path) -> bool:
    objects = _objects(path)
    return len(objects) == 1 and {"config_general", "results"} <= objects[0].keys()


def _read_lighteval(path: Path, options: ScoreOptions) -> list[Scores]:
    """A row a metric of "task|shots"; averages over tasks are left out."""
    content = _objects(path)[0]
    general = content["config_general"] or {}
    model: Any = general.get("model_config") or {}
    named = str(general.get("model_name") or model.get("model_name") or path.parent.name)
    place = place_of_results(named, model.get("revision"), path.parent)
    rows = []
    for name, values in content["results"].items():
        task, shots = name, None
        if match := re.fullmatch(r"(.*?)\|(\d+)(\|\d+)?", name):
            task, shots = match[1], match[2]
        if name == "all" or task.endswith("_average") or not isinstance(values, dict):
            continue
        for metric, scores in _scores_of(values):
            rows.append(place | {"task": task, "metric": metric} | scores | {OTHER + SHOTS: shots})
    if not rows:
        raise InputError(
            f"{path}: its results have no metrics that are numbers; give results_*.json of lighteval that has some"
        )
    return [Scores(path, pd.DataFrame(rows), f"{path}: lighteval, {len(rows)} metrics of {_named(place)}")]


# ------------------------------------------------------------------------------------------------------------------ OLMES

ALL = "metrics-all.jsonl"
COUNTS = ("num_instances", "no_answer", "task_idx")  # of instances, no scores
METRICS = re.compile(r"^(metrics|task-\d+-.*-metrics)\.json$")  # what that repeats


def _records(path: Path) -> Iterator[dict]:
    """The tasks of oe-eval: lines of metrics-all.jsonl, or the list `tasks` or `metrics` of metrics.json."""
    for entry in _objects(path):
        if "task_name" in entry and isinstance(entry.get("metrics"), dict):
            yield entry
        for key in ("tasks", "metrics", "all_primary_scores"):
            for inner in entry.get(key) or () if isinstance(entry.get(key), list) else ():
                if isinstance(inner, dict) and ("task_name" in inner or {"task", "task_config"} <= inner.keys()):
                    named = inner if "task_name" in inner else {**inner, "task_name": inner["task"], "metrics": inner}
                    yield {**{k: v for k, v in entry.items() if k in ("model_config", "model_name")}, **named}


def _read_olmes(path: Path, options: ScoreOptions) -> list[Scores]:
    rows, names = [], set()
    for record in _records(path):
        model: Any = record.get("model_config") or {}
        if not isinstance(model, dict):
            model = dict(ARGUMENT.findall(str(model)))
        name = str(
            model.get("model") or _first(model.get("model_path")) or record.get("model_name") or path.parent.name
        )
        place = place_of_results(name, model.get("revision"), path.parent)
        names.add(_named(place))
        task, metrics = record.get("alias") or _alias(record) or record["task_name"], record.get("metrics") or {}
        for metric, scores in _scores_of(metrics):
            if metric not in COUNTS and not _is_another(metric, metrics):
                rows.append(place | {"task": task, "metric": metric} | scores | {"items": record.get("num_instances")})
    if not rows:
        raise InputError(f"{path}: its tasks have no metrics that are numbers; give oe-eval's metrics-all.jsonl")
    return [Scores(path, pd.DataFrame(rows), f"{path}: OLMES, {len(rows)} metrics of {', '.join(sorted(names))}")]


def _first(path: object) -> object:
    return path[0] if isinstance(path, list) and path else path


def _alias(record: dict) -> str | None:
    """What a variant of a task is called: "arc_easy:mc" and not "arc_easy" alone."""
    metadata = (record.get("task_config") or {}).get("metadata") or {}
    return metadata.get("alias") if isinstance(metadata, dict) else None


def _is_another(metric: str, metrics: dict) -> bool:
    """Whether it is OLMES' choice among the others, and so none of its own."""
    others = [value for name, value in metrics.items() if name != metric]
    return metric == "primary_score" and metrics[metric] in others


def _named(place: dict) -> str:
    step = "" if place["step"] is None else f", step {place['step']}"
    return f"{place['run']}{step}"


def _scores_of(values: Any) -> Iterator[tuple[str, dict[str, float]]]:
    """Each metric of a task with its value and standard error: finite numbers that are no error themselves."""
    for key, value in values.items():
        metric, comma, filtered = str(key).partition(",")
        if (
            metric not in NO_METRIC
            and not (metric.endswith("_stderr") or str(key).endswith("_stderr"))
            and _is_number(value)
        ):
            error = values.get(f"{metric}_stderr{comma}{filtered}", values.get(f"{key}_stderr"))
            yield str(key), {"value": float(value), "stderr": float(error) if _is_number(error) else math.nan}


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


LIGHTEVAL = Format("lighteval", _is_lighteval, _read_lighteval)
LM_EVAL = Format("lm-eval", _is_lm_eval, _read_lm_eval)
OLMES = Format("olmes", lambda path: any(True for _ in _records(path)), _read_olmes)
