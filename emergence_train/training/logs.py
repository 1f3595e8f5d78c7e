"""A run's own files: metrics.jsonl, the positions tables, config.yaml, environment.json. They are the truth.

A restart first takes them back to the checkpoint it continues from, so that no row is there twice and none is missing.
"""

import contextlib
import datetime
import importlib.metadata
import itertools
import json
import os
import platform
import socket
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import torch

from emergence_train import files, records
from emergence_train.checkpoints import step_name
from emergence_train.cluster import slurm
from emergence_train.config import Config
from emergence_train.errors import RunError

PACKAGES = ("torch", "triton", "deepspeed", "numpy", "pyarrow", "tokenizers", "wandb", "flash-attn", "emergence-train")


WRITE_SECONDS = 1.0  # rows reach the file at least this often, and all of them before state is saved
FOLDERS = ("positions", "evaluations")  # tables named step-XXXXXXXXXX.parquet


class RunLog:
    """Written by rank 0 only. `header` opens metrics.jsonl and names run, params and vocabulary for the readers.

    Where the disk does not take a row or a table, it is kept in memory and tried again: no state is saved before all
    that belongs to it is on the disk, so nothing can be missing from a run that goes on.
    """

    def __init__(self, directory: Path, header: dict, step: int, rewinds: list[dict]) -> None:
        self.directory, self.header = directory, header
        self.path = directory / "metrics.jsonl"
        self.file = None
        self.put_away: Path | None = None  # where logs went that no state belongs to
        if not step and any((directory / "positions").glob("step-*.parquet")):
            self.put_away = self._put_away()
        self.take_back_to(step, rewinds)

    def _put_away(self) -> Path:
        """Every state was lost and the run begins anew: what it had measured is moved aside, not deleted."""
        places = (self.directory / f"begun-anew-{number}" for number in itertools.count(1))
        place = next(path for path in places if not path.exists())
        place.mkdir()
        for name in ("metrics.jsonl", *FOLDERS):
            if (self.directory / name).exists():
                (self.directory / name).rename(place / name)
        return place

    def take_back_to(self, step: int, rewinds: list[dict]) -> None:
        """Rows and tables of later steps are removed; `rewinds` stand where they happened, whatever was removed."""
        if self.file is not None:
            os.close(self.file)
        rows = records.read_metrics(self.path) if step and self.path.is_file() else []
        kept = [row for row in rows if row.get("step", 0) <= step and row.get("kind") not in ("run", "rewind")]
        for rewind in rewinds:
            at = next((i for i, row in enumerate(kept) if row.get("step", 0) > rewind["step"]), len(kept))
            kept.insert(at, {"kind": "rewind", **rewind})
        lines = [json.dumps(row) for row in [{"kind": "run", **self.header}, *kept]]
        files.write_bytes(self.path, ("\n".join(lines) + "\n").encode())
        for table in (table for folder in FOLDERS for table in (self.directory / folder).glob("step-*.parquet")):
            if table.stem.removeprefix("step-").isdigit() and int(table.stem.removeprefix("step-")) > step:
                table.unlink()
        self.rows = kept
        self.pending: list[str] = []
        self.tables: list[tuple[str, Path, pd.DataFrame]] = []
        self.file = os.open(self.path, os.O_WRONLY)
        self.end = os.fstat(self.file).st_size  # of what is known to be written
        self.written = time.monotonic()

    def lacking(self, step: int, tables: set[int]) -> str | None:
        """What is not there of the rows and tables (of the steps `tables`) up to `step`. No stop leaves such a gap: a state
        is saved after its rows; someone has deleted or cut a file."""
        rows = step - len({row["step"] for row in self.rows if row.get("kind") == "train"})
        absent = sorted(s for s in tables if not (self.directory / "positions" / f"{step_name(s)}.parquet").is_file())
        gaps = [f"{rows} of {step} train rows of {self.path.name}"] if rows else []
        gaps += [f"the positions table of step {', '.join(map(str, absent))}"] if absent else []
        return (
            f"{self.directory}: lacks {' and '.join(gaps)}; training goes on, and what was lost stays lost"
            if gaps
            else None
        )

    def write(self, kind: str, **values) -> dict:
        """Append one line; what is not a finite number is written as null, which JSON can hold."""
        row = {"kind": kind} | {key: _finite(value) for key, value in values.items()}
        self.pending.append(json.dumps(row) + "\n")
        if time.monotonic() - self.written > WRITE_SECONDS:
            self._drain()
        return row

    def flush(self) -> str | None:
        """Rows and tables onto the disk, before state is saved; says in a line what would not go there."""
        while self.tables:
            schema, path, table = self.tables[0]
            try:
                records.write(schema, table, path, vocabulary=self.header["vocabulary"])
            except (RunError, OSError) as error:
                return str(error)
            del self.tables[0]
        error = self._drain()
        try:
            os.fsync(self.file)
        except OSError as late:
            error = late
        return None if error is None else str(files.disk_error(error, self.path))

    def positions(self, step: int, tokens: int, splits: dict[str, pd.DataFrame]) -> pd.DataFrame:
        """The checkpoint's table, which the next flush writes."""
        table = pd.concat(list(splits.values()), ignore_index=True)
        table = table.assign(run=self.header["run"], params=self.header["params"], step=step, tokens=tokens)
        self.tables.append((records.POSITIONS, self.directory / "positions" / f"{step_name(step)}.parquet", table))
        return table

    def evaluations(self, step: int, table: pd.DataFrame) -> None:
        """The checkpoint's table of tasks, which the next flush writes."""
        self.tables.append((records.EVALUATIONS, self.directory / "evaluations" / f"{step_name(step)}.parquet", table))

    def close(self) -> str | None:
        problem = self.flush()
        os.close(self.file)
        return problem

    def _drain(self) -> OSError | None:
        """Write the pending lines after what is known to be whole; a line half written is written again."""
        self.written = time.monotonic()
        data = "".join(self.pending).encode()
        done = 0
        try:
            while done < len(data):
                done += os.pwrite(self.file, data[done:], self.end + done)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self.file, self.end)
            return error
        self.end += len(data)
        self.pending = []
        return None


def _finite(value):
    if isinstance(value, float) and value - value != 0:
        return None
    return value


def write_environment(directory: Path, world: int, device: torch.device, resumed_from: int) -> None:
    """Add this start of the run to environment.json: versions, device, commit, command, Slurm's job."""
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
            "slurm": slurm.job(os.environ),
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
        "versions": {
            "python": platform.python_version(),
            "cuda": torch.version.cuda,
            **versions,
            "torch": torch.__version__,
        },
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
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None


def write_config(directory: Path, config: Config) -> None:
    files.write_bytes(directory / "config.yaml", config.to_yaml().encode())
