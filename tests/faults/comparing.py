"""Compare the logs of a run with those of an uninterrupted one."""

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
    positions = [tables.read(tables.POSITIONS, r).drop(columns="run") for r in (whole, run)]
    try:
        pd.testing.assert_frame_equal(*positions, check_exact=True)
    except AssertionError as error:
        raise Wrong(f"the tables differ: {error}") from None
