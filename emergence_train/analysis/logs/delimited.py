"""Tables with a header line: plain CSV and TSV, Parquet, and what Weights & Biases exports of a chart or a history.

W&B's chart export has the x axis first ("Step", or the metric chosen as x), then for each run "RUN - METRIC" with
"RUN - METRIC__MIN" and "__MAX" beside it (https://docs.wandb.ai, "Export data from a chart"). A history (run.history(),
api.run(...).scan_history()) has a column a metric, and "_step", "_runtime", "_timestamp".
"""

from dataclasses import replace
from pathlib import Path

import pandas as pd

from emergence_train.analysis.logs.cells import DATA, SUFFIXES, columns_of, header_of, read_log
from emergence_train.analysis.logs.encoded import stem_of, suffix_of
from emergence_train.analysis.logs.log import Format, Log
from emergence_train.analysis.logs.names import known_names, plain
from emergence_train.errors import InputError

METRICS = ("metric", "metric_name", "metricname", "key", "tag")  # columns that say which metric a row's value is of
TIME = ("relative time", "wall time", "_runtime", "_timestamp", "_wall_time")


def _charted(columns: list[str]) -> dict[str, tuple[str, str]]:
    """Of a chart export: column to (run, metric), the minimum and maximum of sampled points left out; else nothing."""
    parts = {c: c.removeprefix("Group: ").rpartition(" - ") for c in columns[1:] if not c.endswith(("__MIN", "__MAX"))}
    return {c: (run, metric) for c, (run, _, metric) in parts.items()} if all(run for run, *_ in parts.values()) else {}


def read_wandb(path: Path) -> list[Log]:
    """A chart export: a run a column. A history: one run."""
    log = read_log(path, stem_of(path))
    frame = log.rows
    columns = [str(column) for column in frame.columns]
    charted = _charted(columns)
    if not charted:
        return [log]
    axis = columns[0]
    if axis.lower().startswith(TIME):
        raise InputError(f"{path}: its x axis is {axis!r}; export the chart with Step or tokens as x axis")
    logs = []
    for run in dict.fromkeys(run for run, _ in charted.values()):
        own = {column: metric for column, (name, metric) in charted.items() if name == run}
        rows = frame[[axis, *own]].rename(columns=own)
        logs.append(replace(log, name=run, rows=rows[rows[list(own.values())].notna().any(axis=1)]))
    return logs


def read_csv(path: Path) -> list[Log]:
    """One run, or several by the column `run`; also of a row a value, whose metric a column names."""
    log = read_log(path, stem_of(path))
    return [replace(log, rows=_a_column_a_metric(log.rows))]


def _a_column_a_metric(frame: pd.DataFrame) -> pd.DataFrame:
    """A table of the columns metric and value, as MLflow's, with a column for each metric; another as it is."""
    names = {str(column).strip().lower(): column for column in frame.columns}
    metric = next((names[name] for name in METRICS if name in names), None)
    value = next((names[name] for name in ("value", "metricvalue", "metric_value") if name in names), None)
    if metric is None or value is None or not frame[metric].notna().all():
        return frame
    place = frame.drop(columns=[metric, value])
    values = {name: frame[value].where(frame[metric] == name) for name in frame[metric].unique()}
    return place.assign(**{str(name): cells.where(cells.notna(), None) for name, cells in values.items()})


def _is_wandb(path: Path, _: str) -> bool:
    if suffix_of(path) not in (".csv", ".tsv"):
        return False
    names = header_of(path)
    return "_step" in names or any(_charted(names))


def _is_typeset(path: Path) -> bool:
    """A file of another name with a table whose columns are known, or with several, as its reader says then."""
    if not path.is_file() or suffix_of(path) in DATA:
        return False
    try:
        return any(plain(name) in known_names() for name in columns_of(path))
    except (InputError, OSError, ValueError):
        return True


WANDB = Format("wandb", "W&B: a chart's or a history's CSV", _is_wandb, read_wandb)
CSV = Format(
    "csv",
    "a table with a header line: .csv, .tsv, .parquet, Markdown, LaTeX, columns parted by blanks",
    lambda path, _: suffix_of(path) in SUFFIXES or _is_typeset(path),
    read_csv,
)
