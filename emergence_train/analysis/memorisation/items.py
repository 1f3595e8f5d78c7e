"""The table that the measures read: one row a probed sequence of a run at a step."""

from dataclasses import replace
from pathlib import Path

import pandas as pd

from emergence_train.errors import InputError
from emergence_train.recorder.schemas import BOOLEAN, INTEGER, REAL, TEXT, Table
from emergence_train.recorder.table_files import Frame, chunks_of

ITEMS = Table(
    "items",
    {
        "run": TEXT,
        "params": INTEGER,
        "step": INTEGER,
        "seen": REAL,
        "extracted": BOOLEAN,
        "loss": REAL,
        "prefix": INTEGER,
        "continuation": INTEGER,
    },
    key=("run", "params", "step", "item"),
    non_negative=("params", "step", "seen", "loss", "prefix", "continuation"),
    extra=(("item", TEXT),),  # equal where the text is
)
LENGTHS = ("prefix", "continuation")
OF_ANY_LENGTH = replace(
    ITEMS,
    columns={name: kind for name, kind in ITEMS.columns.items() if name not in LENGTHS},
    extra=(*ITEMS.extra, *((name, INTEGER) for name in LENGTHS)),
    non_negative=tuple(name for name in ITEMS.non_negative if name not in LENGTHS),
)


def checked(items: pd.DataFrame, table: Table = ITEMS) -> pd.DataFrame:
    """The frame in its types.

    Raises:
        InputError: a column is missing; a cell is empty or not of its column's kind; a text is listed twice, or lengths differ.
    """
    missing = [name for name in table.columns if name not in items]
    if missing:
        raise InputError(f"items: no column {missing[0]!r}; give {', '.join(table.columns)}")
    if items.empty:
        raise InputError("items: the items table has no rows")
    (frame,) = chunks_of(table, Frame(Path("items"), items.reset_index(drop=True)))
    twice = frame.duplicated(list(ITEMS.key)) if "item" in frame else pd.Series(False, frame.index)
    if twice.any():
        row = frame[twice].iloc[0]
        raise InputError(f"items: row {row.name + 1}: run {row['run']} has item {row['item']} twice; keep each once")
    for name in (name for name in LENGTHS if name in frame):
        other = frame[frame[name] != frame[name].iloc[0]]
        if len(other):
            raise InputError(
                f"items: row {other.index[0] + 1}, column {name!r}: {other[name].iloc[0]} beside {frame[name].iloc[0]}; analyse "
                f"probes of each length by themselves"
            )
    return frame
