"""The tables that training writes and the analyses read: columns, readers, atomic writers.

Three tables, Parquet or CSV with the same columns:

`positions`    sums over the tokens at one position of one split at one checkpoint. Sums, not means: they
               add across ranks and files. Losses in nats; position 1 is the first predicted token.
`evaluations`  one row per metric of a task at a checkpoint; stderr, items, chance and higher_is_better may be
               missing or empty. unigram_loss, bits_per_byte, majority, vocabulary, data, family and
               task_digest are optional.
`curves`       the training loss and learning rate (missing or empty: not known) along a run. A run's own metrics.jsonl is
               read as one.

A reader returns a sorted pandas DataFrame or raises InputError naming file, row and column; nothing is half-read. `stream`
gives the same rows in pieces, for tables that are larger than memory should hold: a run of a million steps may have ten
million rows of positions.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from emergence_train.errors import InputError
from emergence_train.files import write_bytes
from emergence_train.recorder.consistency import Consistency
from emergence_train.recorder.metrics import Metrics, read_metrics
from emergence_train.recorder.naming import names_of, run_name
from emergence_train.recorder.schemas import CURVES, EVALUATIONS, POSITIONS, TABLES, VOCABULARY, Table
from emergence_train.recorder.table_files import Frame, chunks_of, files_of, has_rows

__all__ = [
    "CURVES",
    "EVALUATIONS",
    "POSITIONS",
    "TABLES",
    "VOCABULARY",
    "Frame",
    "Metrics",
    "Table",
    "has_rows",
    "mean_loss",
    "read",
    "read_metrics",
    "stream",
    "write",
]

# ---------------------------------------------------------------------------------------------------------- reading


def read(
    table: Table,
    paths: str | Path | Metrics | Frame | Iterable[str | Path | Metrics | Frame],
    *,
    mixed_vocabularies: bool = False,
    names: Mapping[Path, str] | None = None,
) -> pd.DataFrame:
    """Read `table` from files, directories of files, or run directories; validated and sorted by its key.

    Metrics that are read already are a `curves` table too. Run directories that share a name are told apart by
    naming.names_of, or called as `names` has them.

    A missing optional column (`lr` of curves) comes back as NaN and is named in `frame.attrs["missing"]`; `frame.attrs["notes"]`
    are about a log's other rows.
    Raises InputError for inconsistent rows; with `mixed_vocabularies` False also for losses measured with different
    tokenizers, which are not comparable in nats per token.
    """
    chunks = list(stream(table, paths, mixed_vocabularies=mixed_vocabularies, names=names))
    missing = sorted({column for chunk in chunks for column in chunk.attrs.get("missing", ())})
    frame = pd.concat(chunks, ignore_index=True)
    frame = frame.sort_values(list(table.key), kind="stable", ignore_index=True)
    frame.attrs = {"missing": missing, "notes": [note for chunk in chunks for note in chunk.attrs.get("notes", ())]}
    return frame


def stream(
    table: Table,
    paths: str | Path | Metrics | Frame | Iterable[str | Path | Metrics | Frame],
    *,
    mixed_vocabularies: bool = False,
    names: Mapping[Path, str] | None = None,
) -> Iterator[pd.DataFrame]:
    """The rows of `read` in pieces, as the files have them; attrs: the `file`, and its rows `before` the piece.

    Whether the pieces hold together is known after the last: until then, InputError may still be raised.
    """
    paths = [paths] if isinstance(paths, (str, Path, Metrics, Frame)) else list(paths)
    if not paths:
        raise InputError(f"no {table.name} table given; name a run directory, a Parquet file or a CSV file")
    names = names_of(path for path in paths if not isinstance(path, (Metrics, Frame))) if names is None else names
    files = [_files(table, path, names) for path in paths]
    whole = Consistency(table)
    for chunk in _chunks(table, files):
        whole.add(chunk)
        yield chunk
    whole.check(lambda: _chunks(table, files), mixed_vocabularies=mixed_vocabularies)


def _files(
    table: Table, path: str | Path | Metrics | Frame, names: Mapping[Path, str]
) -> list[tuple[Path | Metrics | Frame, dict[str, str]]]:
    """(file, names that its runs are shown by where these are not their own) for each file of a path."""
    if isinstance(path, (Metrics, Frame)):
        return [(path, {})]
    shown = names.get(Path(path))
    renamed = {run_name(Path(path)): shown} if shown is not None else {}
    return [(file, renamed) for file in files_of(table, Path(path))]


def _chunks(
    table: Table, files: Sequence[list[tuple[Path | Metrics | Frame, dict[str, str]]]]
) -> Iterator[pd.DataFrame]:
    """Of each path's files; a checkpoint whose losses were not finite has none beside others."""
    for of_path in files:
        rows = 0
        for file, renamed in of_path:
            for chunk in chunks_of(table, file):
                rows += len(chunk)
                for own, shown in renamed.items():
                    if own != shown:
                        chunk["run"] = chunk["run"].where(chunk["run"] != own, shown)
                yield chunk
        if not rows:
            last = of_path[-1][0]
            raise InputError(f"{last if isinstance(last, Path) else last.path}: the {table.name} table has no rows")


# ---------------------------------------------------------------------------------------------------------- writing


def write(table: Table, frame: pd.DataFrame, path: str | Path, *, vocabulary: str = "") -> None:
    """Write the frame as one Parquet file, atomically: a reader sees the whole file or none.

    `vocabulary` names the tokenizer that the losses belong to and travels in the file's metadata.
    """
    write_bytes(Path(path), encode(table, frame, path, vocabulary=vocabulary))


def encode(table: Table, frame: pd.DataFrame, path: str | Path, *, vocabulary: str = "") -> bytes:
    """The Parquet file that `write` writes; `path` names it in messages."""
    missing = [column for column in table.columns if column not in frame]
    if missing:
        raise InputError(f"{path}: a table of {table.name} has no column {missing[0]!r} to write")
    extra = [(column, kind) for column, kind in table.extra if column in frame]
    schema = pa.schema([*table.columns.items(), *extra])
    arrow = pa.Table.from_pandas(frame[schema.names], schema=schema, preserve_index=False)
    arrow = arrow.replace_schema_metadata({"table": table.name, VOCABULARY: vocabulary})
    # pyarrow's own file says neither that the disk is full, nor what it cannot close in silence
    whole = pa.BufferOutputStream()
    pq.write_table(arrow, whole)
    return whole.getvalue().to_pybytes()


# ------------------------------------------------------------------------------------------------------- derivation


def mean_loss(
    positions: pd.DataFrame, by: Sequence[str] = ("run", "params", "step", "tokens", "split")
) -> pd.DataFrame:
    """Mean loss (nats per token) and its standard error, `by` any of the key columns, from a positions table.

    The standard error treats tokens as independent, so it is a lower bound: tokens of one sequence are correlated.
    """
    added = ["count", "loss_sum", "loss_sq_sum", "correct"]  # correct may not be known: NaN then, not 0
    sums = positions.groupby(list(by), sort=True, as_index=False)[added].sum(min_count=1)
    sums = sums[sums["count"] > 0]
    mean = sums["loss_sum"] / sums["count"]
    variance = np.maximum(sums["loss_sq_sum"] / sums["count"] - mean**2, 0)
    return sums.assign(loss=mean, stderr=np.sqrt(variance / sums["count"]), accuracy=sums["correct"] / sums["count"])
