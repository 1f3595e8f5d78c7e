"""Columns, types and keys of the tables that training writes and the analyses read."""

from dataclasses import dataclass

import pyarrow as pa

TEXT, INTEGER, REAL, BOOLEAN = pa.string(), pa.int64(), pa.float64(), pa.bool_()
VOCABULARY = "vocabulary"  # optional column or Parquet metadata key: which tokenizer the losses belong to


TASK_DIGEST = "task_digest"  # optional column: which items, and how they are scored; "" not known


@dataclass(frozen=True)
class Table:
    """Columns with their types, the columns that identify a row, those that must not be negative, and optional ones.

    `shares` are at most 1. A cell of a `sparse` column may be empty: it is read as NaN, whole numbers then as float64, and text
    as "". `extra` columns are read and written only where they are there.
    """

    name: str
    columns: dict[str, pa.DataType]
    key: tuple[str, ...]
    non_negative: tuple[str, ...]
    optional: tuple[str, ...] = ()
    sparse: tuple[str, ...] = ()
    extra: tuple[tuple[str, pa.DataType], ...] = ()
    shares: tuple[str, ...] = ()

    @property
    def schema(self) -> pa.Schema:
        return pa.schema(list(self.columns.items()))


POSITIONS = Table(
    "positions",
    {
        "run": TEXT,
        "params": INTEGER,
        "step": INTEGER,
        "tokens": INTEGER,
        "split": TEXT,
        "position": pa.int32(),
        "count": INTEGER,
        "loss_sum": REAL,
        "loss_sq_sum": REAL,
        "correct": INTEGER,
    },
    key=("run", "step", "split", "position"),
    non_negative=("params", "step", "tokens", "count", "loss_sum", "loss_sq_sum", "correct"),
    optional=("correct",),
    sparse=("correct",),
)
# A tokenizer, data and a family part what is compared; their empty cells are empty text
_OF_EVALUATIONS = {
    "unigram_loss": REAL,
    "bits_per_byte": REAL,
    "majority": REAL,
    VOCABULARY: TEXT,
    "data": TEXT,
    "family": TEXT,
    TASK_DIGEST: TEXT,
}
EVALUATIONS = Table(
    "evaluations",
    {
        "run": TEXT,
        "params": INTEGER,
        "step": INTEGER,
        "tokens": INTEGER,
        "loss": REAL,
        "task": TEXT,
        "metric": TEXT,
        "value": REAL,
        "stderr": REAL,
        "items": INTEGER,
        "chance": REAL,
        "higher_is_better": BOOLEAN,
    },
    key=("run", "step", "task", "metric"),
    non_negative=("params", "step", "tokens", "loss", "stderr", "items", "unigram_loss", "bits_per_byte", "majority"),
    optional=("stderr", "items", "chance", "higher_is_better"),
    sparse=("stderr", "items", "chance", "higher_is_better", *_OF_EVALUATIONS),
    extra=tuple(_OF_EVALUATIONS.items()),
)
CURVES = Table(
    "curves",
    {"run": TEXT, "params": INTEGER, "step": INTEGER, "tokens": INTEGER, "lr": REAL, "loss": REAL},
    key=("run", "step"),
    non_negative=("params", "step", "tokens", "lr"),
    optional=("lr",),
    sparse=("lr",),
)
TABLES = {table.name: table for table in (POSITIONS, EVALUATIONS, CURVES)}
