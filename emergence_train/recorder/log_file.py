"""Parts of a run's metrics.jsonl by seeking, while it is written: its end, a step's rows, points along it. The cost does not
grow with the run, but where a value is wrong: the number of its row takes a reading from the start at each opening."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from emergence_train.errors import InputError
from emergence_train.recorder.metrics import TRAIN

WHOLE = ("step", "tokens", "batch", "sequence")  # columns of numbers from 0 on
REAL = (
    "total_tokens",
    "total_steps",
    "loss",
    "lr",
    "grad_norm",
    "tokens_per_second",
    "seconds",
    "share",
    "low95",
    "high95",
    "flops_per_token",
)
LARGEST = 1e300  # below it all is finite as a float, whole numbers of JSON too
PROBE = 1 << 13  # bytes of a look in the middle: some 50 steps
NEAR = 1 << 16  # bytes that are read rather than halved again


class LogFile:
    """The file as it is when it is opened; a resumed run puts another in its place, which the next opening sees.

    Of its rows a value that its column cannot have is left out; `problem` names the first of them.
    """

    def __init__(self, run: Path) -> None:
        self.path = run / "metrics.jsonl"
        try:
            self.file = open(self.path, "rb")  # noqa: SIM115 - closed by __exit__
        except OSError as error:
            raise InputError(f"{run}: is not a run that has begun (metrics.jsonl: {error.strerror})") from None
        self.problem = ""
        status = os.fstat(self.file.fileno())
        self.size, self.modified = status.st_size, status.st_mtime

    def __enter__(self) -> "LogFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.file.close()

    def header(self) -> dict:
        """The first line of kind run; empty where it is not there yet."""
        rows = self.rows(self._lines(0, NEAR)[:1])
        return rows[0] if rows and rows[0].get("kind") == "run" else {}

    def end(self, most: int) -> list[bytes]:
        """The whole lines of the last `most` bytes."""
        return self._lines(max(0, self.size - most), most)

    def rows(self, lines: list[bytes]) -> list[dict]:
        """The objects of lines; what is none (a page that a power cut left empty) is left out."""
        return list(self._objects(lines))

    def rows_at(self, step: int) -> list[dict]:
        """The rows that follow the training row of `step`, to the next step's; of a long one the first NEAR bytes."""
        rows = []
        for row in self._objects(self._lines(self._offset(step), 2 * NEAR)):
            at = row.get("step", 0)
            if row.get("kind") == "train" and at > step:
                break
            if at == step:
                rows.append(row)
        return rows

    def train_rows_along(self, points: int) -> list[dict]:
        """Training rows near `points` places along the file, nearer to each other at its start; in order, each once."""
        rows: dict[int, dict] = {}
        for number in range(points):
            place = int(self.size ** (number / max(points - 1, 1)))
            for row in self.rows(self._lines(min(place, max(0, self.size - PROBE)), PROBE)):
                if row.get("kind") == "train" and isinstance(row.get("step"), int):
                    rows.setdefault(row["step"], row)
        return [rows[step] for step in sorted(rows)]

    def _offset(self, step: int) -> int:
        """A place shortly before the training row of `step`: rows of earlier steps follow it, at most NEAR bytes of them."""
        low, high = 0, self.size
        while high - low > NEAR // 2:
            middle = (low + high) // 2
            lines = [line for line in self._lines(middle, PROBE) if line.startswith(TRAIN)]
            seen = self.rows(lines[:1])
            if seen and isinstance(seen[0].get("step"), int) and seen[0]["step"] < step:
                low = middle
            else:
                high = middle
        return low

    def _lines(self, begin: int, most: int) -> list[bytes]:
        """The lines that lie whole in `most` bytes from `begin` on. A last line that is being written is left out."""
        self.file.seek(max(0, begin - 1))
        data = self.file.read(most + min(begin, 1))
        if begin:  # from the end of the line that `begin` is in
            data = data[data.find(b"\n") + 1 :] if b"\n" in data else b""
        return data[: data.rfind(b"\n") + 1].splitlines()

    def _objects(self, lines: list[bytes]) -> Iterator[dict]:
        for line in lines:
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(row, dict):
                for column in wrong_columns(row):
                    value = row.pop(column)
                    if not self.problem:
                        self.problem = f"{self.path}: {self._place(line)}, column {column!r}: {value!r:.40} is left out"
                yield row

    def _place(self, line: bytes) -> str:
        """Which row of the file a line is; read from the start, since it is asked for once."""
        self.file.seek(0)
        number = next((number for number, other in enumerate(self.file, 1) if other.rstrip(b"\r\n") == line), None)
        return f"row {number}"


def wrong_columns(row: dict) -> list[str]:
    """The columns of a row whose values are not of their kind."""
    kind = row.get("kind", "")
    wrong = [] if isinstance(kind, str) else ["kind"]
    wrong += [name for name in WHOLE if name in row and not (_is_real(row[name]) and row[name] >= 0)]
    wrong += [name for name in REAL if not _fits(name, row.get(name), kind)]
    texts = row.get("texts", [])
    if not (isinstance(texts, list) and all(isinstance(text, dict) for text in texts)):
        wrong.append("texts")
    return wrong


def _fits(name: str, value: object, kind: object) -> bool:
    if name == "loss" and isinstance(value, dict):  # of each split
        return kind not in ("train", "forecast") and all(_fits("", loss, None) for loss in value.values())
    return value is None or _is_real(value) and not (name == "loss" and kind == "validation")


def _is_real(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < LARGEST
