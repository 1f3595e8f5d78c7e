"""Parts of a run's metrics.jsonl by seeking, while it is written: its end, a step's rows, points along it. The cost does not
grow with the run."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from emergence_train.errors import InputError
from emergence_train.recorder.metrics import TRAIN

PROBE = 1 << 13  # bytes of a look in the middle: some 50 steps
NEAR = 1 << 16  # bytes that are read rather than halved again


class LogFile:
    """The file as it is when it is opened; a resumed run puts another in its place, which the next opening sees."""

    def __init__(self, run: Path) -> None:
        self.path = run / "metrics.jsonl"
        try:
            self.file = open(self.path, "rb")  # noqa: SIM115 - closed by __exit__
        except OSError as error:
            raise InputError(f"{run}: is not a run that has begun (metrics.jsonl: {error.strerror})") from None
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
        rows = rows_of(self._lines(0, NEAR)[:1])
        return rows[0] if rows and rows[0].get("kind") == "run" else {}

    def end(self, most: int) -> list[bytes]:
        """The whole lines of the last `most` bytes."""
        return self._lines(max(0, self.size - most), most)

    def rows_at(self, step: int) -> list[dict]:
        """The rows that follow the training row of `step`, to the next step's; of a long one the first NEAR bytes."""
        rows = []
        for row in _objects(self._lines(self._offset(step), 2 * NEAR)):
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
            for row in rows_of(self._lines(min(place, max(0, self.size - PROBE)), PROBE)):
                if row.get("kind") == "train" and isinstance(row.get("step"), int):
                    rows.setdefault(row["step"], row)
        return [rows[step] for step in sorted(rows)]

    def _offset(self, step: int) -> int:
        """A place shortly before the training row of `step`: rows of earlier steps follow it, at most NEAR bytes of them."""
        low, high = 0, self.size
        while high - low > NEAR // 2:
            middle = (low + high) // 2
            lines = [line for line in self._lines(middle, PROBE) if line.startswith(TRAIN)]
            seen = rows_of(lines[:1])
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


def rows_of(lines: list[bytes]) -> list[dict]:
    """The objects of lines; what is none (a page that a power cut left empty) is left out."""
    return list(_objects(lines))


def _objects(lines: list[bytes]) -> Iterator[dict]:
    for line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            yield row
