"""Shares and intervals against closed forms and simulations."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from emergence_train.analysis.memorisation import analyze, counterfactual
from emergence_train.analysis.memorisation.analyze import difference, wilson
from emergence_train.analysis.memorisation.output import format_table
from emergence_train.errors import InputError


def items(trained: int, of: int, controls: int, of_controls: int, seen: float = 4.0, **keys) -> pd.DataFrame:
    right = np.r_[np.arange(of) < trained, np.arange(of_controls) < controls]
    times = np.r_[np.full(of, seen), np.zeros(of_controls)]
    loss = np.r_[np.linspace(1, 2, of), np.linspace(2, 4, of_controls)]
    given = {"run": "r", "params": 1000, "step": 5, "prefix": 8, "continuation": 4} | keys
    return pd.DataFrame({"seen": times, "extracted": right, "loss": loss}).assign(**given)


def test_of_a_hundred_items_seventy_against_thirty():
    frame = pd.concat([items(70, 100, 0, 100, run="large", params=9000), items(30, 100, 0, 100, run="small")])
    small, large = analyze(frame).runs
    assert (small.run, small.of_100, large.of_100) == ("small", pytest.approx(30), pytest.approx(70))
    assert small.of_100_high95 < large.of_100_low95 and max(small.p, large.p) < 1e-6
    assert small.loss_gain == pytest.approx(1.5) and small.loss_gain_low95 < 1.5 < small.loss_gain_high95


def test_equal_losses_give_no_interval():
    """A memorised set and controls whose losses do not vary at all."""
    frame = items(3, 5, 0, 5)
    frame["loss"] = np.where(frame["seen"] > 0, 0.1, 2.1)
    result = analyze(frame)
    assert result.runs[0].loss_gain == pytest.approx(2)
    assert (result.runs[0].loss_gain_low95, result.runs[0].loss_gain_high95) == (None, None)
    assert "loss lower by +2.0000 [no interval] nats" in format_table(result)


@pytest.mark.parametrize(("right", "count"), [(0, 20), (7, 20), (20, 20)])
def test_wilson_is_the_interval_of_the_score_test(right, count):
    known = stats.binomtest(right, count).proportion_ci(0.95, method="wilson")
    assert wilson(right, count) == pytest.approx((known.low, known.high), abs=1e-6)


def test_differences_of_shares_are_held_at_95_percent():
    rng, held = np.random.default_rng(3), []
    for p, q in ((0.05, 0.02), (0.7, 0.3), (0.2, 0.0)):
        for _ in range(400):
            low, high = difference(int(rng.binomial(60, p)), 60, int(rng.binomial(50, q)), 50)
            held.append(low <= p - q <= high)
    assert 0.93 <= np.mean(held) <= 0.99


def test_shares_are_by_times_seen():
    frame = pd.concat([items(1, 4, 0, 3, seen=seen) for seen in (1.0, 2.0, 5.9, 6.0, 200.0)])
    shares = {row.seen: row for row in analyze(frame).shares}
    assert {name: row.items for name, row in shares.items()} == {
        "0": 15,
        "1": 4,
        "2": 4,
        "3-5": 4,
        "6-10": 4,
        "more": 4,
    }
    assert shares["1"].share == 0.25 and shares["0"].extracted == 0


def test_nothing_to_compare_is_one_line():
    with pytest.raises(InputError, match="r: has 4 trained sequences and 0 controls; probe at least 2"):
        analyze(items(1, 4, 0, 0))
    with pytest.raises(InputError, match="no column 'seen'"):
        analyze(items(1, 4, 0, 3).drop(columns="seen"))


def changed(name: str, value: object) -> pd.DataFrame:
    """Eight rows with an item each, one cell of the sixth another."""
    frame = items(2, 4, 0, 4).assign(item=[f"t{k}" for k in range(8)]).astype({name: object})
    frame.loc[5, name] = value
    return frame


@pytest.mark.parametrize(
    ("frame", "says"),
    [
        (changed("loss", np.nan), "items: row 6, column 'loss': nan is empty or NaN"),
        (changed("seen", np.nan), "items: row 6, column 'seen': nan is empty or NaN"),
        (changed("params", None), "items: row 6, column 'params': None is empty or NaN"),
        (changed("seen", -1.0), "items: row 6, column 'seen': -1.0 is negative"),
        (changed("extracted", None), "items: row 6, column 'extracted': None is empty or NaN"),
        (changed("extracted", 0.5), "items: row 6, column 'extracted': 0.5 is neither true nor false"),
        (changed("prefix", 64), "items: row 6, column 'prefix': 64 beside 8; analyse probes"),
        (changed("item", "t1"), "items: row 6: run r has item t1 twice; keep each once"),
        (changed("seen", 0.0).iloc[:0], "items: the items table has no rows"),
    ],
)
@pytest.mark.parametrize("measure", [analyze, counterfactual])
def test_bad_rows_of_a_frame_are_one_line(measure, frame, says):
    with pytest.raises(InputError) as error:
        measure(frame)
    assert str(error.value).startswith(says)


def test_words_and_numbers_are_true_and_false():
    frame = items(2, 4, 0, 4)
    for form in (frame["extracted"].map({True: "True", False: "false"}), frame["extracted"].astype(np.int8)):
        assert analyze(frame.assign(extracted=form)) == analyze(frame)
