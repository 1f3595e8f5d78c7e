"""A run's metrics.jsonl: a line a step or event, read one at a time, since a run of a million steps has 170 MB of them."""

import codecs
import itertools
import json
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from emergence_train.errors import InputError

BYTES = 1 << 20  # read at once
ROWS = 4096  # turned into numbers at once
TRAIN_COLUMNS = ("step", "tokens", "lr", "loss", "tokens_per_second")
TRAIN = b'{"kind": "train", '  # a step's line as RunLog writes it
FEW = 64  # lines in a row of which columns are made one by one


Line = tuple[bytes, dict, int]  # without its end, what it says, its number in the file from 1 on


@dataclass(frozen=True)
class TrainLines:
    """Lines of training steps in a row, as they are in the file, and their numbers."""

    lines: list[bytes]
    columns: dict[str, np.ndarray]  # (n,) for each of TRAIN_COLUMNS, NaN where a line has none
    first: int  # the number of the first of them in the file, from 1 on

    def rows(self) -> Iterator[Line]:
        """The lines as iter_pieces gives those of other kinds."""
        return ((line.strip(), json.loads(line), number) for number, line in enumerate(self.lines, self.first))


def iter_metrics(path: str | Path) -> Iterator[tuple[bytes, dict]]:
    """Each line of a run's metrics.jsonl, without its end, and what it says. `path`: the file or the run directory.

    A last line cut off by a crash is left out; any other bad line is an InputError. A power cut may leave zeros where a page of
    the file did not reach the disk: the rows end there, for of what comes after it nothing was known to be written.
    """
    for piece in iter_pieces(path):
        for line, row, _ in piece.rows() if isinstance(piece, TrainLines) else [piece]:
            yield line, row


def read_header(run: Path) -> dict:
    """The first line of kind `run` of a run directory's metrics.jsonl; empty where there is none."""
    return next((row for _, row in iter_metrics(run) if row.get("kind") == "run"), {})


def iter_pieces(path: str | Path) -> Iterator[TrainLines | Line]:
    """iter_metrics with the many lines of training steps together: a dictionary of each takes five times as long."""
    path = Path(path)
    path = path / "metrics.jsonl" if path.is_dir() else path
    if not path.is_file():
        raise InputError(f"{path}: no such file; is this a run directory?")
    with open(path, "rb") as file:
        before = 0
        while lines := file.readlines(BYTES):
            if not before:
                lines[0] = lines[0].removeprefix(codecs.BOM_UTF8)  # of an editor
            zeros = next((number for number, line in enumerate(lines) if b"\0" in line), None)
            for train, group in itertools.groupby(lines[:zeros], lambda line: line.startswith(TRAIN)):
                together = list(group)
                columns = _train_columns(together) if train and len(together) >= FEW else None
                if columns is None:
                    yield from _parsed_together(together, before) or _parsed(together, before, path)
                else:
                    yield TrainLines(together, columns, before + 1)
                before += len(together)
            if zeros is not None:
                return


def _train_columns(lines: list[bytes]) -> dict[str, np.ndarray] | None:
    """The columns of TrainLines; None where Python's JSON might read something else in the lines."""
    import pyarrow as pa
    from pyarrow import json as arrow_json

    text = b"".join(lines)
    plain = text.isascii() and text.count(b'"kind"') == len(lines) and all(line.endswith(b"}\n") for line in lines)
    if not plain:
        return None
    schema = pa.schema([(name, pa.float64()) for name in TRAIN_COLUMNS])
    try:
        table = arrow_json.read_json(
            pa.BufferReader(text),
            arrow_json.ReadOptions(use_threads=False, block_size=len(text) + 1),
            arrow_json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"),
        )
    except pa.ArrowException:
        return None
    return {name: table[name].to_numpy() for name in TRAIN_COLUMNS} if len(table) == len(lines) else None


def _parsed_together(lines: list[bytes], before: int) -> list[Line] | None:
    """The lines as one JSON array, which takes half the time; None where they might not be one object each.

    Without brackets of their own, objects that begin and end with their lines cannot run over two of them.
    """
    stripped = [line.strip() for line in lines]
    text = b",".join(stripped)
    if b"[" in text or not all(line[:1] == b"{" and line[-1:] == b"}" for line in stripped):
        return None
    try:
        rows = json.loads(f"[{text.decode()}]")
    except (ValueError, RecursionError):
        return None
    return list(zip(stripped, rows, itertools.count(before + 1))) if len(rows) == len(lines) else None


def _parsed(lines: list[bytes], before: int, path: Path) -> Iterator[Line]:
    """The lines one by one, `before` lines of the file come before them."""
    for number, line in enumerate(lines, before + 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode())
            if not isinstance(row, dict):
                raise ValueError("not an object")
        except (ValueError, RecursionError) as error:
            if not line.endswith(b"\n"):  # the writer was killed in the middle of this line
                return
            raise InputError(f"{path}: row {number} is not a JSON object ({error}); remove that line") from error
        yield line.strip(), row, number


def read_metrics(path: str | Path) -> list[dict]:
    """All lines of a run's metrics.jsonl as dictionaries, for short runs; Metrics holds those of a long one."""
    return [row for _, row in iter_metrics(path)]


class Metrics:
    """What metrics.jsonl says: a column of numbers for each name in TRAIN_COLUMNS, and the other lines as they are.

    `header` is the first line of kind "run", `events` every line that is not of a step or a header, in order; `notes` name
    another header. 48 bytes a step: the lines themselves would take a kilobyte each.
    """

    def __init__(self, path: Path, header: dict | None = None) -> None:
        self.path, self.header = path, header
        self.events: list[dict] = []
        self.notes: list[str] = []
        self._numbers = array("q")  # of the train lines in the file
        self._columns = {name: array("d") for name in TRAIN_COLUMNS}
        self._waiting: list[tuple[dict, int]] = []  # train lines that are not yet in the columns

    @classmethod
    def read(cls, path: str | Path) -> "Metrics":
        """Raises InputError for a line that is no JSON object or a step's number that is none."""
        path = Path(path)
        metrics = cls(path / "metrics.jsonl" if path.is_dir() else path)
        for piece in iter_pieces(path):
            if isinstance(piece, TrainLines):
                metrics.add_train(piece)
            else:
                metrics.add(*piece[1:])
        metrics._move()
        return metrics

    def add(self, row: dict, number: int = 0) -> None:
        """The next line; `number`: of the file, where it is from one."""
        kind = row.get("kind")
        if kind == "train":
            self._waiting.append((row, number))
            if len(self._waiting) == ROWS:
                self._move()
        elif kind != "run":
            self.events.append(row)
        elif self.header is None:
            self.header = row
        elif differing := [key for key in row if row[key] != self.header.get(key, row[key])]:
            others = ", ".join(differing)
            self.notes.append(f"{self.path}: row {number} is a header of another {others}: two runs wrote here")

    def add_train(self, lines: TrainLines) -> None:
        """The next lines, all of training steps."""
        self._move()
        for name, column in self._columns.items():
            column.frombytes(lines.columns[name].tobytes())
        self._numbers.extend(range(lines.first, lines.first + len(lines.lines)))

    def train(self, name: str) -> np.ndarray:
        """(n,) a column of the training steps, NaN where a line has none."""
        self._move()
        return np.array(self._columns[name])

    def train_numbers(self) -> np.ndarray:
        """(n,) the number of each training step's line in the file, from 1 on."""
        self._move()
        return np.array(self._numbers)

    def _move(self) -> None:
        """Put the waiting lines into the columns."""
        for name, column in self._columns.items():
            values = [row.get(name) for row, _ in self._waiting]
            try:
                if any(isinstance(value, str) for value in values):  # numpy would take "9" for 9
                    raise ValueError("text")
                numbers = np.array(values, float)  # None becomes NaN
                if numbers.ndim != 1:
                    raise ValueError("lists")
                column.frombytes(numbers.tobytes())
            except (TypeError, ValueError, OverflowError):
                k, value = next((k, value) for k, value in enumerate(values) if not _is_number(value))
                place = f"row {self._waiting[k][1]}, column {name!r}"
                raise InputError(f"{self.path}: {place}: {value!r} is not a finite number") from None
        self._numbers.extend(number for _, number in self._waiting)
        self._waiting = []

    def of_kind(self, kind: str) -> list[dict]:
        """The events of one kind."""
        return [row for row in self.events if row.get("kind") == kind]

    def skipped(self) -> np.ndarray:
        """(n,) whether the update of each step was left out, or the run stopped at it."""
        steps = [row.get("step") for row in self.events if row.get("kind") in ("skipped", "stop")]
        return np.isin(self.train("step"), [step for step in steps if isinstance(step, (int, float))])

    def cost_of_tasks(self) -> tuple[float, float]:
        """(seconds spent on scoring tasks, seconds spent in training steps)."""
        header = self.header or {}
        rate = self.train("tokens_per_second")
        each = header.get("batch", 0) * header.get("sequence", 0)
        scoring = sum(row["seconds"] for row in self.of_kind("evaluation") if row.get("seconds"))
        return float(scoring), float((each / rate[rate > 0]).sum())


def _is_number(value: object) -> bool:
    if isinstance(value, str):
        return False
    try:
        return np.array([value], float).ndim == 1
    except (TypeError, ValueError, OverflowError):
        return False
