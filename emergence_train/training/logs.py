"""A run's own files: metrics.jsonl, the positions tables, config.yaml, environment.json. They are the truth.

A restart first takes them back to the checkpoint it continues from, so that no row is there twice and none is missing.
"""

import datetime
import importlib.metadata
import json
import os
import platform
import socket
import subprocess
import sys
from pathlib import Path

import pandas as pd
import torch

from emergence_train import files, records
from emergence_train.config import Config

PACKAGES = ("torch", "triton", "deepspeed", "numpy", "pyarrow", "tokenizers", "wandb", "flash-attn", "emergence-train")


def step_name(step: int) -> str:
    return f"step-{step:010d}"


class RunLog:
    """Written by rank 0 only. `header` opens metrics.jsonl and names run, params and vocabulary for the readers."""

    def __init__(self, directory: Path, header: dict, resume_step: int) -> None:
        self.directory = directory
        self.header = header
        self._take_back_to(resume_step)
        self.metrics = open(directory / "metrics.jsonl", "a", encoding="utf-8")  # noqa: SIM115 - kept open for the run

    def _take_back_to(self, step: int) -> None:
        path = self.directory / "metrics.jsonl"
        rows = records.read_metrics(path) if step and path.is_file() else []
        kept = [row for row in rows if row.get("step", 0) <= step and row.get("kind") != "run"]
        lines = [json.dumps(row) for row in [{"kind": "run", **self.header}, *kept]]
        files.write_bytes(path, ("\n".join(lines) + "\n").encode())
        for table in [path for name in ("positions", "evaluations") for path in (self.directory / name).glob("step-*.parquet")]:
            if int(table.stem.removeprefix("step-")) > step:
                table.unlink()

    def write(self, kind: str, **values) -> dict:
        """Append one line; what is not a finite number is written as null, which JSON can hold."""
        row = {"kind": kind} | {key: _finite(value) for key, value in values.items()}
        self.metrics.write(json.dumps(row) + "\n")
        return row

    def flush(self) -> None:
        """Onto the disk: called before a checkpoint is declared good."""
        try:
            self.metrics.flush()
            os.fsync(self.metrics.fileno())
        except OSError as error:
            raise files.disk_error(error, self.directory / "metrics.jsonl") from None

    def positions(self, step: int, tokens: int, splits: dict[str, pd.DataFrame]) -> pd.DataFrame:
        """Write the checkpoint's table and return it."""
        table = pd.concat(list(splits.values()), ignore_index=True)
        table = table.assign(run=self.header["run"], params=self.header["params"], step=step, tokens=tokens)
        path = self.directory / "positions" / f"{step_name(step)}.parquet"
        records.write(records.POSITIONS, table, path, vocabulary=self.header["vocabulary"])
        return table

    def close(self) -> None:
        self.metrics.close()


def _finite(value):
    if isinstance(value, float) and value - value != 0:
        return None
    return value


def write_environment(directory: Path, world: int, device: torch.device, resumed_from: int) -> None:
    """Add this start of the run to environment.json: versions, device, commit, command."""
    path = directory / "environment.json"
    try:
        sessions = json.loads(path.read_text())["sessions"]
    except (OSError, ValueError, KeyError):
        sessions = []
    sessions.append(
        {
            "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "resumed_from_step": resumed_from,
            "command": sys.argv,
            "host": socket.gethostname(),
            "processes": world,
            **environment(device),
        }
    )
    files.write_json(path, {"sessions": sessions})


def environment(device: torch.device) -> dict:
    """What a measured number depends on: versions, device, commit."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "versions": {"python": platform.python_version(), "cuda": torch.version.cuda, **versions},
        "device": device_name(device),
        "cpu_threads": torch.get_num_threads(),
        "commit": _commit(),
    }


def device_name(device: torch.device) -> str:
    """The GPU's name, or the processor's."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _commit() -> str | None:
    """The commit of this source tree, with a + where files have been changed since; None outside a checkout."""
    place = Path(__file__).resolve().parents[2]
    try:
        found = subprocess.run(
            ["git", "-C", str(place), "describe", "--always", "--abbrev=12", "--dirty=+"],
            capture_output=True, text=True, timeout=10,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None


def write_config(directory: Path, config: Config) -> None:
    files.write_bytes(directory / "config.yaml", config.to_yaml().encode())
