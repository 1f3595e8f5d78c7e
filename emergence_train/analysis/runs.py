"""Tables, logs and run directories as series that the temporal analysis can fit: one per run and split."""

import contextlib
import io
import itertools
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from emergence_train.analysis import logs
from emergence_train.analysis.logs import HEAD, Curve, LogOptions
from emergence_train.analysis.logs.cells import header_of
from emergence_train.analysis.logs.encoded import text_of
from emergence_train.analysis.outlook import Ahead
from emergence_train.analysis.planned_schedule import PlannedSchedule
from emergence_train.analysis.planned_series import Series, rising, set_plan
from emergence_train.analysis.position_matrix import PositionMatrix, observed_rows, read_matrices
from emergence_train.errors import InputError
from emergence_train.input_files import regular
from emergence_train.recorder import tables
from emergence_train.recorder.metrics import iter_metrics, read_header
from emergence_train.recorder.naming import display_names, is_run
from emergence_train.recorder.planned_end import planned_steps, planned_tokens

BEFORE_HEADER = 8  # lines of a run's metrics.jsonl among which its header must be


def load(
    paths: str | Path | Iterable[str | Path],
    planned_lr: np.ndarray | None = None,
    *,
    ahead: Ahead | None = None,
    options: LogOptions | None = None,
) -> list[Series]:
    """Every run and split in `paths`: run directories, Parquet or CSV files of `positions` or `curves`, logs of others.

    `planned_lr` (K, 2) holds tokens (or steps, for tables without tokens) and learning rate of the whole run; it and
    `ahead` apply to all runs, `options` to all logs. Raises InputError for what cannot be read, and for
    inconsistent tables.
    """
    paths = [paths] if isinstance(paths, (str, Path)) else list(paths)
    if not paths:
        raise InputError("no table given; name a run directory, a Parquet file, a CSV file or a log")
    by_split: list[Series] = []
    curves: list[Series] = []
    for path in map(Path, paths):
        ours, theirs = _read(path, options or LogOptions())
        by_split += ours
        curves += theirs
    _name_apart(by_split + curves)
    return _planned(by_split, curves, planned_lr, ahead or Ahead())


def run_series(
    directory: Path, matrices: list[PositionMatrix], curve: pd.DataFrame | None, *, name: str | None = None
) -> list[Series]:
    """The series of a run directory whose positions and curve (None: it has none) are read already, shown by `name`."""
    by_split = [_from_matrix(matrix) for matrix in matrices]
    curves = _from_curves(curve) if curve is not None else []
    for series in by_split + curves:
        series.run = name or series.run
    _of_run(directory, by_split + curves)
    return _planned(by_split, curves, None, Ahead())


def recorded_plan(directory: Path) -> Series | None:
    """The training curve of a run directory, with the learning rates and the end that its metrics.jsonl says; None where it plans
    no end or has no curve."""
    if not _has_training_rows(directory):
        return None
    curve = [series for series in _from_curves(tables.read(tables.CURVES, directory)) if len(series.step)]
    _of_run(directory, curve)
    known = [series for series in _planned([], curve, None, Ahead()) if series.logged_end and series.by_tokens]
    return known[0] if known else None


def _of_run(directory: Path, all_series: list[Series]) -> None:
    """Set what a run directory's header says of its series."""
    header = read_header(directory)
    for series in all_series:
        series.source, series.vocabulary = directory, str(header.get(tables.VOCABULARY) or "")
        if not len(series.step):
            continue
        total = planned_tokens(header, 0, 0) if series.by_tokens else 0  # in steps by the last batch, where it grows
        series.logged_end = float(series.steps_at(total)) if total else planned_steps(header, series.step[-1], 0)


def _planned(by_split: list[Series], curves: list[Series], planned_lr: np.ndarray | None, ahead: Ahead) -> list[Series]:
    """The series with their planned learning rates, each run and split once."""
    _refuse_duplicates(by_split)
    _refuse_duplicates(curves)
    recorded = {curve.run: curve for curve in curves if curve.plan is not None}
    for series in by_split + curves:
        set_plan(series, recorded.get(series.run), planned_lr, ahead)
    return by_split + curves


def _read(path: Path, options: LogOptions) -> tuple[list[Series], list[Series]]:
    """(series of positions by split, training curves) of one path."""
    if _is_log(path, options):
        curves = logs.read(path, options)
        if len(curves) > 1 and all(len(curve.frame) == 1 for curve in curves):
            raise InputError(f"{path}: has a row a run, which is no curve; name the log of one run")
        return [], [_from_log(curve) for curve in curves]
    if options.given and options.format != "table" and path.exists():
        what = "a run directory" if path.is_dir() else "a table of positions"
        raise InputError(
            f"{path}: is {what}, which says all of that itself; leave --format, --run, --params, --tokens-per-step, "
            f"--column and --loss-unit out, they are for logs"
        )
    kinds = _kinds(path)
    matrices = read_matrices(path) if "positions" in kinds else []
    by_split = [_from_matrix(matrix) for matrix in matrices]
    of_runs = _from_curves(tables.read(tables.CURVES, path)) if "curves" in kinds else []
    if is_run(path):
        _of_run(path, by_split + of_runs)
    return by_split, of_runs


def _name_apart(all_series: list[Series]) -> None:
    """Give run directories and logs of one name different ones. A table's runs keep the names that it gives them."""
    sources = {(s.run, s.source): s.source for s in all_series if s.source is not None}
    names = dict(zip(sources, display_names([(run, path) for (run, _), path in sources.items()])))
    for series in all_series:
        if series.source is not None:
            series.run = names[series.run, series.source]


def _is_log(path: Path, options: LogOptions) -> bool:
    """Whether a path is a log of others, to be understood by its columns' names, and not one of our tables."""
    if options.format == "table" or not path.exists():
        return False
    if path.is_dir():
        known = is_run(path) or (path / "positions").is_dir() or (path / "curves").is_dir()
        return not known and (options.format != "auto" or logs.format_of(path) is not None)
    if options.format != "auto":
        return True
    if _has_positions(header_of(path)):
        if _is_plain(path):
            return False
        raise InputError(f"{path}: holds positions, which are read from .parquet or plain .csv; unpack it, with commas")
    if path.suffix in (".parquet", ".csv"):
        needed = set(tables.CURVES.columns) - set(tables.CURVES.optional)
        return options.given or not needed <= set(_columns(path))
    return path.suffix != ".jsonl" or not _is_ours(path)


def _is_ours(path: Path) -> bool:
    """Whether a JSONL file is a run's metrics.jsonl; a bad line may be before its header."""
    with open(regular(path), encoding="utf-8-sig", errors="replace") as file:
        for number, line in enumerate(itertools.islice(file, BEFORE_HEADER)):
            with contextlib.suppress(ValueError, TypeError, RecursionError):
                row = json.loads(line)
                if "kind" in row and (not number or row["kind"] == "run"):
                    return True
    return False


def _columns(path: Path) -> list[str]:
    try:
        if path.suffix == ".parquet":
            return list(pq.read_schema(regular(path)).names)
        return list(pd.read_csv(io.StringIO(text_of(path, HEAD, errors="replace")), nrows=0).columns)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise InputError(f"{path}: cannot be read as a table: {' '.join(str(error).split())}") from error


def _has_positions(columns: Iterable[str]) -> bool:
    return bool({"position", "loss_sum"} & set(columns))


def _is_plain(path: Path) -> bool:
    """Whether a table can be read in pieces as it lies there."""
    return path.suffix in (".parquet", ".csv") and _has_positions(_columns(path))


def _kinds(path: Path) -> list[str]:
    """Kinds of the tables at a path."""
    if path.is_dir():
        kinds = []
        if (path / "positions").is_dir() and any((path / "positions").iterdir()):
            kinds.append("positions")
        if (path / "metrics.jsonl").is_file():
            if not kinds or _has_training_rows(path):
                kinds.append("curves")
            return kinds
        if (path / "curves").is_dir():
            kinds.append("curves")
        if kinds:
            return kinds
        files = sorted(f for f in path.iterdir() if f.suffix in (".parquet", ".csv") and not f.name.startswith("."))
        if not files:
            raise InputError(f"{path}: holds no positions or curves table; is this a run directory?")
        return _kinds(files[0])
    if not path.exists():
        raise InputError(
            f"{path}: no such file or directory; name a run directory, a Parquet file, a CSV file or a log"
        )
    if path.suffix not in (".parquet", ".csv"):
        return ["curves"]
    return ["positions"] if _has_positions(_columns(path)) else ["curves"]


def _has_training_rows(path: Path) -> bool:
    return any(row.get("kind") == "train" for _, row in iter_metrics(path))


def _from_matrix(matrix: PositionMatrix) -> Series:
    keys = matrix.keys
    series = Series(
        str(keys["run"].iloc[0]),
        str(keys["split"].iloc[0]),
        keys["step"].to_numpy(float),
        keys["tokens"].to_numpy(float),
        matrix.mean_loss,
        matrix=matrix,
        notes=[] if matrix.composition is None else [matrix.composition],
    )
    return _without_start(series)


def _from_curves(frame: pd.DataFrame) -> list[Series]:
    curves = []
    for run, rows in frame.groupby("run", sort=True):
        series = Series(str(run), None, *(rows[name].to_numpy(float) for name in ("step", "tokens", "loss")))
        series.notes += frame.attrs.get("notes", ())
        lr = rows["lr"].to_numpy(float)
        curves.append(_with_rates(series, lr))
    return curves


def _from_log(curve: Curve) -> Series:
    step, tokens, lr, loss = (curve.frame[name].to_numpy(float) for name in ("step", "tokens", "lr", "loss"))
    series = Series(curve.run, None, step, tokens, loss, notes=list(curve.notes))
    series.source, series.logged_end, series.params = curve.log.path, curve.log.end_step, curve.params
    series.course = curve.log.course
    return _with_rates(series, lr)


def _with_rates(series: Series, lr: np.ndarray) -> Series:
    """The curve with its recorded learning rate (C,), NaN in rows that have none."""
    known, step = np.isfinite(lr), series.step
    series = _without_start(series)
    if np.any(lr[known] > 0):
        batch = series.tokens[-1] / series.step[-1] if len(series.step) else 0.0
        series.plan = PlannedSchedule(step[known], lr[known], batch)
    return series


def _without_start(series: Series) -> Series:
    """Drop step 0 (an untrained model obeys none of the laws), and tokens that cannot be used, with a note."""
    keep = series.step > 0
    series.step, series.tokens, series.loss = series.step[keep], series.tokens[keep], series.loss[keep]
    if series.matrix is not None and not keep.all():
        series.matrix = observed_rows(series.matrix, keep)
    if not len(series.step):
        return series
    tokens = rising(series.step, series.tokens)
    if tokens is None or tokens[-1] <= 0:
        known = series.tokens[-1] > 0
        series.no_tokens = "its tokens do not grow with the steps" if known else "its rows have no tokens"
        meant = " (they are those of a step, or of the rows' distance, or stall?)" if known else ""
        series.notes.append(
            f"{series.no_tokens}{meant}: shares of the run are counted in steps (--tokens-per-step gives a log tokens)"
        )
        tokens = np.zeros_like(series.tokens)
    series.tokens = tokens
    return series


def _refuse_duplicates(all_series: list[Series]) -> None:
    seen: set[tuple] = set()
    for series in all_series:
        if (series.run, series.split) in seen:
            raise InputError(f"run {series.run!r} is given twice (split {series.split}); name each table once")
        seen.add((series.run, series.split))
