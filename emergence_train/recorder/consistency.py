"""Whether the pieces of a table hold together: no key twice, one size a run, one number of tokens a step, one vocabulary.

Of a row its key's hash is kept, 8 bytes. What a message needs beyond that is read again, once something is known to be wrong.
"""

from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd

from emergence_train.errors import InputError
from emergence_train.recorder.schemas import VOCABULARY, Table
from emergence_train.recorder.table_files import row_number

Chunks = Callable[[], Iterator[pd.DataFrame]]  # the pieces again, from the first


class Consistency:
    """Sees every piece of a table once; `check` raises InputError for the first thing that is wrong."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self._codes: dict[str, int] = {}  # numbers of the texts in keys
        self._hashes: list[np.ndarray] = []
        # (columns of a group, column that is one number in it, that number by group, groups that have several)
        self._agreeing: list[tuple[list[str], str, dict[tuple, int], set[tuple]]] = [(["run"], "params", {}, set())]
        if table.key != ("run", "step"):  # else a step has one row, and its tokens agree with themselves
            self._agreeing.append((["run", "step"], "tokens", {}, set()))
        self._vocabularies: dict[str, tuple[str, str]] = {}  # (run, file) where each was seen first

    def add(self, chunk: pd.DataFrame) -> None:
        """The next piece, as table_files gives it."""
        self._hashes.append(self._hash(chunk))
        for columns, value, known, bad in self._agreeing:
            numbers = [self._numbers(chunk[name]) for name in (*columns, value)]
            first = _first_of_each_stretch(numbers)
            for *group, number in zip(*(chunk[name].iloc[first].tolist() for name in (*columns, value))):
                if known.setdefault(tuple(group), number) != number:
                    bad.add(tuple(group))
        if VOCABULARY in chunk:
            for row in _first_of_each_stretch([self._numbers(chunk[VOCABULARY])]):
                name = chunk[VOCABULARY].iloc[row]
                if not pd.isna(name) and str(name):
                    self._vocabularies.setdefault(name, (chunk["run"].iloc[row], chunk.attrs["file"]))

    def check(self, again: Chunks, *, mixed_vocabularies: bool) -> None:
        """Raise InputError where the pieces do not hold together; `again` gives them once more."""
        self._check_duplicates(again)
        for columns, value, _, bad in self._agreeing:
            if bad:
                _raise_disagreement(again, columns, value, bad)
        if len(self._vocabularies) > 1 and not mixed_vocabularies:
            (first, file), (second, other) = list(self._vocabularies.values())[:2]
            raise InputError(
                f"runs of different vocabularies: {first!r} ({file}) and {second!r} ({other}); "
                f"their losses in nats per token are not comparable, analyse them separately"
            )

    def _hash(self, chunk: pd.DataFrame) -> np.ndarray:
        """(n,) uint64 of the keys: equal keys have equal ones, different keys hardly ever."""
        total = np.zeros(len(chunk), np.uint64)
        for name in self.table.key:
            total = pd.util.hash_array(total ^ self._numbers(chunk[name]).view(np.uint64))
        return total

    def _numbers(self, column: pd.Series) -> np.ndarray:
        """(n,) int64: the whole numbers of a column, or a number for each of its texts."""
        if pd.api.types.is_integer_dtype(column):
            return column.to_numpy(np.int64)
        first = column.iloc[0]
        place, texts = (0, [first]) if (column == first).all() else pd.factorize(column, use_na_sentinel=False)
        codes = np.array([self._codes.setdefault(str(text), len(self._codes)) for text in texts], np.int64)
        return np.broadcast_to(codes[place], len(column)).copy()

    def _check_duplicates(self, again: Chunks) -> None:
        hashes = np.concatenate(self._hashes)
        self._hashes = [hashes]
        hashes.sort()
        twice = np.unique(hashes[1:][hashes[1:] == hashes[:-1]])
        alone: set[tuple] = set()  # keys that are there once and share their hash with another
        while len(twice):
            first: tuple[np.uint64, tuple, str] | None = (
                None  # (hash, key, place) of the first row that may be there twice
            )
            for chunk in again():
                hashes = self._hash(chunk)
                begin = 0
                if first is None:
                    rows = np.flatnonzero(np.isin(hashes, twice)).tolist()
                    begin = next((row + 1 for row in rows if self._key(chunk, row) not in alone), 0)
                    if not begin:
                        continue
                    first = hashes[begin - 1], self._key(chunk, begin - 1), _place(chunk, begin - 1)
                for row in (begin + np.flatnonzero(hashes[begin:] == first[0])).tolist():
                    if self._key(chunk, row) == first[1]:
                        named = ", ".join(f"{name}={value}" for name, value in zip(self.table.key, first[1]))
                        places = f"{first[2]} and {_place(chunk, row)}"
                        raise InputError(f"the key ({named}) is listed twice: {places}; keep one of them")
            if first is None:
                return
            alone.add(first[1])

    def _key(self, chunk: pd.DataFrame, row: int) -> tuple:
        return tuple(chunk[name].iloc[row] for name in self.table.key)


def _place(chunk: pd.DataFrame, row: int) -> str:
    return f"{chunk.attrs['file']} row {row_number(chunk, row)}"


def _first_of_each_stretch(columns: list[np.ndarray]) -> np.ndarray:
    """The rows at which any of the columns (n,) changes, and the first."""
    changes = np.zeros(len(columns[0]), bool)
    changes[0] = True
    for column in columns:
        changes[1:] |= column[1:] != column[:-1]
    return np.flatnonzero(changes)


def _raise_disagreement(again: Chunks, columns: list[str], value: str, bad: set[tuple]) -> None:
    """Name the first row of a group in `bad`, and the values of that group."""
    first: tuple[tuple, str, int] | None = None  # (group, file, row)
    values: set[int] = set()
    for chunk in again():
        groups = list(chunk[columns].itertuples(index=False, name=None))
        if first is None:
            row = next((row for row, group in enumerate(groups) if group in bad), None)
            if row is None:
                continue
            first = groups[row], chunk.attrs["file"], row_number(chunk, row)
        values |= set(chunk.loc[[group == first[0] for group in groups], value])
    if first is None:
        raise RuntimeError("the files changed while they were read")
    group, file, row = first
    named = ", ".join(f"{name}={part}" for name, part in zip(columns, group))
    raise InputError(
        f"{file}: row {row}, column {value!r}: {named} has several values "
        f"({', '.join(map(str, sorted(values)[:3]))}); give different runs different names"
    )
