"""Tables with a header line: plain CSV and TSV, Parquet, and what Weights & Biases exports of a chart or a history.

W&B's chart export has the x axis first ("Step", or the metric chosen as x), then for each run "RUN - METRIC" with
"RUN - METRIC__MIN" and "__MAX" beside it (https://docs.wandb.ai, "Export data from a chart"). A history (run.history(),
api.run(...).scan_history()) has a column a metric, and "_step", "_runtime", "_timestamp".
"""

import io
import re
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from emergence_train.analysis.logs.encoded import stem_of, suffix_of, text_of
from emergence_train.analysis.logs.log import Format, Log
from emergence_train.errors import InputError

TIME = ("relative time", "wall time", "_runtime", "_timestamp", "_wall_time")
SUFFIXES = (".csv", ".tsv", ".parquet")
PARTED = r"\d{1,3}(?:\.\d{3})*|"  # a whole number whose thousands are parted by points; or nothing
SMALL = re.compile(r"loss|perplexity|nll|entropy|\blr\b|rate", re.IGNORECASE)  # names of what is not in thousands


def read_table(path: Path) -> pd.DataFrame:
    """A file's cells as they are: text of CSV and TSV, empty ones None."""
    try:
        if suffix_of(path) == ".parquet":
            frame = pq.read_table(path).to_pandas().astype(object)
            frame = frame.where(frame.notna(), None)
        else:
            text = text_of(path)
            comma = separator(path, text.partition("\n")[0])
            frame = pd.read_csv(io.StringIO(text), sep=comma, dtype=str, keep_default_na=False).astype(object)
            if comma != ",":
                frame = _with_points(frame, thousands=comma == "\t")
            frame = frame.where(frame != "", None)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise InputError(
            f"{path}: cannot be read as a table ({' '.join(str(error).split())[:160]}); give --format if it is a text log"
        ) from error
    if frame.empty:
        raise InputError(f"{path}: has no rows; name a log that has some")
    frame.index = pd.RangeIndex(1, len(frame) + 1)
    return frame


def separator(path: Path, head: str) -> str:
    """What parts the names of the first line: the commonest of comma, semicolon (as spreadsheets of half of Europe) and tab."""
    if suffix_of(path) == ".tsv":
        return "\t"
    return max(",;\t", key=re.sub(r'"[^"]*"', "", head).count)


def _with_points(frame: pd.DataFrame, thousands: bool) -> pd.DataFrame:
    """Columns in which the comma is the decimal point ("3,25"), with points; others as they are ("1,000.5", "1,000,000").

    Where one column has decimal commas, points before three digits part the thousands of the others ("1.000").
    """
    decimal = [name for name in frame if _has_decimal_commas(str(name), frame[name], thousands)]
    points = {name: frame[name].str.replace(",", ".", regex=False) for name in decimal}
    if decimal:
        parted = [name for name in frame if name not in points and frame[name].str.fullmatch(PARTED).all()]
        points |= {name: frame[name].str.replace(".", "", regex=False) for name in parted}
    return frame.assign(**{str(name): cells for name, cells in points.items()})


def _has_decimal_commas(name: str, cells: pd.Series, thousands: bool) -> bool:
    """`thousands`: a comma before three digits in every cell parts thousands; not in a loss or a rate that always has one."""
    if (cells.str.count(",") > 1).any() or cells.str.contains(".", regex=False).any():
        return False
    if thousands and not cells.str.contains(r",(?!\d{3}$)").any():
        return bool(SMALL.search(name)) and bool(cells.str.fullmatch(r"-?\d{1,3},\d{3}|").all())
    return bool(cells.str.contains(",", regex=False).any())


def _charted(columns: list[str]) -> dict[str, tuple[str, str]]:
    """Of a chart export: column to (run, metric), the minimum and maximum of sampled points left out; else nothing."""
    parts = {c: c.removeprefix("Group: ").rpartition(" - ") for c in columns[1:] if not c.endswith(("__MIN", "__MAX"))}
    return {c: (run, metric) for c, (run, _, metric) in parts.items()} if all(run for run, *_ in parts.values()) else {}


def read_wandb(path: Path) -> list[Log]:
    """A chart export: a run a column. A history: one run."""
    frame = read_table(path)
    columns = [str(column) for column in frame.columns]
    charted = _charted(columns)
    if not charted:
        return [Log(stem_of(path), path, frame)]
    axis = columns[0]
    if axis.lower().startswith(TIME):
        raise InputError(f"{path}: its x axis is {axis!r}; export the chart with Step or tokens as x axis")
    logs = []
    for run in dict.fromkeys(run for run, _ in charted.values()):
        own = {column: metric for column, (name, metric) in charted.items() if name == run}
        rows = frame[[axis, *own]].rename(columns=own)
        logs.append(Log(run, path, rows[rows[list(own.values())].notna().any(axis=1)]))
    return logs


def read_csv(path: Path) -> list[Log]:
    """One run, or several by the column `run`."""
    return [Log(stem_of(path), path, read_table(path))]


def _is_wandb(path: Path, head: str) -> bool:
    first = head.partition("\n")[0]
    names = [name.strip().strip('"') for name in first.split("," if suffix_of(path) == ".csv" else "\t")]
    return suffix_of(path) in (".csv", ".tsv") and ("_step" in names or any(_charted(names)))


WANDB = Format("wandb", "W&B: a chart's or a history's CSV", _is_wandb, read_wandb)
CSV = Format(
    "csv",
    "a table with a header line: .csv, .tsv, .parquet",
    lambda path, _: suffix_of(path) in SUFFIXES,
    read_csv,
)
