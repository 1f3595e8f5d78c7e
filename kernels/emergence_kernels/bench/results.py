"""The file of a run of the benchmark: what it says of versions and commit, its rows, and those that earlier runs have."""

import importlib.metadata
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import torch

from .candidate import Case
from .timing import summary

PEERS = (
    "torch",
    "triton",
    "liger-kernel",
    "cut-cross-entropy",
    "quack-kernels",
    "flash-attn",
    "flash-attn-3",
    "flash-attn-4",
)


def versions() -> dict[str, str | None]:
    """The installed version of every peer; None where it is not installed."""
    installed: dict[str, str | None] = {}
    for name in PEERS:
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            installed[name] = None
    return installed


def commit() -> str | None:
    """The commit of the checkout that this package is in, "-dirty" if it was changed since; None outside of one."""
    if given := os.environ.get("EMERGENCE_COMMIT"):  # a copy without its history
        return given
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() or None


def finished(folder: Path, since: str, candidates: dict) -> list[tuple[str, dict]]:
    """(operation, shape) that runs of the same candidates since then have finished."""
    runs = [
        json.loads(path.read_text())
        for path in sorted(folder.glob(f"*-{candidates['dtype']}.json"))
        if path.name >= since
    ]
    alike = [run for run in runs if candidates.items() <= run.items()]
    return [(row["op"], row["shape"]) for run in alike for row in run.get("finished", [])]


def of_this_version(data: dict) -> dict:
    """A run's results as they are written now: earlier ones name a row's candidate `contender`, or in training `contestant`."""
    for row in (*data["rows"], *data.get("failures", ())):
        for former in row.keys() & {"contender", "contestant"}:
            row["candidate"] = row.pop(former)
    return data


def timestamp() -> str:
    return time.strftime("%Y%m%d-%H%M%S", time.gmtime())


class Results:
    """One JSON file a run, rewritten after every row, so that a run that is cut off loses nothing."""

    def __init__(self, path: Path, header: dict):
        self.path, self.data = (
            path,
            header | {"complete": False, "rows": [], "failures": [], "finished": [], "unfinished": {}},
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        self.write()

    def write(self) -> None:
        scratch = self.path.with_suffix(".tmp")
        scratch.write_text(json.dumps(self.data, indent=1) + "\n")
        os.replace(scratch, self.path)

    def add(self, row: dict, to: str = "rows") -> None:
        self.data[to].append(row)
        self.write()

    def unfinished(self, case: Case, rounds: int, times: dict[str, dict[str, list[float]]]) -> None:
        """Keep the times so far, in milliseconds by candidate and mode, of the case that is being measured."""
        medians = {who: {mode: summary(of).median_ms for mode, of in modes.items()} for who, modes in times.items()}
        self.data["unfinished"] = {"op": case.op, "shape": case.shape, "rounds": rounds, "median_ms": medians}
        self.write()

    def report(self, row: dict, as_json: bool) -> None:
        """Add and print a row."""
        self.data["unfinished"] = {}
        self.add(row)
        print(json.dumps(row) if as_json else line_of(row), flush=True)

    def failed(self, op: str, shape: dict, candidate: str, error: Exception) -> None:
        """Keep and print an error: a peer that cannot run a shape is no reason to stop."""
        text = str(error).splitlines()
        reason = f"{type(error).__name__}: {text[0] if text else ''}"
        self.add({"op": op, "shape": shape, "candidate": candidate, "error": reason}, "failures")
        print(f"bench: {op} {candidate} failed: {reason}", file=sys.stderr, flush=True)
        torch.cuda.empty_cache()

    @property
    def ours_failed(self) -> int:
        """The number of failures of this package's own kernels."""
        return sum(row["candidate"].startswith("emergence") for row in self.data["failures"])


def spelled(shape: dict) -> str:
    return " ".join(f"{name}={value}" for name, value in shape.items())


def line_of(row: dict) -> str:
    shape = spelled(row["shape"])
    parts = [f"{row['op']:<21} {row['candidate']:<28} {shape}"]
    for mode, values in row["modes"].items():
        rate = next(
            (f"{values[k]:.3g} {unit}" for k, unit in (("tflops", "TFLOP/s"), ("gbps", "GB/s")) if k in values), ""
        )
        parts.append(f"{mode} {values['median_ms']:.3f} ms {rate}".rstrip())
    return "  |  ".join(parts)
