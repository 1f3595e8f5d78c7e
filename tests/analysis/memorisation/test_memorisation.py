"""Shares and intervals against closed forms and simulations; composition on simulated steps."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from emergence_train.analysis.memorisation import analyze, composed, counterfactual, explained_by_composition
from emergence_train.analysis.memorisation.analyze import difference, wilson
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


@pytest.mark.parametrize("value", [np.nan, 0.3])
def test_a_step_is_right_or_wrong(value):
    right = (np.random.default_rng(0).random((3, 4, 2)) < 0.5).astype(float)
    right[1, 2, 0] = value
    with pytest.raises(
        InputError, match=f"steps_right: checkpoint 1, item 2, step 0: {value} is neither true nor false"
    ):
        explained_by_composition(right)


CHANCES = 1 / (1 + np.exp(-np.linspace(-2, 4, 9)))  # a step's success by checkpoint, smooth


def test_the_whole_is_the_power_of_the_step():
    np.testing.assert_allclose(composed(CHANCES, 5), CHANCES * CHANCES * CHANCES * CHANCES * CHANCES)


def test_independent_steps_explain_the_jump_of_the_whole():
    """Steps rise smoothly, the whole of eight jumps; the product explains it."""
    right = np.random.default_rng(1).random((9, 2000, 8)) < CHANCES[:, None, None]
    result = explained_by_composition(right)
    assert result.explained.value > 0.98 and result.explained.low95 > 0.95
    assert abs(result.correlated) < 0.02
    assert result.sharpest_whole > result.sharpest_step


def test_a_switch_of_whole_items_is_not_composition():
    """All steps of an item succeed or fail together: the product falls short of the whole, which is as smooth as a step."""
    together = np.random.default_rng(2).random((9, 2000, 1)) < CHANCES[:, None, None]
    result = explained_by_composition(np.repeat(together, 8, axis=2))
    assert result.explained.high95 < 0.7 and result.correlated > 0.1
    assert result.sharpest_whole == pytest.approx(result.sharpest_step)


@pytest.mark.parametrize(
    ("right", "says"), [(np.ones((2, 5, 3)), "3 checkpoints"), (np.ones((4, 5, 3)), "does not change")]
)
def test_what_cannot_be_explained_is_refused(right, says):
    with pytest.raises(ValueError, match=says):
        explained_by_composition(right)
