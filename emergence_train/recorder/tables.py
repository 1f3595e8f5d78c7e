"""The tables that training writes and the analyses read: columns, readers, atomic writers.

Three tables, Parquet or CSV with the same columns:

`positions`    sums over the tokens at one position of one split at one checkpoint. Sums, not means: they
               add across ranks and files. Losses in nats; position 1 is the first predicted token.
`evaluations`  one row per metric of a task at a checkpoint; stderr, items, chance and higher_is_better may be
               missing or empty. unigram_loss and bits_per_byte of the same text are optional.
`curves`       the training loss and learning rate along a run. A run's own metrics.jsonl is read as one.

A reader returns a sorted pandas DataFrame or raises InputError naming file, row and column; nothing is half-read.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from emergence_train.errors import InputError
from emergence_train.files import atomic_path
from emergence_train.recorder.naming import names_of

TEXT, INTEGER, REAL, BOOLEAN = pa.string(), pa.int64(), pa.float64(), pa.bool_()
VOCABULARY = "vocabulary"  # optional column or Parquet metadata key: which tokenizer the losses belong to


@dataclass(frozen=True)
class Table:
    """Columns with their types, the columns that identify a row, those that must not be negative, and optional ones.

    A cell of a `sparse` column may be empty: it is read as NaN, whole numbers then as float64. `extra` columns are optional.
    """

    name: str
    columns: dict[str, pa.DataType]
    key: tuple[str, ...]
    non_negative: tuple[str, ...]
    optional: tuple[str, ...] = ()
    sparse: tuple[str, ...] = ()
    extra: tuple[tuple[str, pa.DataType], ...] = ()

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
)
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
    non_negative=("params", "step", "tokens", "loss", "stderr", "items", "unigram_loss", "bits_per_byte"),
    optional=("stderr", "items", "chance", "higher_is_better"),
    sparse=("stderr", "items", "chance", "higher_is_better", "unigram_loss", "bits_per_byte"),
    extra=(("unigram_loss", REAL), ("bits_per_byte", REAL)),
)
CURVES = Table(
    "curves",
    {"run": TEXT, "params": INTEGER, "step": INTEGER, "tokens": INTEGER, "lr": REAL, "loss": REAL},
    key=("run", "step"),
    non_negative=("params", "step", "tokens", "lr"),
    optional=("lr",),
)
TABLES = {table.name: table for table in (POSITIONS, EVALUATIONS, CURVES)}


# ---------------------------------------------------------------------------------------------------------- reading


def read(
    table: Table,
    paths: str | Path | Iterable[str | Path],
    *,
    mixed_vocabularies: bool = False,
    names: Mapping[Path, str] | None = None,
) -> pd.DataFrame:
    """Read `table` from files, directories of files, or run directories; validated and sorted by its key.

    Run directories that share a name are told apart by naming.names_of, or called as `names` has them. A missing optional
    column (`lr` of curves) comes back as NaN and is named in `frame.attrs["missing"]`.
    Raises InputError for anything that does not hold together; with `mixed_vocabularies` False also for losses that
    were measured with different tokenizers and so cannot be compared in nats per token.
    """
    paths = [paths] if isinstance(paths, (str, Path)) else list(paths)
    if not paths:
        raise InputError(f"no {table.name} table given; name a run directory, a Parquet file or a CSV file")
    names = names_of(paths) if names is None else names
    frames = [
        _called(_read_file(table, file), names.get(Path(path)))
        for path in paths
        for file in _files_of(table, Path(path))
    ]
    missing = sorted({column for frame in frames for column in frame.attrs.get("missing", ())})
    frame = pd.concat(frames, ignore_index=True)
    _check_duplicates(table, frame)
    _check_agreement(table, frame)
    if not mixed_vocabularies:
        _check_vocabularies(frame)
    frame = frame.sort_values(list(table.key), kind="stable", ignore_index=True).drop(columns=["_file", "_row"])
    frame.attrs["missing"] = missing
    return frame


def _called(frame: pd.DataFrame, name: str | None) -> pd.DataFrame:
    """The rows of a run directory under the name that the run is shown by."""
    if name is not None and frame["run"].nunique() == 1:
        frame["run"] = name
    return frame


def _files_of(table: Table, path: Path) -> list[Path]:
    """The files that hold `table` under `path`: a file, a run directory, or a directory of files."""
    if path.is_file():
        return [path]
    if not path.exists():
        raise InputError(f"{path}: no such file or directory; name a run directory, a Parquet file or a CSV file")
    if table is CURVES and (path / "metrics.jsonl").is_file():
        return [path / "metrics.jsonl"]
    folder = path / table.name if (path / table.name).is_dir() else path
    files = sorted(f for f in folder.iterdir() if f.suffix in (".parquet", ".csv") and not f.name.startswith("."))
    if not files:
        raise InputError(f"{folder}: holds no {table.name} table (*.parquet or *.csv); is this a run directory?")
    return files


def _read_file(table: Table, path: Path) -> pd.DataFrame:
    """One file as a frame of exact types, each row knowing its file and its number (1 = first data row)."""
    try:
        if path.suffix == ".parquet":
            arrow = pq.read_table(path)
            arrow.validate(full=True)  # text that is not UTF-8 would fail later, inside pandas
            frame = arrow.to_pandas()
            vocabulary = (arrow.schema.metadata or {}).get(VOCABULARY.encode(), b"").decode()
            if vocabulary and VOCABULARY not in frame:
                frame[VOCABULARY] = vocabulary
        elif path.suffix == ".jsonl":
            frame = _curve_of_metrics(path)
        elif path.suffix == ".csv":
            frame = pd.read_csv(path, dtype={c: str for c, kind in table.columns.items() if kind == TEXT})
        else:
            raise InputError(f"{path}: not a table that can be read; use .parquet or .csv")
    except InputError:
        raise
    except (OSError, ValueError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: cannot be read as a {table.name} table: {reason}") from error
    if frame.empty and not len(frame.columns):
        raise InputError(f"{path}: the {table.name} table is empty")
    missing = [column for column in table.columns if column not in frame]
    needed = [column for column in missing if column not in table.optional]
    if needed:
        names = ", ".join(map(repr, needed))
        raise InputError(
            f"{path}: column{'s' if needed[1:] else ''} {names} {'are' if needed[1:] else 'is'} missing; a {table.name} "
            f"table has {', '.join(table.columns)}"
        )
    if frame.empty:
        raise InputError(f"{path}: the {table.name} table has no rows")
    for column in missing:
        frame[column] = np.nan
    extra = {column: kind for column, kind in table.extra if column in frame}
    for column, kind in (table.columns | extra).items():
        if column not in missing:
            frame[column] = _typed(frame[column], kind, path, column in table.sparse)
    for column in table.non_negative:
        if column in frame and column not in missing:
            _refuse(frame[column] < 0, frame[column], path, "is negative")
    if table is POSITIONS:
        _check_sums(frame, path)
    frame["_file"], frame["_row"] = str(path), np.arange(1, len(frame) + 1)
    frame.attrs["missing"] = missing
    return frame


def _typed(column: pd.Series, kind: pa.DataType, path: Path, sparse: bool = False) -> pd.Series:
    """The column in its declared type, or an InputError that names the first row that is not.

    In a `sparse` column empty cells stay NaN, and whole numbers beside them become float64.
    """
    empty = column.isna()
    if not sparse:
        _refuse(empty, column, path, "is empty or NaN")
    if kind == TEXT:
        return column.astype(str)
    if kind == BOOLEAN:
        words = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}
        values = column.astype(str).str.lower().map(words)
        _refuse(values.isna() & ~empty, column, path, "is neither true nor false")
        return values.astype(object if empty.any() else bool)
    values = pd.to_numeric(column, errors="coerce")
    _refuse(values.isna() & ~empty | np.isinf(values.astype(float)), column, path, "is not a finite number")
    if kind == REAL:
        return values.astype(np.float64)
    if not pd.api.types.is_integer_dtype(values):
        _refuse(values.notna() & (values != np.round(values)), column, path, "is not a whole number")
    return values.astype(np.float64 if empty.any() else kind.to_pandas_dtype())


def _refuse(bad: pd.Series, column: pd.Series, path: Path, what: str) -> None:
    """Raise for the first True of `bad`."""
    if bad.any():
        row = int(np.argmax(bad.to_numpy()))
        raise InputError(f"{path}: row {row + 1}, column {column.name!r}: {column.iloc[row]!r} {what}")


def _check_sums(frame: pd.DataFrame, path: Path) -> None:
    """Check that correct <= count and count * sum of squares >= square of the sum, as any true sums satisfy."""
    _refuse(frame["position"] < 1, frame["position"], path, "is below 1 (1 is the first predicted token)")
    _refuse(frame["correct"] > frame["count"], frame["correct"], path, "is more than count")
    empty = frame["count"] == 0
    _refuse(empty & (frame["loss_sum"] != 0), frame["loss_sum"], path, "is a sum over a count of 0")
    short = frame["loss_sq_sum"] * frame["count"] < frame["loss_sum"] ** 2 * (1 - 1e-5)
    _refuse(short, frame["loss_sq_sum"], path, "is too small for this loss_sum and count (it must be a sum of squares)")


def _check_duplicates(table: Table, frame: pd.DataFrame) -> None:
    duplicated = frame.duplicated(list(table.key), keep=False)
    if duplicated.any():
        twin = frame[duplicated]
        key = tuple(twin.iloc[0][list(table.key)])
        same = twin[(twin[list(table.key)] == list(key)).all(axis=1)]
        places = " and ".join(f"{file} row {row}" for file, row in zip(same["_file"].head(2), same["_row"].head(2)))
        named = ", ".join(f"{name}={value}" for name, value in zip(table.key, key))
        raise InputError(f"the key ({named}) is listed twice: {places}; keep one of them")


def _check_agreement(table: Table, frame: pd.DataFrame) -> None:
    """Check that params is one number within a run, and tokens within a run and step."""
    for columns, value in ((["run"], "params"), (["run", "step"], "tokens")):
        groups = frame.groupby(columns, sort=False)[value]
        bad = groups.transform("min") != groups.transform("max")
        if bad.any():
            first = frame[bad].iloc[0]
            named = ", ".join(f"{name}={first[name]}" for name in columns)
            values = sorted(frame.loc[(frame[columns] == list(first[columns])).all(axis=1), value].unique())
            raise InputError(
                f"{first['_file']}: row {first['_row']}, column {value!r}: {named} has several values "
                f"({', '.join(map(str, values[:3]))}); give different runs different names"
            )


def _check_vocabularies(frame: pd.DataFrame) -> None:
    if VOCABULARY not in frame:
        return
    known = frame[frame[VOCABULARY].notna() & (frame[VOCABULARY].astype(str) != "")]
    if known[VOCABULARY].nunique() > 1:
        first, second = known.drop_duplicates(VOCABULARY).head(2).itertuples(index=False)
        fields = list(known.columns)
        file, run = fields.index("_file"), fields.index("run")
        raise InputError(
            f"runs of different vocabularies: {first[run]!r} ({first[file]}) and {second[run]!r} ({second[file]}); "
            f"their losses in nats per token are not comparable, analyse them separately"
        )


# -------------------------------------------------------------------------------------------- a run's metrics.jsonl


def read_metrics(path: str | Path) -> list[dict]:
    """The lines of a run's metrics.jsonl. A last line cut off by a crash is skipped; any other bad line is an error."""
    path = Path(path)
    path = path / "metrics.jsonl" if path.is_dir() else path
    if not path.is_file():
        raise InputError(f"{path}: no such file; is this a run directory?")
    lines = path.read_text(encoding="utf-8").split("\n")
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError("not an object")
        except ValueError as error:
            if number == len(lines):  # no newline after it: the writer was killed in the middle of this line
                break
            raise InputError(f"{path}: row {number} is not a JSON object ({error}); remove that line") from error
        rows.append(row)
    return rows


def cost_of_tasks(rows: list[dict]) -> tuple[float, float]:
    """(seconds spent on scoring tasks, seconds spent in training steps) so far, from the lines of metrics.jsonl."""
    steps = [row for row in rows if row.get("kind") == "train" and row.get("tokens_per_second")]
    header = next((row for row in rows if row.get("kind") == "run"), {})
    each = header.get("batch", 0) * header.get("sequence", 0)
    scoring = sum(row["seconds"] for row in rows if row.get("kind") == "evaluation" and row.get("seconds"))
    return scoring, sum(each / row["tokens_per_second"] for row in steps)


def _curve_of_metrics(path: Path) -> pd.DataFrame:
    rows = read_metrics(path)
    header = next((row for row in rows if row.get("kind") == "run"), {})
    # A step skipped because its loss was not finite is not part of the curve.
    skipped = {row.get("step") for row in rows if row.get("kind") == "skipped"}
    steps = [row for row in rows if row.get("kind") == "train"]
    steps = [row for row in steps if row.get("loss") is not None or row.get("step") not in skipped]
    frame = pd.DataFrame(steps, columns=["step", "tokens", "lr", "loss"])
    frame.insert(0, "run", header.get("run", path.parent.name))
    frame.insert(1, "params", header.get("params", 0))
    frame[VOCABULARY] = header.get(VOCABULARY, "")
    return frame


# ---------------------------------------------------------------------------------------------------------- writing


def write(table: Table, frame: pd.DataFrame, path: str | Path, *, vocabulary: str = "") -> None:
    """Write the frame as one Parquet file, atomically: a reader sees the whole file or none.

    `vocabulary` names the tokenizer that the losses belong to and travels in the file's metadata.
    """
    path = Path(path)
    missing = [column for column in table.columns if column not in frame]
    if missing:
        raise InputError(f"{path}: a {table.name} table has no column {missing[0]!r} to write")
    extra = [(column, kind) for column, kind in table.extra if column in frame]
    schema = pa.schema([*table.columns.items(), *extra])
    arrow = pa.Table.from_pandas(frame[schema.names], schema=schema, preserve_index=False)
    arrow = arrow.replace_schema_metadata({"table": table.name, VOCABULARY: vocabulary})
    with atomic_path(path) as temporary:
        pq.write_table(arrow, temporary)


# ------------------------------------------------------------------------------------------------------- derivation


def mean_loss(
    positions: pd.DataFrame, by: Sequence[str] = ("run", "params", "step", "tokens", "split")
) -> pd.DataFrame:
    """Mean loss (nats per token) and its standard error, `by` any of the key columns, from a positions table.

    The standard error treats tokens as independent, so it is a lower bound: tokens of one sequence are correlated.
    """
    sums = positions.groupby(list(by), sort=True, as_index=False)[["count", "loss_sum", "loss_sq_sum", "correct"]].sum()
    sums = sums[sums["count"] > 0]
    mean = sums["loss_sum"] / sums["count"]
    variance = np.maximum(sums["loss_sq_sum"] / sums["count"] - mean**2, 0)
    return sums.assign(loss=mean, stderr=np.sqrt(variance / sums["count"]), accuracy=sums["correct"] / sums["count"])
