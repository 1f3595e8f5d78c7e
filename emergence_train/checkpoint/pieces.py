"""The index of a checkpoint's pieces: which file holds which elements, so that a reader opens only the files that it needs.

`pieces.index` is a safetensors file with a row for each piece (number of its file, number of its kind|parameter, first element
and count) and the names of both as metadata. Rank 0 writes it from what the ranks say that they have written. A checkpoint
without one, as older versions wrote, is read by the headers of all its shards.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import safe_open

INDEX = "pieces.index"
COLUMNS = ("file", "name", "start", "count")

Held = list[tuple[str, int]]  # keys of a shard's tensors, and their numbers of elements


class Span(NamedTuple):
    """A piece: elements [begin, end) of a flattened parameter, in a file."""

    file: str
    begin: int
    end: int


class Index:
    """Rows sorted by kind and parameter, then by first element."""

    def __init__(self, files: list[str], names: list[str], others: dict[str, list[str]], columns: np.ndarray) -> None:
        """columns: (4, pieces) int64, in the order of COLUMNS. others: keys that are no pieces, with the files that hold each."""
        self.files, self.names, self.others = files, names, others
        order = np.lexsort((columns[2] + columns[3], columns[2], columns[1]))
        self.file, self.name, self.start, self.count = columns[:, order]
        self.numbers = {name: number for number, name in enumerate(names)}
        self.kinds = sorted({name.partition("|")[0] for name in names})

    @classmethod
    def of(cls, held: dict[str, Held]) -> "Index":
        """Of shards by file name."""
        files = list(held)
        others: dict[str, list[str]] = {}
        numbers: dict[str, int] = {}
        rows = []
        for file, (place, keys) in enumerate(held.items()):
            for key, count in keys:
                kind, _, rest = key.partition("|")
                start, _, parameter = rest.partition("|")
                if not parameter:
                    others.setdefault(key, []).append(place)
                    continue
                rows.append((file, numbers.setdefault(f"{kind}|{parameter}", len(numbers)), int(start), count))
        return cls(files, list(numbers), others, np.array(rows, dtype=np.int64).reshape(-1, 4).T)

    @classmethod
    def read(cls, path: Path, files: Iterable[str]) -> "Index":
        """Raises ValueError where it says what no index of these `files` can say."""
        with safe_open(path, "np") as file:
            metadata = file.metadata() or {}
            columns = [file.get_tensor(column) for column in COLUMNS]
        try:
            names, places, others = (json.loads(metadata[key]) for key in ("names", "files", "others"))
        except KeyError as error:
            raise ValueError(f"says nothing of {error}") from None
        if not set(places) | {place for holders in others.values() for place in holders} <= set(files):
            raise ValueError("names a file that is not of this checkpoint")
        if len({(column.dtype.str, column.shape) for column in columns}) != 1 or columns[0].dtype != np.int64:
            raise ValueError("has columns of several lengths or types")
        file_, name, start, count = rows = np.stack(columns)
        limits = np.iinfo(np.int64).max // 2
        if rows.ndim != 2 or rows.size and (rows.min() < 0 or rows.max() > limits):
            raise ValueError("has numbers that no piece has")
        if rows.size and (file_.max() >= len(places) or name.max() >= len(names)):
            raise ValueError("has rows of files or parameters that it does not name")
        return cls(places, names, others, rows)

    def content(self) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
        """Tensors and metadata of the file."""
        columns = (self.file, self.name, self.start, self.count)
        tensors = {name: torch.from_numpy(np.ascontiguousarray(column)) for name, column in zip(COLUMNS, columns)}
        metadata = {"files": self.files, "names": self.names, "others": self.others}
        return tensors, {key: json.dumps(value, separators=(",", ":")) for key, value in metadata.items()}

    def spans(self, kind: str, parameter: str, start: int, end: int) -> list[Span]:
        """Pieces that overlap elements [start, end) of a parameter's `kind`, by their first element."""
        number = self.numbers.get(f"{kind}|{parameter}")
        if number is None:
            return []
        low, high = np.searchsorted(self.name, [number, number + 1])
        begins, ends = self.start[low:high], self.start[low:high] + self.count[low:high]
        chosen = np.flatnonzero((begins < end) & (ends > start))
        return [Span(self.files[self.file[low + i]], int(begins[i]), int(ends[i])) for i in chosen]
