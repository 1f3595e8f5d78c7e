"""A run's rows under the names that trackers' users expect: train/loss, val/iid/loss, perf/tokens_per_second and so on."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import pandas as pd

from emergence_train.models.devices import mfu_of_rate
from emergence_train.recorder import tables
from emergence_train.recorder.layout import step_of
from emergence_train.recorder.metrics import iter_metrics
from emergence_train.recorder.sessions import read_sessions
from emergence_train.tracking import AXES

BY_POSITION = "loss_by_position"
TRAIN = {
    "loss": "train/loss",
    "grad_norm": "train/grad_norm",
    "lr": "train/lr",
    "tokens_per_second": "perf/tokens_per_second",
}
GIGABYTE = 1e9

Point: TypeAlias = dict[str, Any] | pd.DataFrame  # {name: value} with its AXES, or a checkpoint's positions table


def view(row: dict, mfu_of_rate: float | None = None) -> dict[str, Any] | None:
    """A line of metrics.jsonl as {name: value}, None where it has nothing to show. `mfu_of_rate`: MFU of one token/s."""
    kind, values = row["kind"], {}
    if kind == "train":
        values = {shown: row.get(name) for name, shown in TRAIN.items()}
        if mfu_of_rate and row.get("tokens_per_second"):
            values["perf/mfu"] = row["tokens_per_second"] * mfu_of_rate
    elif kind == "validation":
        for name in ("loss", "bits_per_byte", "log_pplu"):
            values |= {f"val/{split}/{name}": value for split, value in (row.get(name) or {}).items()}
        values["perf/memory"] = row["memory"] / GIGABYTE if row.get("memory") else None
    elif kind == "evaluation":
        values = {f"tasks/{name}": value for name, value in row["value"].items()}
        values["perf/share_of_tasks"] = row.get("share_of_training")
    elif kind == "abilities":  # tokens are null where the ability is not gained before the end
        values = {f"abilities/{name}": value for name, value in row["value"].items()}
    elif kind == "straggler":
        values = {f"straggler/{name}": row[name] for name in ("rank", "seconds", "share")}
    elif kind == "forecast" and "loss" in row:
        values = {f"forecast/{name}": value for name, value in row.items() if name not in ("kind", *AXES)}
    elif kind == "samples":
        values = {"samples": row["texts"]}
    values = {name: value for name, value in values.items() if value is not None}
    return {name: row[name] for name in AXES} | values if values else None


def name_of(point: Point) -> str:
    """The name that a point is known by among those of its tokens."""
    return BY_POSITION if isinstance(point, pd.DataFrame) else next(name for name in point if name not in AXES)


def tokens_of(point: Point) -> int:
    return int(point["tokens"].iloc[0]) if isinstance(point, pd.DataFrame) else point["tokens"]


def points(
    run: Path, until: int | None = None, *, steps: int | None = None, charts: int | None = None
) -> Iterator[Point]:
    """The points of a run's files as training sends them, up to step `until`.

    Args:
        steps: about so many training steps at most, at equal distances; charts: so many tables, the newest.
    """
    header = next((row for _, row in iter_metrics(run) if row["kind"] == "run"), {})
    rate = mfu_of_rate(header, (read_sessions(run) or [{}])[-1])
    every = -(-until // steps) if until and steps else 1
    for _, row in iter_metrics(run):
        step = row.get("step", 0)
        if until is not None and step > until:
            break
        if row["kind"] == "train" and step % every:
            continue
        if (values := view(row, rate)) is not None:
            yield values
    paths = sorted((run / "positions").glob("step-*.parquet"))
    paths = [path for path in paths if until is None or step_of(path) <= until]
    for path in paths[-charts:] if charts else paths:
        yield tables.read(tables.POSITIONS, path)
