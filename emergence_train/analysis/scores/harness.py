"""Results of the harnesses as JSON: lm-eval's results_*.json, and OLMES' (oe-eval's) metrics.json and metrics-all.jsonl."""

import functools
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from emergence_train.analysis.logs.encoded import suffix_of, text_of
from emergence_train.analysis.scores.options import Format, ScoreOptions, Scores, place_of
from emergence_train.errors import InputError

NO_METRIC = ("alias", "name", "sample_len", "sample_count", "samples")
ARGUMENT = re.compile(r"(?:^|,)\s*(pretrained|revision|model|path)\s*=\s*([^,]+)")


@functools.lru_cache(maxsize=4)
def _objects(path: Path) -> tuple[dict, ...]:
    """The objects of a JSON or JSON-lines file; none where it is neither."""
    if suffix_of(path) not in (".json", ".jsonl"):
        return ()
    try:
        text = text_of(path)
    except (OSError, UnicodeDecodeError, InputError):
        return ()
    try:
        content = [json.loads(line) for line in text.split("\n") if line.strip()]  # U+2028 ends no line
    except (ValueError, RecursionError):
        try:
            content = [json.loads(text)]
        except (ValueError, RecursionError):
            return ()
    content = content[0] if len(content) == 1 and isinstance(content[0], list) else content
    return tuple(entry for entry in content if isinstance(entry, dict))


# ---------------------------------------------------------------------------------------------------------------- lm-eval


def _is_lm_eval(path: Path) -> bool:
    objects = _objects(path)
    results = objects[0].get("results") if len(objects) == 1 else None
    return isinstance(results, dict) and any(
        isinstance(values, dict) and any("," in str(key) for key in values) for values in results.values()
    )


def _read_lm_eval(path: Path, options: ScoreOptions) -> list[Scores]:
    content = _objects(path)[0]
    settings = content.get("config") or {}
    arguments = settings.get("model_args")
    if not isinstance(arguments, dict):
        arguments = dict(ARGUMENT.findall(str(arguments or "")))
    model = str(arguments.get("pretrained") or arguments.get("path") or content.get("model_name") or path.parent.name)
    place = place_of(model, arguments.get("revision"))
    if place["step"] is None:  # its own directory may be named after the step
        place["step"] = place_of(str(path.parent))["step"]
    if settings.get("model_num_parameters"):
        place["params"] = int(settings["model_num_parameters"])
    rows = []
    for task, values in content["results"].items():
        for key, value in values.items():
            metric, _, filtered = str(key).partition(",")
            if metric in NO_METRIC or metric.endswith("_stderr") or not _is_number(value):
                continue
            error = values.get(f"{metric}_stderr,{filtered}")
            samples = (content.get("n-samples") or {}).get(task) or {}
            better = (content.get("higher_is_better") or {}).get(task, {}).get(metric)
            rows.append(
                place
                | {
                    "task": task,
                    "metric": metric if filtered in ("none", "") else f"{metric}_{filtered}",
                    "value": float(value),
                    "stderr": float(error) if _is_number(error) else math.nan,
                    "items": samples.get("effective"),
                    "higher_is_better": better,
                }
            )
    return [Scores(path, pd.DataFrame(rows), f"{path}: lm-eval, {len(content['results'])} tasks of {_named(place)}")]


# ------------------------------------------------------------------------------------------------------------------ OLMES


def _records(path: Path) -> Iterator[dict]:
    """The tasks of oe-eval: lines of metrics-all.jsonl, or the list `tasks` or `metrics` of metrics.json."""
    for entry in _objects(path):
        if "task_name" in entry and isinstance(entry.get("metrics"), dict):
            yield entry
        for key in ("tasks", "metrics", "all_primary_scores"):
            for inner in entry.get(key) or () if isinstance(entry.get(key), list) else ():
                if isinstance(inner, dict) and "task_name" in inner:
                    yield {**{k: v for k, v in entry.items() if k in ("model_config", "model_name")}, **inner}


def _read_olmes(path: Path, options: ScoreOptions) -> list[Scores]:
    rows, names = [], set()
    for record in _records(path):
        model: Any = record.get("model_config") or {}
        name = str(model.get("model_path") or model.get("model") or record.get("model_name") or path.parent.name)
        place = place_of(name, model.get("revision"))
        names.add(_named(place))
        for metric, value in (record.get("metrics") or {}).items():
            if not _is_number(value) or metric.endswith("_stderr") or _is_another(metric, record["metrics"]):
                continue
            error = record["metrics"].get(f"{metric}_stderr")
            rows.append(
                place
                | {
                    "task": record.get("alias") or record["task_name"],
                    "metric": metric,
                    "value": float(value),
                    "stderr": float(error) if _is_number(error) else math.nan,
                    "items": record.get("num_instances"),
                }
            )
    if not rows:
        raise InputError(f"{path}: its tasks have no metrics that are numbers; give oe-eval's metrics-all.jsonl")
    return [Scores(path, pd.DataFrame(rows), f"{path}: OLMES, {len(rows)} metrics of {', '.join(sorted(names))}")]


def _is_another(metric: str, metrics: dict) -> bool:
    """Whether it is OLMES' choice among the others, and so none of its own."""
    others = [value for name, value in metrics.items() if name != metric]
    return metric == "primary_score" and metrics[metric] in others


def _named(place: dict) -> str:
    step = "" if place["step"] is None else f", step {place['step']}"
    return f"{place['run']}{step}"


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


LM_EVAL = Format("lm-eval", _is_lm_eval, _read_lm_eval)
OLMES = Format("olmes", lambda path: any(True for _ in _records(path)), _read_olmes)
