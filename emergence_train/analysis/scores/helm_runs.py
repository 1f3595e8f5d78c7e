"""HELM's own output: stats.json of a run beside its run_spec.json; and its leaderboards as CSV, of score_tables.

stats.json is a list of statistics: name {name, split, sub_split, perturbation}, count, sum, mean ..., a mean over trials of the
mean over instances. Those of perturbed inputs and of parts of a split are left out, and those that count or time things. The
formats are those of the classes that HELM 0.5.16 serialises.
"""

import json
import re
from pathlib import Path
from typing import Any

import pandas as pd

from emergence_train.analysis.logs.encoded import text_of
from emergence_train.analysis.scores import score_tables
from emergence_train.analysis.scores.options import Format, ScoreOptions, Scores, place_of_results
from emergence_train.errors import InputError, listed

STATS, SPEC = "stats.json", "run_spec.json"
SPLITS = ("test", "valid")  # the first that a metric has
# What the main metrics of HELM's scenarios are called, in its schemas
METRIC = re.compile(
    r"exact_match|accuracy|(^|_)f1(_|$)|rouge|bleu|chr_f|math_equiv|float_equiv|string_match|result_match|test_avg|strict_acc|"
    r"^pass(@\d+)?$|(ndcg|rr|recall)(@|_cut_)\d+|bits_per_byte|_score(_rescaled)?$|correct|^error_rate$",
    re.IGNORECASE,
)
MODEL = re.compile(r"(?<=[:,])(model|model_deployment)=[^,]*,?")


def _json(path: Path) -> Any:
    try:
        return json.loads(text_of(path))
    except (OSError, InputError, ValueError, RecursionError):
        return None


def _is_run(path: Path) -> bool:
    if path.name != STATS or not path.with_name(SPEC).is_file():
        return False
    stats = _json(path)
    return isinstance(stats, list) and all(
        isinstance(stat, dict) and isinstance(stat.get("name"), dict) for stat in stats
    )


def _read_run(path: Path) -> list[Scores]:
    spec, stats = _json(path.with_name(SPEC)), _json(path)
    if not isinstance(spec, dict) or not isinstance(stats, list):
        raise InputError(f"{path}: it or its {SPEC} is no JSON that can be read; give another --format")
    adapter = spec.get("adapter_spec") or {}
    model, _, revision = str(adapter.get("model") or adapter.get("model_deployment") or "").partition("@")
    place = place_of_results(model or path.parent.name, revision or None, path.parent.parent)  # that of its suite
    values = _by_metric(stats)
    items = values.pop("num_instances", (None, ""))[0]
    scores = {name: value for name, value in values.items() if METRIC.search(name)}
    task = MODEL.sub("", str(spec.get("name") or path.parent.name)).rstrip(":,")
    rows = [
        {**place, "task": task, "metric": name, "value": value, "items": items} for name, (value, _) in scores.items()
    ]
    splits = ", ".join(sorted({split for _, split in scores.values()})) or "none"
    left = sorted(set(values) - set(scores))
    note = f"{path}: HELM, {task} of {place['run']}, split {splits}, {len(rows)} metrics"
    note += f"; left out: {listed(left, 8)}" if left else ""
    return [Scores(path, pd.DataFrame(rows), note)] if rows else []


def _by_metric(stats: list[dict]) -> dict[str, tuple[float, str]]:
    """(mean, split) of each metric on inputs as they are, from the first of SPLITS that it has."""
    values: dict[str, tuple[float, str]] = {}
    for stat in stats:
        name, mean = stat["name"], stat.get("mean")
        split = name.get("split")
        if name.get("perturbation") or name.get("sub_split") or split not in SPLITS or mean is None:
            continue
        known = values.get(str(name.get("name")))
        if known is None or SPLITS.index(split) < SPLITS.index(known[1]):
            values[str(name.get("name"))] = float(mean), split
    return values


def _takes(path: Path) -> bool:
    return _is_run(path) or score_tables.HELM.takes(path)


def _read(path: Path, options: ScoreOptions) -> list[Scores]:
    return _read_run(path) if path.name == STATS else score_tables.HELM.read(path, options)


HELM = Format("helm", _takes, _read, score_tables.HELM.columns)
