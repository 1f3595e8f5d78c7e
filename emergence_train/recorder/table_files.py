"""Files of tables as validated pieces: no more of a file is in memory than CHUNK rows of it."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from emergence_train.errors import InputError
from emergence_train.input_files import regular
from emergence_train.recorder.metrics import Metrics
from emergence_train.recorder.schemas import BOOLEAN, CURVES, EVALUATIONS, POSITIONS, REAL, TEXT, VOCABULARY, Table

CHUNK = 1 << 17  # rows
# A few megabytes of Parquet can hold any number of equal rows, and the checks keep 8 bytes of each.
MOST_ROWS = 20_000_000  # in one Parquet file
RATE_ROUNDING = 1e-6  # of the highest rate: some times that of float32
SHARE_ROUNDING = 1e-6


@dataclass(frozen=True)
class Frame:
    """A table in memory; `path` names it in messages."""

    path: Path
    frame: pd.DataFrame


def files_of(table: Table, path: Path) -> list[Path]:
    """The files that hold `table` under `path`: a file, a run directory, or a directory of files."""
    if path.is_file():
        return [path]
    if not path.exists():
        raise InputError(f"{path}: no such file or directory; name a run directory, a Parquet file or a CSV file")
    if table is CURVES and (path / "metrics.jsonl").is_file():
        return [path / "metrics.jsonl"]
    folder = path / table.name if (path / table.name).is_dir() else path
    files = sorted(f for f in folder.iterdir() if f.suffix in (".parquet", ".csv") and not f.name.startswith("."))
    if not files and table is EVALUATIONS and (path / "metrics.jsonl").is_file():
        raise InputError(
            f"{path}: a run without results of tasks; name tasks in its configuration, or run `emergence-train evaluate {path} "
            f"--tasks NAME`"
        )
    if not files:
        raise InputError(f"{folder}: holds no {table.name} table (*.parquet or *.csv); is this a run directory?")
    return files


def has_rows(table: Table, path: Path) -> bool:
    """Whether a run directory has a row of `table`. True of other paths, and where a file cannot be read: its reader says so."""
    files = sorted((path / table.name).glob("*.parquet"))
    with contextlib.suppress(OSError, ValueError, pa.ArrowException):
        return not files or any(pq.read_metadata(regular(file)).num_rows for file in files)
    return True


def chunks_of(table: Table, file: Path | Metrics | Frame) -> Iterator[pd.DataFrame]:
    """The rows of one file in pieces of exact types; `attrs` says the `file` and how many of its rows come `before` a piece.

    A missing optional column comes back as NaN and is named in `attrs["missing"]`. Raises InputError by file, row and column.
    """
    rows, path = 0, file if isinstance(file, Path) else file.path
    try:
        for frame in _pieces(table, file):
            checked = _checked(table, frame, path, rows)
            rows += len(frame)
            if len(checked):
                yield checked
    except InputError:
        raise
    except (OSError, ValueError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: cannot be read as a table of {table.name}: {reason}") from error


def _pieces(table: Table, path: Path | Metrics | Frame) -> Iterator[pd.DataFrame]:
    """A file's rows as they are; at least one piece, which may be empty but has the columns."""
    if isinstance(path, Metrics):
        yield _curve(path)
    elif isinstance(path, Frame):
        yield path.frame.copy()
    elif path.suffix == ".parquet":
        yield from _of_parquet(table, path)
    elif path.suffix == ".jsonl":
        yield _curve(Metrics.read(path))
    elif path.suffix == ".csv":
        text = {column: str for column, kind in (*table.columns.items(), *table.extra) if kind == TEXT}
        with pd.read_csv(regular(path), dtype=text, chunksize=CHUNK) as reader:
            yield from reader
    else:
        raise InputError(f"{path}: not a table that can be read; use .parquet or .csv")


def _of_parquet(table: Table, path: Path) -> Iterator[pd.DataFrame]:
    with pq.ParquetFile(regular(path)) as file:
        rows = file.metadata.num_rows
        if rows > MOST_ROWS:
            raise InputError(
                f"{path}: holds {rows:,} rows, and no more than {MOST_ROWS:,} are read of one file; if they are meant, split "
                f"it into files of a run or a checkpoint each"
            )
        vocabulary = _vocabulary(file)
        if not rows:
            yield file.schema_arrow.empty_table().to_pandas()
        for batch in file.iter_batches(CHUNK):
            batch.validate(full=True)  # text that is not UTF-8 would fail later, in the middle of pandas
            frame = batch.to_pandas(ignore_metadata=True)  # an index of pandas holds columns too
            if vocabulary and VOCABULARY not in frame:
                frame[VOCABULARY] = vocabulary
            yield frame


def vocabulary_of(path: Path) -> str:
    """The tokenizer that the metadata of a Parquet file name; "" where they name none."""
    with pq.ParquetFile(regular(path)) as file:
        return _vocabulary(file)


def _vocabulary(file: pq.ParquetFile) -> str:
    return (file.schema_arrow.metadata or {}).get(VOCABULARY.encode(), b"").decode()


def _curve(metrics: Metrics) -> pd.DataFrame:
    """The training steps as a `curves` table, not yet checked."""
    # A step whose update was left out because its loss was not a number has nothing to tell of a curve.
    keep = ~(np.isnan(metrics.train("loss")) & metrics.skipped())
    frame = pd.DataFrame({name: metrics.train(name)[keep] for name in ("step", "tokens", "lr", "loss")})
    header = metrics.header or {}
    frame.insert(0, "run", header.get("run", metrics.path.parent.name))
    frame.insert(1, "params", header.get("params", 0))
    frame[VOCABULARY] = header.get(VOCABULARY, "")
    frame.index = pd.Index(metrics.train_numbers()[keep])
    frame.attrs |= {"numbered": True, "notes": metrics.notes}
    return frame


def row_number(frame: pd.DataFrame, row: int) -> int:
    """The number of a piece's row in its file, from 1 on: of a log the line, since it has lines of other kinds too."""
    return int(frame.index[row]) if frame.attrs.get("numbered") else frame.attrs["before"] + row + 1


def _checked(table: Table, frame: pd.DataFrame, path: Path, before: int) -> pd.DataFrame:
    """A piece of a file with exact types, or an InputError; `before` rows of the file come before it."""
    if frame.empty and not len(frame.columns):
        raise InputError(f"{path}: the {table.name} table is empty")
    missing = [column for column in table.columns if column not in frame]
    needed = [column for column in missing if column not in table.optional]
    if needed:
        named = ", ".join(map(repr, needed))
        raise InputError(
            f"{path}: column{'s' if needed[1:] else ''} {named} {'are' if needed[1:] else 'is'} missing; a table "
            f"of {table.name} has {', '.join(table.columns)}"
        )
    if frame.empty:
        return frame
    frame.attrs |= {"file": str(path), "before": before, "missing": missing}
    refuse = _Refusal(path, frame)
    for column in missing:
        frame[column] = np.nan
    extra = {column: kind for column, kind in table.extra if column in frame}
    for column, kind in (table.columns | extra).items():
        if column not in missing:
            frame[column] = _typed(frame[column], kind, refuse, column in table.sparse)
    for column in table.non_negative:
        if column in frame and column not in missing:
            if column == "lr":
                frame[column] = clear_rounding(frame[column].to_numpy())
            refuse(frame[column].to_numpy() < 0, frame[column], "is negative")
    for column in table.shares:
        refuse(frame[column].to_numpy() > 1 + SHARE_ROUNDING, frame[column], "is above 1; give shares, not percent")
    if table is POSITIONS:
        _check_sums(frame, refuse)
    return frame


def clear_rounding(rate: np.ndarray) -> np.ndarray:
    """Learning rates (n,) with those set to 0 that are below it by rounding, as at the end of peak * (1 - sqrt(x))."""
    return np.where((rate < 0) & (rate > -RATE_ROUNDING * np.fmax.reduce(rate, initial=0.0)), 0.0, rate)


class _Refusal:
    """Raises for the first True of `bad`, by file, row and column."""

    def __init__(self, path: Path, frame: pd.DataFrame) -> None:
        self.path, self.frame = path, frame

    def __call__(self, bad: pd.Series | np.ndarray, column: pd.Series, what: str) -> None:
        if bad.any():
            row = int(np.argmax(np.asarray(bad)))
            place = f"row {row_number(self.frame, row)}, column {column.name!r}"
            value = column.iloc[row]
            shown = value.item() if isinstance(value, np.generic) else value  # numpy's repr names its type
            raise InputError(f"{self.path}: {place}: {shown!r} {what}")


def _typed(column: pd.Series, kind: pa.DataType, refuse: _Refusal, sparse: bool = False) -> pd.Series:
    """The column in its declared type, or an InputError that names the first row that is not.

    In a `sparse` column empty cells stay NaN (of text ""), and whole numbers beside them become float64.
    """
    if kind not in (TEXT, BOOLEAN) and _is_plain(column, kind):
        return column.astype(kind.to_pandas_dtype())
    empty = column.isna()
    if not sparse:
        refuse(empty, column, "is empty or NaN")
    if kind == TEXT:
        if pd.api.types.is_float_dtype(column):
            column = column.convert_dtypes()  # whole numbers beside an empty cell: 50257 as in files without one
        return column.astype(str).where(~empty, "")
    if kind == BOOLEAN:
        words = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}
        values = column.astype(str).str.lower().map(words)
        refuse(values.isna() & ~empty, column, "is neither true nor false")
        return values.astype(object if empty.any() else bool)
    values = pd.to_numeric(column, errors="coerce")
    refuse(values.isna() & ~empty | np.isinf(values.astype(float)), column, "is not a finite number")
    if kind == REAL:
        return values.astype(np.float64)
    if not pd.api.types.is_integer_dtype(values):
        refuse(values.notna() & (values != np.round(values)), column, "is not a whole number")
    return values.astype(np.float64 if empty.any() else kind.to_pandas_dtype())


def _is_plain(column: pd.Series, kind: pa.DataType) -> bool:
    """Whether every cell is a number of that kind at a glance, as in most columns."""
    if not isinstance(column.dtype, np.dtype):
        return False
    return column.dtype.kind == "i" or (
        kind == REAL and column.dtype.kind == "f" and bool(np.isfinite(column.to_numpy()).all())
    )


def _check_sums(frame: pd.DataFrame, refuse: _Refusal) -> None:
    """What any true set of sums satisfies: correct <= count, and count * sum of squares >= square of the sum."""
    position, correct, count, total, squares = (
        frame[name].to_numpy() for name in ("position", "correct", "count", "loss_sum", "loss_sq_sum")
    )
    refuse(position < 1, frame["position"], "is below 1 (1 is the first predicted token)")
    refuse(correct > count, frame["correct"], "is more than count")
    refuse((count == 0) & (total != 0), frame["loss_sum"], "is a sum over a count of 0")
    short = squares * count < total**2 * (1 - 1e-5)
    refuse(short, frame["loss_sq_sum"], "is too small for this loss_sum and count (it must be a sum of squares)")
