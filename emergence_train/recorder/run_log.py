"""A run's own files, the source of truth: metrics.jsonl and the tables of its checkpoints.

A restart first truncates them to the checkpoint it resumes from, so that no row is duplicated or missing.
"""

import contextlib
import errno
import itertools
import json
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from emergence_train import files
from emergence_train.errors import InputError, RunError
from emergence_train.recorder import evaluations, tables
from emergence_train.recorder.layout import step_name
from emergence_train.recorder.metrics import Line, Metrics, TrainLines, iter_pieces

WRITE_SECONDS = 1.0  # rows reach the file at least this often, and all of them before state is saved
COMPARED = 1 << 16  # bytes of a log's end
FOLDERS = ("positions", "evaluations")  # tables named step-XXXXXXXXXX.parquet
MEASURED = ("validation", "forecast", "abilities", "evaluation", "samples", "drift")  # kinds of a checkpoint's rows


class RunLog:
    """Writes metrics.jsonl and tables, on rank 0 only. `header` is the first line and identifies the run.

    A row or table that the disk rejects is kept in memory and retried. No state is saved before its rows are on the disk, so a
    run that resumes has all of them. Rows that were on the disk are read once, line by line, and handed over
    (`take_read_back`): a million rows would take 1.5 GB for as long as the run lasts.
    """

    def __init__(self, directory: Path, header: dict, step: int, rewinds: list[dict], due: bool = False) -> None:
        self.directory, self.header = directory, header
        self.path = directory / "metrics.jsonl"
        self.file = -1  # the descriptor that rows are written to
        self.archived: Path | None = None  # where logs without a state were moved
        with files.named_errors(self.path):
            if not step and any((directory / "positions").glob("step-*.parquet")):
                self.archived = self._archive()
        self._read_back: Metrics | None = self.truncate_to(step, rewinds, due)

    def take_read_back(self) -> Metrics:
        """What the rows that were there say: once, since the log keeps nothing of them."""
        if self._read_back is None:
            raise RuntimeError("what was read back has been taken")
        taken, self._read_back = self._read_back, None
        return taken

    def _archive(self) -> Path:
        """Move the logs aside where every state was lost and the run starts over."""
        places = (self.directory / f"begun-anew-{number}" for number in itertools.count(1))
        place = next(path for path in places if not path.exists())
        place.mkdir()
        for name in ("metrics.jsonl", *reversed(FOLDERS)):  # positions last: while they are there this is not done
            if (self.directory / name).exists():
                (self.directory / name).rename(place / name)
        return place

    def truncate_to(self, step: int, rewinds: list[dict], due: bool = False) -> Metrics:
        """Remove rows and tables of later steps; `rewinds` are kept at their steps. Returns the rows that are left.

        `due`: the state of `step` was saved before its measurements. What a start since then has measured there, but could save
        no state after, is removed as well: it is measured again.
        """
        with files.named_errors(self.path):
            return self._truncate_to(step, rewinds, due)

    def _truncate_to(self, step: int, rewinds: list[dict], due: bool) -> Metrics:
        if self.file >= 0:
            old, self.file = self.file, -1
            os.close(old)
        kept = Metrics(self.path, {"kind": "run", **self.header})
        with files.atomic_path(self.path) as temporary, open(temporary, "wb") as out:
            out.write(json.dumps(kept.header).encode() + b"\n")
            for piece in self._to_keep(step, rewinds, due):
                if isinstance(piece, TrainLines):
                    kept.add_train(piece)
                    out.writelines(piece.lines)
                else:
                    kept.add(*piece[1:])
                    out.write(piece[0] + b"\n")
            self.train_rows = len(np.unique(kept.train("step")))  # steps that have a row
        for table in (table for folder in FOLDERS for table in (self.directory / folder).glob("step-*.parquet")):
            number = table.stem.removeprefix("step-")
            # `evaluate` may have added rows of the state that is resumed
            last = step if table.parent.name == "evaluations" else step - due
            if number.isdigit() and int(number) > last:
                table.unlink()
        self.pending: list[str] = []
        self.tables: list[Callable[[], None]] = []  # each writes one
        self._open()
        self.written = time.monotonic()
        return kept

    def _open(self) -> None:
        self.file = os.open(self.path, os.O_RDWR)
        self.end = os.fstat(self.file).st_size  # length of the file known to be written
        self.durable, self.recent = self.end, b""  # bytes that an fsync has covered, and what was written since
        self.sync_failed = False

    def _to_keep(self, step: int, rewinds: list[dict], due: bool) -> Iterator[TrainLines | Line]:
        """Lines and rows up to `step` of the file as it is, each rewind before the first row of a later step."""
        waiting = [{"kind": "rewind", **rewind} for rewind in sorted(rewinds, key=lambda rewind: rewind["step"])]
        for piece in iter_pieces(self.path) if step and self.path.is_file() else ():
            if isinstance(piece, TrainLines):
                last = min(step, waiting[0]["step"]) if waiting else step
                if (piece.columns["step"] <= last).all():
                    yield piece
                    continue
            for line, row, number in piece.rows() if isinstance(piece, TrainLines) else [piece]:
                at = row.get("step", 0)
                if not isinstance(at, (int, float)):
                    place = f"row {number}, column 'step'"
                    raise InputError(f"{self.path}: {place}: {at!r} is not a number; remove that line")
                if at > step or row.get("kind") in ("run", "rewind") or due and at == step and row["kind"] in MEASURED:
                    continue
                while waiting and at > waiting[0]["step"]:
                    yield json.dumps(waiting[0]).encode(), waiting.pop(0), number
                yield line, row, number
        for rewind in waiting:
            yield json.dumps(rewind).encode(), rewind, 0

    def missing_rows(self, step: int, tables: set[int], first: int = 0) -> str | None:
        """A note on missing rows and tables (of the steps `tables`) after step `first` up to `step`, or None.

        No stop leaves such a gap, since a state is saved after its rows: a file was deleted or truncated.
        """
        rows = step - first - self.train_rows
        absent = sorted(s for s in tables if not (self.directory / "positions" / f"{step_name(s)}.parquet").is_file())
        gaps = [f"{rows} of {step - first} train rows of {self.path.name}"] if rows else []
        gaps += [f"the positions table of step {', '.join(map(str, absent))}"] if absent else []
        return f"{self.directory}: is missing {' and '.join(gaps)}; training continues without them" if gaps else None

    def write(self, kind: str, **values: Any) -> dict:
        """Append one line; numbers that are not finite are written as null."""
        row = {"kind": kind} | {key: _finite(value) for key, value in values.items()}
        self.pending.append(json.dumps(row) + "\n")
        if time.monotonic() - self.written > WRITE_SECONDS:
            self._drain()
        return row

    def flush(self) -> str | None:
        """Write rows and tables to disk, before state is saved; return the failure as one line, or None.

        Raises RunError where the path is no longer the file that rows are written to: they are lost with it, whatever fsync says.
        """
        if not self.sync_failed and not self._in_place():
            raise RunError(
                f"{self.path}: was moved, deleted or replaced while the run wrote to it; put it back as it was, then resume "
                f"from the last saved state"
            )
        while self.tables:
            try:
                self.tables[0]()
            except (RunError, OSError) as error:
                return files.problem_of(error)
            del self.tables[0]
        problem: OSError | None = self._drain()
        try:
            if self.sync_failed:
                self._write_anew()
            os.fsync(self.file)
            self.durable, self.recent = self.end, b""
        except RunError as error:
            return files.problem_of(error)
        except OSError as error:
            problem, self.sync_failed = error, True
        return None if problem is None else files.disk_error(problem, self.path).problem

    def _in_place(self) -> bool:
        """Whether rows are written to the file of the log's name; what cannot be looked at now is not known to have lost it.

        Some mounts (cifs with noserverino, FUSE) give a file another inode number at each look: one that ends as ours does is
        the log, and rows go there from now on.
        """
        try:
            if os.path.samestat(os.fstat(self.file), os.stat(self.path)):
                return True
        except OSError as error:
            return error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
        try:
            there = os.open(self.path, os.O_RDWR)
        except OSError:
            return False
        try:
            if same := _same_end(self.file, there):
                self.file, there = there, self.file
        except OSError:
            return False
        finally:
            os.close(there)
        return same

    def _write_anew(self) -> None:
        """After a failed fsync Linux takes the pages for written and the next one succeeds without them: another file."""
        with open(self.path, "rb") as file:
            kept = file.read(self.durable)
        files.write_bytes(self.path, kept + self.recent)
        old = self.file
        self._open()
        with contextlib.suppress(OSError):
            os.close(old)

    def positions(self, step: int, table: pd.DataFrame) -> None:
        """Queue the checkpoint's positions table for the next flush."""
        self.tables.append(partial(files.write_bytes, *self._encoded(tables.POSITIONS, step, table)))

    def evaluations(self, step: int, table: pd.DataFrame) -> None:
        """Queue the rows of the checkpoint's evaluations table for the next flush: `evaluate` may have added others."""
        self.tables.append(partial(self._add, table, *self._encoded(tables.EVALUATIONS, step, table)))

    def _encoded(self, schema: tables.Table, step: int, table: pd.DataFrame) -> tuple[Path, bytes]:
        """A table that is none fails here: at the head of the queue it would keep the later ones from the disk."""
        path = self.directory / schema.name / f"{step_name(step)}.parquet"
        return path, tables.encode(schema, table, path, vocabulary=self.header["vocabulary"])

    def _add(self, table: pd.DataFrame, path: Path, alone: bytes) -> None:
        """What stands in the way is no reason to stop a run: a lock that is not given up, then a table that cannot be read."""
        for write in (evaluations.add, evaluations.merge):
            try:
                write(path, table, self.header["vocabulary"])
                return
            except InputError:
                continue
        files.write_bytes(path, alone)

    def close(self) -> str | None:
        """`flush`, and close the file even where that raises."""
        unclosed = None
        try:
            problem = self.flush()
        finally:
            try:
                os.close(self.file)
            except OSError as error:
                unclosed = files.disk_error(error, self.path).problem
        return problem or unclosed

    def _drain(self) -> OSError | None:
        """Write the pending lines after the last complete one; a partial line is rewritten."""
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
        self.recent += data
        self.pending = []
        return None


def _same_end(file: int, other: int) -> bool:
    """Whether two open files are of one size and end alike: a log's rows hold times, so that no two others do."""
    size = os.fstat(file).st_size
    place = max(0, size - COMPARED)
    return os.fstat(other).st_size == size and os.pread(file, COMPARED, place) == os.pread(other, COMPARED, place)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and value - value != 0:
        return None
    return value
