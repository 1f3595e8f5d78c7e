"""MLflow's file store: mlruns/EXPERIMENT/RUN/metrics/NAME, a line "time value step" for each value; meta.yaml names the run."""

import re
from pathlib import Path

import pandas as pd

from emergence_train.analysis.logs.log import Format, Log
from emergence_train.errors import InputError, listed
from emergence_train.input_files import read_text

METRICS = "metrics"
DELETED = re.compile(r"^lifecycle_stage:\s*['\"]?deleted\b", re.MULTILINE)
NAME = re.compile(r"^run_name:\s*['\"]?(.*?)['\"]?\s*$", re.MULTILINE)


def _runs(path: Path) -> list[Path]:
    """The directories of runs in a store, an experiment or a run's own."""
    if not path.is_dir():
        return []
    depths = ([path], path.glob("*"), path.glob("*/*"))
    return next((runs for depth in depths if (runs := sorted(filter(_is_run, depth)))), [])


def _is_run(folder: Path) -> bool:
    return (folder / METRICS).is_dir() and (folder / "meta.yaml").is_file()


def _meta(folder: Path) -> str:
    return read_text(folder / "meta.yaml", encoding="utf-8", errors="replace")


def read_mlflow(path: Path) -> list[Log]:
    """A run each directory, a column each metric; of a step that was logged again the last value counts. No deleted runs.

    Raises InputError for a loss that has several values and one step, which log_metric writes without a step.
    """
    logs = []
    folders = _runs(path)
    kept = [folder for folder in folders if not DELETED.search(_meta(folder))]
    if not folders:
        raise InputError(
            f"{path}: no run of MLflow's file store; name mlruns, or RUN with meta.yaml and {METRICS} in it"
        )
    if not kept:
        raise InputError(f"{path}: its runs are deleted; restore one with mlflow runs restore, or name another")
    notes = (f"deleted runs left out: {len(folders) - len(kept)}",) if len(kept) < len(folders) else ()
    for folder in kept:
        metrics = {
            file.relative_to(folder / METRICS).as_posix(): _values(file)
            for file in sorted((folder / METRICS).rglob("*"))
            if file.is_file()
        }
        columns = {name: values for name, (values, stepless) in metrics.items() if not stepless}
        if len(columns) < len(metrics) and not any(
            "loss" in name.lower() and len(columns[name]) > 1 for name in columns
        ):
            raise InputError(
                f"{folder / METRICS}: {listed([name for name in metrics if name not in columns], 4)}: values were logged "
                f"without steps; log them with log_metric(..., step=STEP), or write a table of steps and losses"
            )
        if columns:
            rows = pd.DataFrame(columns).sort_index().rename_axis("step").reset_index().astype(object)
            rows.index = pd.RangeIndex(1, len(rows) + 1)
            named = NAME.search(_meta(folder))
            logs.append(Log((named and named[1]) or folder.name, path, rows.where(rows.notna(), None), notes=notes))
    if not logs:
        raise InputError(f"{path}: its runs have no metrics; name a run that has logged a loss")
    return logs


def _values(file: Path) -> tuple[pd.Series, bool]:
    """Values by step, a last line that is cut off left out; and whether they are losses that were logged without steps."""
    cells = [line.split(" ") for line in read_text(file, encoding="utf-8", errors="replace").splitlines()]
    whole = [row for row in cells if len(row) == 3 and row[2].isdigit()]
    known = {int(row[2]): float(row[1]) for row in whole}
    return pd.Series(known, dtype=float), len(whole) > 1 and len(known) == 1 and "loss" in file.name.lower()


MLFLOW = Format(
    "mlflow", "MLflow's file store: mlruns, an experiment or a run", lambda path, _: bool(_runs(path)), read_mlflow
)
