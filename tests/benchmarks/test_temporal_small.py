"""What small runs lose beyond their own law, recovered from curves of which it is known."""

import numpy as np
import pandas as pd
import pytest

import support


@pytest.fixture(scope="module")
def study():
    return support.study("temporal_small")


STEPS = np.arange(16, 1001, 8)


def runs(fall) -> pd.DataFrame:
    """Three runs, levels apart, of a loss that is 8 - fall(steps)."""
    return pd.concat(
        pd.DataFrame(
            {"run": f"r{k}", "split": "iid", "step": STEPS, "tokens": STEPS * 2048, "loss": 8 + k - fall(STEPS)}
        )
        for k in range(3)
    )


def test_a_run_on_its_own_law_changes_nothing(study):
    clock = np.sqrt(STEPS * study.steady(STEPS, 2048).clock(STEPS))
    rows = study.windows(runs(lambda x: -5 * clock**-study.EXPONENT))
    assert set(rows["start"]) == set(study.STARTS) and len(rows) == 3 * len(study.STARTS)
    assert rows["change"].abs().max() < 0.1
    assert study.fitted(rows).change == pytest.approx(0, abs=0.05)


def test_a_run_that_speeds_up_is_seen_to(study):
    """As much in each octave as in the one before, and one that falls more in each."""
    steady = study.fitted(study.windows(runs(lambda x: 0.4 * np.log(x))))
    faster = study.fitted(study.windows(runs(lambda x: 0.1 * np.log(x) ** 2)))
    assert 0.05 < steady.change < 0.4 < faster.change
    assert steady.change_sd >= study.OTHERS


def test_forecasts_are_scored_against_what_came(study):
    """At the end of a fall without bends: the error's sign, and an interval that holds it, by source and split."""
    curves = study.with_rates(runs(lambda x: 0.4 * np.log(x)).assign(schedule="stable"))
    rows = study.scored(curves, study.BEFORE)
    assert [(row["source"], row["split"], row["fraction"], row["runs"]) for row in rows] == [
        ("story", "iid", fraction, 3) for fraction in study.FRACTIONS
    ]
    early, late = rows[:2], rows[2]
    assert all(row["mean_error"] < -0.05 and row["below"] == 3 for row in early)  # large runs level off
    after = study.scored(curves, study.priors.SHIPPED.small)
    assert all(abs(new["mean_error"]) < abs(old["mean_error"]) for new, old in zip(after, early))
    assert abs(late["mean_error"]) < 0.1 and late["within95"] == 1
