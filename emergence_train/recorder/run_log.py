"""A run's own files: metrics.jsonl and the tables of its checkpoints. They are the truth.

A restart first takes them back to the checkpoint it continues from, so that no row is there twice and none is missing.
"""

import contextlib
import itertools
import json
import os
import time
from pathlib import Path
from typing import Any

import pandas as pd

from emergence_train import files
from emergence_train.errors import RunError
from emergence_train.recorder import tables
from emergence_train.recorder.layout import step_name

WRITE_SECONDS = 1.0  # rows reach the file at least this often, and all of them before state is saved
FOLDERS = ("positions", "evaluations")  # tables named step-XXXXXXXXXX.parquet


class RunLog:
    """Written by rank 0 only. `header` opens metrics.jsonl and names run, params and vocabulary for the readers.

    Where the disk does not take a row or a table, it is kept in memory and tried again: no state is saved before all
    that belongs to it is on the disk, so nothing can be missing from a run that resumes.
    """

    def __init__(self, directory: Path, header: dict, step: int, rewinds: list[dict]) -> None:
        self.directory, self.header = directory, header
        self.path = directory / "metrics.jsonl"
        self.file = -1  # the descriptor that rows are written to
        self.archived: Path | None = None  # where logs went that no state belongs to
        if not step and any((directory / "positions").glob("step-*.parquet")):
            self.archived = self._archive()
        self.truncate_to(step, rewinds)

    def _archive(self) -> Path:
        """Every state was lost and the run begins anew: what it had measured is moved aside, not deleted."""
        places = (self.directory / f"begun-anew-{number}" for number in itertools.count(1))
        place = next(path for path in places if not path.exists())
        place.mkdir()
        for name in ("metrics.jsonl", *FOLDERS):
            if (self.directory / name).exists():
                (self.directory / name).rename(place / name)
        return place

    def truncate_to(self, step: int, rewinds: list[dict]) -> None:
        """Rows and tables of later steps are removed; `rewinds` stand where they happened, whatever was removed."""
        if self.file >= 0:
            os.close(self.file)
        rows = tables.read_metrics(self.path) if step and self.path.is_file() else []
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
        self.tables: list[tuple[tables.Table, Path, pd.DataFrame]] = []
        self.file = os.open(self.path, os.O_WRONLY)
        self.end = os.fstat(self.file).st_size  # of what is known to be written
        self.written = time.monotonic()

    def missing_rows(self, step: int, tables: set[int], first: int = 0) -> str | None:
        """What is not there of the rows and tables (of the steps `tables`) after step `first` up to `step`. No
        stop leaves such a gap: a state is saved after its rows; someone has deleted or cut a file."""
        rows = step - first - len({row["step"] for row in self.rows if row.get("kind") == "train"})
        absent = sorted(s for s in tables if not (self.directory / "positions" / f"{step_name(s)}.parquet").is_file())
        gaps = [f"{rows} of {step - first} train rows of {self.path.name}"] if rows else []
        gaps += [f"the positions table of step {', '.join(map(str, absent))}"] if absent else []
        return (
            f"{self.directory}: is missing {' and '.join(gaps)}; training continues, and what was lost stays lost"
            if gaps
            else None
        )

    def write(self, kind: str, **values: Any) -> dict:
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
                tables.write(schema, table, path, vocabulary=self.header["vocabulary"])
            except (RunError, OSError) as error:
                return str(error)
            del self.tables[0]
        problem = self._drain()
        try:
            os.fsync(self.file)
        except OSError as late:
            problem = late
        return None if problem is None else str(files.disk_error(problem, self.path))

    def positions(self, step: int, table: pd.DataFrame) -> None:
        """The checkpoint's positions table, which the next flush writes."""
        self.tables.append((tables.POSITIONS, self.directory / "positions" / f"{step_name(step)}.parquet", table))

    def evaluations(self, step: int, table: pd.DataFrame) -> None:
        """The checkpoint's table of tasks, which the next flush writes."""
        self.tables.append((tables.EVALUATIONS, self.directory / "evaluations" / f"{step_name(step)}.parquet", table))

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


def _finite(value: Any) -> Any:
    if isinstance(value, float) and value - value != 0:
        return None
    return value
