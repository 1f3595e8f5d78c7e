"""Cells of scores as numbers, and signs of percent: a value with one is a share, and its error and chance are in its unit."""

import re
from pathlib import Path

import pandas as pd

from emergence_train.analysis.logs.numbers import Role, in_full, with_points
from emergence_train.errors import InputError

ERROR = re.compile(r"\s*(?:±|\+/-|\+-)")  # what stands behind it is the error of the number before it
# What stands beside a value, and the most of it as a share: errors of 0.1 are those of 25 items
MOST = {"stderr": 0.1, "chance": 1.0, "majority": 1.0}
ROUNDING = 1e-3  # a share may be so much above 1 or below 0: half precision rounds to 1.00098
SIGNED = "{} has %"  # a column of rows: whether the cell has a sign of percent


def numbers(cells: pd.Series, role: Role = "small") -> pd.Series:
    """Cells as float64: 35.2% and 35.2% ± 0.4 as 0.352, 1,000 as 1000, 70M in full; NaN for none."""
    shown = cells.map(lambda cell: ERROR.split(cell.strip())[0].strip(" %(\u00a0") if isinstance(cell, str) else cell)
    text = with_points(shown, role)
    known = pd.to_numeric(text, errors="coerce").astype(float)
    return known.fillna(text.map(in_full)) / signed(cells).map({True: 100, False: 1})


def signed(cells: pd.Series) -> pd.Series:
    """Which cells have a sign of percent, before or behind their error."""
    return cells.map(lambda cell: isinstance(cell, str) and "%" in cell).astype(bool)


def in_one_unit(path: Path, rows: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """-> (the rows with errors and chance in the unit of their values, without the columns SIGNED; what to say of it).

    Beside values with a sign a cell without one is a percent where the largest is more than a share can be; beside
    percents without a sign (above 1) a cell with one is a percent too. Raises InputError where a metric has both kinds of values.
    """
    value, sign = rows["value"], rows[SIGNED.format("value")]
    key = [rows["task"].astype(str), rows["metric"].astype(str)]
    shares = sign.groupby(key).transform("any")
    bare = shares & ~sign & value.notna() & value.ne(0)
    if bare.any():
        task, metric = rows.loc[bare, "task"].iloc[0], rows.loc[bare, "metric"].iloc[0]
        other = value[sign & (rows["task"] == task) & (rows["metric"] == metric)].iloc[0]
        raise InputError(
            f"{path}: {task} ({metric}) has values with a sign of percent and without ({100 * other:g}% and "
            f"{value[bare].iloc[0]:g}); write it in all cells of a task or in none"
        )
    percents = ~shares & (value.groupby(key).transform("max") > 1 + ROUNDING)
    rows, extra = rows.copy(), ""
    for name in MOST.keys() & set(rows):
        own = rows[SIGNED.format(name)].eq(True)  # none where a task has no such column
        beside = shares & ~own & rows[name].notna()
        is_percent = rows.loc[beside, name].max() > MOST[name]
        rows[name] *= (beside & is_percent).map({True: 0.01, False: 1}) * (percents & own).map({True: 100, False: 1})
        if beside.any():
            unit = "percent" if is_percent else "shares"
            extra += f"; {name} without a sign of percent beside values with one: taken as {unit}"
    return rows.drop(columns=[name for name in rows if str(name).endswith(SIGNED.format(""))]), extra
