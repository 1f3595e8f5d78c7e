"""The measured ranking of backends for "auto" on a GPU: ranking.json, made from stored benchmark runs by benchmarks/redraw.py.

An entry is of an architecture, operation, dtype, device and widths: (features,) of rms_norm, (features, vocabulary) of losses,
(head_dim, seq) of attention, whose name includes its mask ("attention, causal"). The number of tokens varies between calls and is
not part of it: an entry is the geometric mean over the measured ones. Devices of one architecture differ (an H200 has an H100's
multiprocessors and faster memory), so entries of the device itself come before all others of its architecture.
"""

import json
import math
import re
from collections import defaultdict
from functools import cache
from pathlib import Path

import torch

from .dispatch import IMPLEMENTED
from .tracing import constant_while_tracing

FILE = Path(__file__).with_name("ranking.json")
PREFIX = "emergence "  # prefix of own candidates in a benchmark; "emergence triton, wide" is a candidate, not a backend
LEVEL = 1.015  # relative to the fastest: the variation within one run
WIDTHS = {
    "rms_norm": ("features",),
    "linear_cross_entropy": ("features", "vocabulary"),
    "position_loss": ("features", "vocabulary"),
    "attention": ("head_dim", "seq"),
}


def device_name(device: torch.device) -> str:
    """A device in results and entries, such as nvidia-h100-80gb-hbm3 or cpu."""
    if device.type != "cuda":
        return "cpu"
    return re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name(device).lower()).strip("-")


@cache
def _table() -> dict:
    return json.loads(FILE.read_text(encoding="utf-8"))


@constant_while_tracing
def _measured(op: str, device: torch.device, dtype: torch.dtype) -> list[tuple[list[int], list[str]]]:
    """(widths, backends from the fastest) of each entry of this device, else of its architecture."""
    if not (table := _table()) or device.type != "cuda":
        return []
    major, minor = torch.cuda.get_device_capability(device)
    rows = table.get(f"sm_{major}{minor}", {}).get(op, {}).get(str(dtype).removeprefix("torch."), [])
    if not rows:
        return []
    name = device_name(device)
    rows = [row for row in rows if row["device"] == name] or rows
    return [(row["widths"], list(row["milliseconds"])) for row in rows]


def fastest(op: str, device: torch.device, dtype: torch.dtype, widths: tuple[int, ...]) -> list[str]:
    """Backends, fastest first, at the nearest widths measured on this device, else on its architecture; [] without any.

    Near by ratios, which are compared as integers: a graph of symbolic widths is then guarded by a range of them, where a
    logarithm needs their values.
    """
    nearest: list[str] = []
    ratio = (1, 0)
    for measured, backends in _measured(op, device, dtype):
        more, less = 1, 1
        for a, b in zip(measured, widths):
            more, less = more * max(a, b), less * min(a, b)
        if more * ratio[1] < ratio[0] * less or not nearest:
            nearest, ratio = backends, (more, less)
    return nearest


def _order(op: str, mean: dict[str, float]) -> list[str]:
    """From the fastest to the slowest; those within the variation of the fastest in the order of IMPLEMENTED."""
    usual = IMPLEMENTED[op.partition(",")[0]]
    level = min(mean.values()) * LEVEL
    return sorted(mean, key=lambda name: (0, usual.index(name)) if mean[name] <= level else (1, mean[name]))


def from_results(runs: list[dict]) -> dict:
    """Make the table from benchmark runs (bench/run.py); later runs replace earlier ones of the same device and widths, unless
    they left out a backend that an entry of the operation has (bench --only): its place would be unknown. A run that is
    `superseded`, by what it says, is of kernels that have changed since."""
    table: dict = {}
    for run in sorted(runs, key=lambda run: run["utc"]):
        if not run.get("architecture") or run.get("superseded"):
            continue
        times: dict = defaultdict(lambda: defaultdict(dict))
        for row in run["rows"]:
            backend = row["candidate"].removeprefix(PREFIX)
            if row["op"] not in WIDTHS or backend == row["candidate"] or "," in backend:
                continue
            widths = tuple(row["shape"][name] for name in WIDTHS[row["op"]])
            case = tuple(sorted(row["shape"].items()))
            kind = row["shape"].get("kind")
            op = f"{row['op']}, {kind}" if kind else row["op"]
            times[op, widths][backend][case] = row["modes"]["both"]["median_ms"]
        for (op, widths), by_backend in times.items():
            # A backend that failed at some shape is not compared
            most = max(len(shapes) for shapes in by_backend.values())
            mean = {
                name: math.exp(sum(map(math.log, shapes.values())) / most)
                for name, shapes in by_backend.items()
                if len(shapes) == most
            }
            ordered = {name: round(mean[name], 4) for name in _order(op, mean)}
            rows = table.setdefault(run["architecture"], {}).setdefault(op, {}).setdefault(run["dtype"], [])
            known = {name for row in rows if row["device"] == run["device"] for name in row["milliseconds"]}
            if "--only" in run.get("command", "") and not known <= ordered.keys():
                continue
            key = {"device": run["device"], "widths": list(widths)}
            rows[:] = [row for row in rows if not key.items() <= row.items()]
            rows.append(key | {"milliseconds": ordered, "measured": run["utc"], "commit": run.get("commit")})
    return table


def write(table: dict) -> None:
    FILE.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
