"""Compare the logs of a run with those of an uninterrupted one."""

import math
from collections import Counter
from pathlib import Path

import pandas as pd

from emergence_train.recorder import tables

MEASURED = ("tokens_per_second", "seconds", "memory", "share_of_training", "run")
UNEVEN = ("save_failed", "rewind", "straggler", "starved")  # rows that say what went otherwise


class Wrong(AssertionError):
    """The failure of a trial."""


def compare(whole: Path, run: Path) -> None:
    """The logs of two runs, in all but what is measured; raises Wrong at the first difference."""
    first, second = ([row for row in tables.read_metrics(r) if row["kind"] not in UNEVEN] for r in (whole, run))
    if len(first) != len(second):
        steps = Counter((row["kind"], row.get("step")) for row in second)
        twice = [key for key, count in steps.items() if count > 1]
        raise Wrong(f"{len(second)} rows instead of {len(first)}; twice: {twice}")
    for a, b in zip(first, second):
        a, b = ({k: v for k, v in row.items() if k not in MEASURED} for row in (a, b))
        if a != b:
            raise Wrong(f"a row differs: {a} and {b}")
    for table in (tables.POSITIONS, tables.EVALUATIONS):
        read = [_table(table, r) for r in (whole, run)]
        try:
            pd.testing.assert_frame_equal(*read, check_exact=True)
        except AssertionError as error:
            raise Wrong(f"the tables differ: {error}") from None


def compare_closely(whole: Path, run: Path, tolerance: float = 1e-4) -> None:
    """The same for a run whose sums were taken in another order: the same rows, losses within a relative `tolerance`.

    What a position has right, and a task's score, may turn on a tie: half of a percent of the positions, any score.
    """
    first, second = ([row for row in tables.read_metrics(r) if row["kind"] not in UNEVEN] for r in (whole, run))
    if [(row["kind"], row.get("step")) for row in first] != [(row["kind"], row.get("step")) for row in second]:
        raise Wrong(f"{len(second)} rows instead of {len(first)}, or of other steps")
    for a, b in zip(first, second):
        if a["kind"] == "train" and not math.isclose(a["loss"], b["loss"], rel_tol=tolerance):
            raise Wrong(f"a loss differs by more than {tolerance:g}: {a} and {b}")
    first, second = (_table(tables.POSITIONS, r) for r in (whole, run))
    keys = ["step", "tokens", "split", "position", "count"]
    if not first[keys].equals(second[keys]):
        raise Wrong("the tables have other rows or counts")
    off = (second["loss_sum"] / first["loss_sum"] - 1).abs().max()
    turned = (second["correct"] - first["correct"]).abs().sum() / first["count"].sum()
    if off > tolerance or turned > 0.005:
        raise Wrong(f"the tables differ: sums of losses by {off:.1e}, {turned:.2%} of the positions in what is right")


def _table(table: tables.Table, run: Path) -> pd.DataFrame:
    return tables.read(table, run).drop(columns="run") if (run / table.name).is_dir() else pd.DataFrame()
