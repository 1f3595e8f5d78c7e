"""Tables, files and run directories as series that the temporal analysis can fit: one per run and split.

Learning rates are taken from, in this order: the `planned_lr` argument; a run directory's config.yaml (its
schedule up to the planned end); the column lr of the table or metrics.jsonl. In a finished run that is analysed with
--fit-fraction the recorded later rates count as the plan: they were chosen in advance, and no held-out loss is used.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from pydantic import ValidationError

from emergence_train.analysis.planned_schedule import PlannedSchedule
from emergence_train.analysis.position_matrix import PositionMatrix, observed_rows, read_matrices
from emergence_train.config import Schedule
from emergence_train.errors import InputError
from emergence_train.optim.schedule import learning_rate
from emergence_train.recorder import tables
from emergence_train.recorder.metrics import iter_metrics


@dataclass
class Series:
    """The mean loss of one run's split along training, ascending by step; all arrays (C,)."""

    run: str
    split: str | None  # None: a `curves` table
    step: np.ndarray
    tokens: np.ndarray
    loss: np.ndarray
    plan: PlannedSchedule | None = None
    end_step: int = 0  # planned end; the last row where the plan does not extend further
    end_tokens: int = 0
    matrix: PositionMatrix | None = None
    by_tokens: bool = True  # False: tokens are unusable, shares of the run are counted in steps
    notes: list[str] = field(default_factory=list)

    @property
    def progress(self) -> np.ndarray:
        """(C,) share of the planned run behind each row."""
        return self.tokens / self.end_tokens if self.by_tokens else self.step / self.end_step


def load(paths: str | Path | Iterable[str | Path], planned_lr: np.ndarray | None = None) -> list[Series]:
    """Every run and split in `paths` (run directories, Parquet or CSV files of `positions` or `curves`).

    `planned_lr` (K, 2) holds tokens (or steps, for tables without tokens) and learning rate of the whole run; it
    applies to all runs. Raises InputError for what is not a table, and for inconsistent tables.
    """
    paths = [paths] if isinstance(paths, (str, Path)) else list(paths)
    if not paths:
        raise InputError("no table given; name a run directory, a Parquet file or a CSV file")
    by_split: list[Series] = []
    curves: list[Series] = []
    directories: dict[str, Path] = {}
    for path in map(Path, paths):
        kinds = _kinds(path)
        matrices = read_matrices(path) if "positions" in kinds else []
        read = [_from_matrix(matrix) for matrix in matrices]
        read_curves = _from_curves(tables.read(tables.CURVES, path)) if "curves" in kinds else []
        by_split += read
        curves += read_curves
        if path.is_dir():
            directories |= {series.run: path for series in read + read_curves}
    return _planned(by_split, curves, directories, planned_lr)


def run_series(directory: Path, matrices: list[PositionMatrix], curve: pd.DataFrame | None) -> list[Series]:
    """The series of a run directory whose positions and curve (None: it has none) are read already."""
    by_split = [_from_matrix(matrix) for matrix in matrices]
    curves = _from_curves(curve) if curve is not None else []
    return _planned(by_split, curves, {series.run: directory for series in by_split + curves}, None)


def _planned(
    by_split: list[Series], curves: list[Series], directories: dict[str, Path], planned_lr: np.ndarray | None
) -> list[Series]:
    """The series with their planned learning rates, each run and split once."""
    _refuse_duplicates(by_split)
    _refuse_duplicates(curves)
    recorded = {curve.run: curve for curve in curves if curve.plan is not None}
    for series in by_split + curves:
        _set_plan(series, recorded.get(series.run), directories.get(series.run), planned_lr)
    return by_split + curves


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
        raise InputError(f"{path}: no such file or directory; name a run directory, a Parquet file or a CSV file")
    if path.suffix == ".jsonl":
        return ["curves"]
    try:
        columns = pq.read_schema(path).names if path.suffix == ".parquet" else pd.read_csv(path, nrows=0).columns
    except (OSError, ValueError, pa.ArrowException) as error:
        raise InputError(f"{path}: cannot be read as a table: {' '.join(str(error).split())}") from error
    return ["positions"] if "position" in columns or "loss_sum" in columns else ["curves"]


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
    )
    return _without_start(series)


def _from_curves(frame: pd.DataFrame) -> list[Series]:
    curves = []
    for run, rows in frame.groupby("run", sort=True):
        series = Series(str(run), None, *(rows[name].to_numpy(float) for name in ("step", "tokens", "loss")))
        lr = rows["lr"].to_numpy(float)
        if np.all(np.isfinite(lr)) and np.any(lr > 0):
            series.plan = PlannedSchedule(series.step, lr, max(series.tokens[-1], 0.0) / max(series.step[-1], 1.0))
        curves.append(_without_start(series))
    return curves


def _without_start(series: Series) -> Series:
    """Drop step 0 (an untrained model obeys none of the laws) and note whether tokens can be used."""
    keep = series.step > 0
    series.step, series.tokens, series.loss = series.step[keep], series.tokens[keep], series.loss[keep]
    if series.matrix is not None and not keep.all():
        series.matrix = observed_rows(series.matrix, keep)
    if len(series.step) and (series.tokens[-1] <= 0 or np.any(np.diff(series.tokens) <= 0)):
        series.by_tokens = False
        series.notes.append("tokens are zero or do not grow with the steps: shares of the run are counted in steps")
    return series


def _refuse_duplicates(all_series: list[Series]) -> None:
    seen: set[tuple] = set()
    for series in all_series:
        if (series.run, series.split) in seen:
            raise InputError(f"run {series.run!r} is given twice (split {series.split}); name each table once")
        seen.add((series.run, series.split))


def _set_plan(series: Series, recorded: Series | None, directory: Path | None, planned_lr: np.ndarray | None) -> None:
    if not len(series.step):
        raise InputError(f"run {series.run!r}: no row after step 0; nothing to fit")
    series.end_step, series.end_tokens = int(series.step[-1]), int(series.tokens[-1])
    step_tokens = series.tokens[-1] / series.step[-1] if series.by_tokens else 0.0
    per_step = step_tokens or 1.0
    if planned_lr is not None:
        table = np.asarray(planned_lr, float)
        if table.ndim != 2 or table.shape[1] != 2 or np.any(np.diff(table[:, 0]) <= 0):
            raise InputError("planned_lr: must be rows of (tokens, lr) with growing tokens")
        series.plan = PlannedSchedule(table[:, 0] / per_step, table[:, 1], step_tokens)
        end = float(table[-1, 0])
    elif directory is not None and (directory / "config.yaml").is_file():
        planned = planned_rates(directory / "config.yaml")
        if planned is None:
            series.plan = series.plan or (recorded.plan if recorded else None)
            end = 0.0
        else:
            series.plan, end = (
                PlannedSchedule(planned[:, 0] / per_step, planned[:, 1], step_tokens),
                float(planned[-1, 0]),
            )
    else:
        series.plan = series.plan or (recorded.plan if recorded else None)
        end = 0.0
        if recorded is not None and recorded.step[-1] > series.step[-1]:
            end = recorded.step[-1] * per_step
    if end > (series.end_tokens if series.by_tokens else series.end_step) * 1.001:
        series.end_step, series.end_tokens = math.ceil(end / per_step - 1e-6), int(end) if series.by_tokens else 0


def planned_rates(path: Path, points: int = 2000) -> np.ndarray | None:
    """(K, 2) tokens and learning rate that a run directory's config.yaml plans; None if it plans none."""
    try:
        training = yaml.safe_load(path.read_text(encoding="utf-8"))["training"]
        planned, total = training["schedule"], float(training["tokens"])
    except (KeyError, TypeError):
        return None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"{path}: cannot be read as a configuration: {' '.join(str(error).split())}") from error
    try:
        schedule = Schedule.model_validate(planned)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(["training.schedule", *map(str, problem["loc"])])
        raise InputError(
            f"{path}: {where}: {problem['msg']} (got {problem['input']!r}); give the plan as planned_lr"
        ) from error
    # the grid includes the schedule's corners
    corners = [schedule.warmup_tokens, total - schedule.decay_tokens]
    tokens = np.unique(np.r_[np.linspace(0, total, points), corners])
    return np.c_[tokens, [learning_rate(schedule, t, total) for t in tokens]]
