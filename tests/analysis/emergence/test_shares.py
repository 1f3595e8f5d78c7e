"""Intervals of explained shares over runs: by hand, and on ladders with known truth in forms that the estimator does not contain.

benchmarks/studies/explanation_shares.py does the last with thousands of ladders.
"""

import sys

import numpy as np
import pytest

from emergence_train.analysis.emergence.shares import over_runs
from support import ROOT

sys.path.insert(0, str(ROOT / "benchmarks" / "studies"))

import explanation_shares as study  # noqa: E402


def test_interval_by_hand():
    """Four runs of one row each; the share of some rows is their mean. Student's t of 2 degrees of freedom is 4.3027."""
    values, run = np.array([0.9, 0.8, 0.85, 0.95]), np.array([3, 1, 2, 0])
    interval = over_runs(lambda kept: float(values[kept].mean()), run)
    left = [np.log(1 - (values.sum() - value) / 3) for value in values]
    whole = np.log(1 - values.mean())
    reach = 4.302653 * np.sqrt(3 / 4 * sum((each - whole) ** 2 for each in left))
    assert interval.value == pytest.approx(0.875)
    assert (interval.low95, interval.high95) == pytest.approx((1 - np.exp(whole + reach), 1 - np.exp(whole - reach)))


def test_no_interval_of_two_runs_or_of_a_share_that_vanishes():
    run = np.repeat([0, 1, 2], 4)
    assert over_runs(lambda kept: 0.5, run[:8]).low95 is None
    only_one = over_runs(lambda kept: 0.5 if kept[:4].all() else None, run)  # it lies in the first run alone
    assert only_one.value == 0.5 and only_one.low95 is None
    assert over_runs(lambda kept: None, run).value is None


def test_ends_stay_in_reach():
    """A share of 1, and one far below the least."""
    run = np.arange(5)
    assert over_runs(lambda kept: 1.0, run).high95 <= 1
    wild = over_runs(lambda kept: 0.9 if kept.all() else -50.0, run, least=0.0)
    assert wild.low95 == 0 and np.isfinite(wild.high95)


def test_intervals_hold_the_share_of_endless_runs(monkeypatch):
    """Eight ladders of five runs of each form; of 100 and more the study finds 0.87 to 0.98 held."""
    monkeypatch.setattr(study, "RUNS", 200)  # of the truth
    rows = [study.coverage(form, "loss", 5, 8, bootstrap=False) for form in study.FORMS]
    assert np.mean([row["coverage95"] for row in rows]) >= 0.78, rows
    assert np.mean([row["verdict_wrong"] for row in rows]) <= 0.12, rows


@pytest.mark.slow
@pytest.mark.parametrize("form", study.FORMS)
def test_intervals_hold_the_share_of_each_form(form):
    """24 ladders of 4 and of 6 runs each."""
    rows = [study.coverage(form, "loss", runs, 24, bootstrap=False) for runs in (4, 6)]
    assert np.mean([row["coverage95"] for row in rows]) >= 0.78, rows
    assert np.mean([row["verdict_wrong"] for row in rows]) <= 0.12, rows
