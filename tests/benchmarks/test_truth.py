"""The study of what holds: its verdicts by hand, and its committed result as the committed studies have it."""

import json
import sys
from pathlib import Path

import pandas as pd
import pytest

STUDIES = str(Path(__file__).parents[2] / "benchmarks" / "studies")
sys.path.insert(0, STUDIES)
import truth  # noqa: E402

sys.path.remove(STUDIES)


def test_share_is_open_where_few_cases_cannot_tell():
    """Ten of ten where 98% is the most: 0.98^10 = 0.82. Two hundred of two hundred: 0.02."""
    assert truth.share(1.0, 0.9, 0.98, 10) == truth.OPEN
    assert truth.share(1.0, 0.9, 0.98, 200) == truth.MISSES
    assert truth.share(0.95, 0.9, 0.98, 200) == truth.HOLDS
    assert truth.share(0.80, 0.9, 0.98, 20) == truth.OPEN  # 16 or fewer of 20 at 0.9: 0.13
    assert truth.share(0.60, 0.9, 0.98, 20) == truth.MISSES


def test_a_forecast_below_what_a_run_can_reach_is_named():
    """Three runs of one size: the lowest ends at 3.0; one is forecast to end at 2.6 at most."""
    end = {"end": [3.0, 3.1, 3.2], "error": [0.0, 0.1, -0.8], "half": [0.1, 0.1, 0.2], "end error": [0.0, 0.1, -0.8]}
    about = {"age": "young", "fraction": 0.1, "source": "s", "laboratory": "l", "params": 1e8, "tokens": 1e9}
    scored = list(truth.young(pd.DataFrame(end).assign(**about)))
    assert scored[-1].measured == pytest.approx(1 / 3) and scored[-1].outcome == truth.MISSES


def test_result_is_what_the_studies_say():
    held = {name: json.loads((truth.RESULTS / f"{name}.json").read_text()) for name in truth.SOURCES}
    stored = json.loads((truth.RESULTS / "truth.json").read_text())["rows"]
    rows = truth.score(held)
    assert {row.number for row in rows} == set(range(1, 11))
    assert [(row.property, row.group, row.outcome) for row in rows] == [
        (row["property"], row["group"], row["outcome"]) for row in stored
    ]
