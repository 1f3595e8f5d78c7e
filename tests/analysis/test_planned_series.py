"""Tokens of a curve: a counter that rises is used, rounded or not; one that does not reaches neither plan nor prior."""

import numpy as np
import pandas as pd
import pytest

from emergence_train.analysis.outlook import Ahead
from emergence_train.analysis.planned_series import rising
from emergence_train.analysis.runs import load
from emergence_train.analysis.temporal import analyze_temporal
from emergence_train.errors import InputError

STEP = np.arange(20, 4001, 20)
BATCH = 131072
RAMP = np.cumsum(np.where(STEP < 600, 1, 4) * 20 * BATCH)
LOSS = 2.4 + 6 * (1 + STEP / 80) ** -0.45 + np.random.default_rng(0).normal(0, 0.01, len(STEP))
RATE = 1e-3 * (0.55 + 0.45 * np.cos(np.pi * STEP / STEP[-1]))


def log(tmp_path, **columns):
    pd.DataFrame({"step": STEP, "lr": RATE, "loss": LOSS} | columns).to_csv(tmp_path / "log.csv", index=False)
    return tmp_path / "log.csv"


OF_A_STEP = {
    "tokens": np.full(len(STEP), BATCH),
    "num_tokens": np.random.default_rng(1).integers(BATCH // 2, BATCH, len(STEP)),
    "total_tokens": np.where(STEP < 1000, 1, np.where(STEP < 2500, 2, 4)) * BATCH,  # a batch that grows: it never falls
    "tokens_seen": np.full(len(STEP), 20 * BATCH),  # of the rows' distance
}


@pytest.mark.parametrize("name", OF_A_STEP)
def test_tokens_of_a_step_are_as_none(name, tmp_path):
    """Over the last step they were 33 tokens a step: the prior of tiny runs, and an end of 131,072 tokens."""
    without = analyze_temporal(log(tmp_path), fit_fraction=0.3).runs[0]
    run = analyze_temporal(log(tmp_path, **{name: OF_A_STEP[name]}), fit_fraction=0.3).runs[0]
    assert run.final == without.final and run.fit_until_tokens == 0 and not any(row.tokens for row in run.forecast)
    assert sum("its tokens do not grow with the steps" in note for note in run.notes) == 1
    (series,) = load(log(tmp_path, **{name: OF_A_STEP[name]}))
    assert series.plan.tokens == 0
    with pytest.raises(InputError, match="its tokens do not grow with the steps, which --to-tokens counts"):
        load(log(tmp_path, **{name: OF_A_STEP[name]}), ahead=Ahead(10**12))


@pytest.mark.parametrize("unit", [10**7, 5 * 10**7])
@pytest.mark.parametrize("rounded", [np.round, np.floor])
def test_rounded_tokens_are_known_to_their_unit(unit, rounded, tmp_path):
    for exact, grows in ((RAMP, True), (STEP * BATCH, False)):
        tokens = rounded(exact / unit) * unit
        (series,) = load(log(tmp_path, **{"tokens (B)": tokens / 1e9}))
        assert series.by_tokens and series.batch_grows is grows
        assert (np.diff(np.r_[0, series.tokens]) > 0).all() and np.abs(series.tokens - exact).max() <= unit


@pytest.mark.parametrize("row", [1, 40, 150, len(STEP) - 1])
def test_a_tie_costs_no_more_than_its_row(row):
    tokens = RAMP.copy()
    tokens[row] = tokens[row - 1]
    of_a_row = 20 * 4 * BATCH
    assert np.abs(rising(STEP, tokens) - RAMP).max() <= of_a_row
    assert rising(STEP, RAMP) is RAMP
    falls = RAMP.copy()
    falls[row] = falls[row - 1] - 1
    assert rising(STEP, falls) is None


ROW = np.arange(len(STEP))
STALLS = {
    "in the middle": lambda exact: np.where(
        ROW < 60, exact, np.where(ROW < 79, exact[60], exact - exact[78] + exact[60])
    ),
    "until it catches up": lambda exact: np.where((ROW >= 60) & (ROW < 70), exact[60], exact),
    "at the end": lambda exact: np.minimum(exact, exact[len(STEP) - 12]),
}


@pytest.mark.parametrize("form", STALLS)
@pytest.mark.parametrize("exact", [STEP * BATCH, RAMP, RAMP[-1] - RAMP[::-1] + RAMP[0]])
def test_a_counter_that_stalls_is_as_none(form, exact):
    """It was a change of the batch, and ends were 0.05 to 0.15 nats too high."""
    assert rising(STEP, STALLS[form](exact)) is None


@pytest.mark.parametrize("unit", [10**7, 5 * 10**7])
@pytest.mark.parametrize("rounded", [np.round, np.floor, np.ceil])
def test_a_thinned_log_keeps_its_rounded_tokens(unit, rounded):
    """Every step first, and every hundredth later; rows at random; rows that are missing where it was resumed."""
    kept = np.sort(np.random.default_rng(0).choice(np.arange(1, 20001), 400, replace=False))
    for step in (np.r_[1:101, 200:20001:100], kept, np.r_[STEP[:80], STEP[140:]]):
        tokens = rising(step, rounded(step * BATCH / unit) * unit)
        assert tokens is not None and np.abs(tokens - step * BATCH).max() <= unit


@pytest.mark.parametrize("digits", [2, 3])
def test_tokens_of_few_digits_are_known_to_them(digits):
    for exact in (STEP * BATCH, RAMP):
        tokens = rising(STEP, np.array([float(f"{count:.{digits}g}") for count in exact]))
        assert tokens is not None and np.abs(tokens / exact - 1)[20:].max() < 10 ** (1 - digits)


def test_an_end_is_counted_in_rounded_tokens(tmp_path):
    """It was refused: "its rows have no tokens"."""
    (series,) = load(log(tmp_path, **{"tokens (B)": np.round(STEP * BATCH / 1e9, 2)}), ahead=Ahead(10**9))
    assert series.end_step == pytest.approx(10**9 / BATCH, rel=0.01)
