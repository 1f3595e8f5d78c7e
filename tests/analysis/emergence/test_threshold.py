"""The interval of a threshold: its least width by hand, and its coverage where rises and guesses are not of the fitted forms."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from emergence_train.analysis.emergence.threshold import SHAPE, threshold

STUDY = Path(__file__).parents[3] / "benchmarks" / "studies" / "emergence_thresholds.py"


def study():
    spec = importlib.util.spec_from_file_location("emergence_thresholds", STUDY)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_threshold_is_no_better_known_than_the_rows_allow():
    """Rows a tenth apart but for one gap of 0.3: an onset known exactly is still as wide as the gap that it lies in."""
    rng = np.random.default_rng(0)
    rows = np.array([0, 0.1, 0.2, 0.3, 0.6, 0.7, 0.8, 0.9, 1.0])
    for onset, gap in ((0.45, 0.3), (0.75, 0.1), (0.595, 0.3)):
        drawn = threshold(np.full(4000, onset), rows, rng)
        low, middle, high = np.quantile(drawn, [0.025, 0.5, 0.975])
        assert gap <= high - low < 1.01 * gap + 0.001 and middle == pytest.approx(onset, abs=0.002)
    dense = threshold(np.full(4000, 0.5), np.linspace(0, 1, 2001), rng)
    assert np.std(dense) == pytest.approx(SHAPE, rel=0.05)
    wide = threshold(0.5 + 0.2 * rng.standard_normal(4000), rows, rng)
    assert np.std(wide) == pytest.approx(0.2, rel=0.1)


def test_intervals_cover_thresholds_of_simulated_items():
    """A small part of the study; the whole is committed."""
    rows = [row for items in (500, 14_000) for row in study().thresholds(items, "sparse", "sharp", 12)]
    inside = [row["inside"] for row in rows if row["verdict"] == "emergent"]
    assert len(inside) >= 16 and np.mean(inside) >= 0.85
    assert all(row["width"] >= row["gap"] for row in rows if row["verdict"] == "emergent")
