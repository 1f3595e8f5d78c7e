"""The position law: closed forms, recovery, coverage, degenerate curves, invariances, speed."""

import time

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emergence_train.analysis.temporal import position_law as law
from emergence_train.analysis.temporal import simulate
from emergence_train.errors import InputError


def frame_of(loss: np.ndarray, sd=1.0, count=1000, split="iid") -> pd.DataFrame:
    """A positions frame whose mean losses are exactly `loss` (C, P)."""
    loss = np.atleast_2d(loss)
    rows, length = loss.shape
    count = np.broadcast_to(count, loss.shape)
    return pd.DataFrame(
        {
            "run": "r",
            "params": 7,
            "step": np.repeat(np.arange(1, rows + 1) * 10, length),
            "tokens": np.repeat(np.arange(1, rows + 1) * 1000, length),
            "split": split,
            "position": np.tile(np.arange(1, length + 1), rows),
            "count": count.ravel(),
            "loss_sum": (loss * count).ravel(),
            "loss_sq_sum": ((sd**2 + loss**2) * count).ravel(),
            "correct": 0,
        }
    )


I = np.arange(1, 257)  # noqa: E741


def test_exact_curve_gives_back_its_numbers():
    fit = law.fit_positions(frame_of(law.position_curve(4.0, 0.3, 2.5, I))).iloc[0]
    assert fit["status"] == "ok"
    np.testing.assert_allclose([fit["a0"], fit["a1"], fit["a2"]], [4.0, 0.3, 2.5], rtol=1e-4)
    assert fit["r2"] > 1 - 1e-8
    assert fit["mean_loss"] == pytest.approx(law.position_curve(4.0, 0.3, 2.5, I).mean())
    assert fit["a1_low"] < 0.3 < fit["a1_high"]


def test_golden_least_squares_by_hand():
    # x = 0, 1, 2 with weights 1, 1, 2 and y = 1, 2, 4: mean x 5/4, mean y 11/4, slope (17/4)/(11/4), done on paper
    solved = law._Weighted(np.array([[1.0, 2.0, 4.0]]), np.array([[1.0, 1.0, 2.0]])).solve(np.array([[0.0, 1.0, 2.0]]))
    assert solved.linear[0] == pytest.approx(17 / 11)
    assert solved.offset[0] == pytest.approx(11 / 4 - 17 / 11 * 5 / 4)
    assert solved.linear_variance[0] == pytest.approx(1 / (11 / 4))


def test_known_noise_is_covered_as_stated():
    rng = np.random.default_rng(5)
    true = np.broadcast_to(law.position_curve(4.0, 0.2, 2.5, I), (600, 256))
    fit = law.fit_positions(frame_of(true + rng.normal(size=true.shape) * 2.5 / np.sqrt(1500), sd=2.5, count=1500))
    for name, value in (("a0", 4.0), ("a1", 0.2), ("a2", 2.5)):
        inside = ((fit[f"{name}_low"] <= value) & (value <= fit[f"{name}_high"])).mean()
        assert 0.925 <= inside <= 0.98, (name, inside)  # 95% +- three standard errors of 600 draws
        assert abs(((fit[name] - value) / fit[f"{name}_se"]).mean()) < 0.15, name
    assert fit["chi2_dof"].mean() == pytest.approx(1, abs=0.05)
    assert fit["bin_chi2"].mean() == pytest.approx(1, abs=0.15)


def test_weights_do_not_follow_the_sample_variance():
    """Skewed losses: a position whose mean comes out low has a small variance too; a2 must not follow."""
    rng = np.random.default_rng(0)
    true = law.position_curve(3.0, 0.2, 2.5, I)
    samples = rng.gamma(true[None, :, None], 1.0, size=(40, 256, 200))
    count = 200
    frame = frame_of(samples.mean(2), count=count)
    frame["loss_sq_sum"] = (samples**2).sum(2).ravel()
    fit = law.fit_positions(frame)
    assert abs(((fit["a2"] - 2.5) / fit["a2_se"]).mean()) < 0.6  # weighting by raw variances gives about -2


def test_outliers_are_down_weighted():
    rng = np.random.default_rng(2)
    loss = law.position_curve(4.0, 0.2, 2.5, I) + rng.normal(size=256) * 0.05
    spoilt = loss.copy()
    spoilt[[3, 40, 41, 200]] += 3
    clean, robust = (law.fit_positions(frame_of(y, sd=1.6)).iloc[0] for y in (loss, spoilt))
    assert abs(robust["a2"] - clean["a2"]) < 0.01
    assert abs(robust["a0"] - clean["a0"]) < 0.25


@pytest.mark.parametrize(
    ("curve", "reason"),
    [
        (np.full(256, 5.0), "does not depend on position"),
        (3.0 + 200.0 / I / 40, "only a0/a1"),
        (6.0 - 0.002 * I, "only a0*a1"),
    ],
)
def test_degenerate_curves_say_so(curve, reason):
    rng = np.random.default_rng(1)
    fit = law.fit_positions(frame_of(curve + rng.normal(size=256) * 0.02, sd=0.02 * np.sqrt(1000))).iloc[0]
    assert fit["status"].startswith("not identified: ")
    assert reason in fit["status"]
    assert np.isfinite(fit[["a0", "a1", "a2", "mean_loss"]].to_numpy(float)).all()


def test_fewer_than_five_positions():
    fit = law.fit_positions(frame_of(np.array([5.0, 4.0, 3.5]))).iloc[0]
    assert fit["status"] == "not identified: 3 positions, the law needs at least 5"
    assert fit["mean_loss"] == pytest.approx(12.5 / 3)


def test_a1_is_never_negative_and_open_ends_are_marked():
    rng = np.random.default_rng(3)
    fit = law.fit_positions(frame_of(5 + rng.normal(size=(50, 128)) * 0.1, sd=3.2))
    assert (fit["a1"] >= 0).all()
    assert (fit["a1_low"] >= 0).all()
    assert np.isinf(fit["a1_high"]).any()


def test_holes_and_one_checkpoint():
    frame = frame_of(law.position_curve(4.0, 0.3, 2.5, np.tile(I, (2, 1))))
    frame.loc[frame["position"].between(30, 60), ["count", "loss_sum", "loss_sq_sum"]] = 0
    fit = law.fit_positions(frame)
    np.testing.assert_allclose(fit["a1"], 0.3, rtol=1e-3)
    frame.loc[frame["step"] == 10, ["count", "loss_sum", "loss_sq_sum"]] = 0
    with pytest.raises(InputError, match="step 10 counts no token"):
        law.fit_positions(frame)


def test_missing_column_is_named():
    with pytest.raises(InputError, match="loss_sq_sum"):
        law.fit_positions(frame_of(np.ones(8)).drop(columns="loss_sq_sum"))


numbers = st.tuples(st.floats(1, 6), st.floats(0.03, 2), st.floats(1, 4), st.integers(0, 10**6))


@settings(max_examples=25, deadline=None)
@given(numbers, st.floats(-0.9, 3))
def test_a_constant_moves_a2_alone(values, shift):
    a0, a1, a2, seed = values
    noise = np.random.default_rng(seed).normal(size=256) * 0.02
    base = law.position_curve(a0, a1, a2, I) + noise
    first, second = (law.fit_positions(frame_of(y, sd=0.6)).iloc[0] for y in (base, base + shift))
    np.testing.assert_allclose([second["a0"], second["a1"]], [first["a0"], first["a1"]], rtol=1e-4)
    assert second["a2"] - first["a2"] == pytest.approx(shift, abs=1e-5)


@settings(max_examples=15, deadline=None)
@given(numbers, st.integers(2, 50))
def test_more_of_the_same_tokens_narrows_but_does_not_move(values, factor):
    a0, a1, a2, seed = values
    loss = law.position_curve(a0, a1, a2, I) + np.random.default_rng(seed).normal(size=256) * 0.02
    few, many = (law.fit_positions(frame_of(loss, sd=6.0, count=n)).iloc[0] for n in (1000, 1000 * factor))
    assert many["a1"] == pytest.approx(few["a1"], rel=1e-5)
    assert many["a2_se"] <= few["a2_se"] * 1.0001


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6))
def test_row_order_does_not_matter(seed):
    rng = np.random.default_rng(seed)
    frame = frame_of(law.position_curve(4.0, 0.3, 2.5, np.tile(I, (3, 1))) + rng.normal(size=(3, 256)) * 0.05)
    pd.testing.assert_frame_equal(
        law.fit_positions(frame), law.fit_positions(frame.sample(frac=1, random_state=seed % 2**32))
    )


@pytest.mark.parametrize("name", list(law.FORMS))
def test_the_right_form_wins_out_of_sample(name):
    rng = np.random.default_rng(8)
    shape = {"reciprocal": 0.2, "power": 0.5, "exponential": 0.02}[name]
    true = 3.0 * law.FORMS[name].basis(I.astype(float), np.array(shape)) + 2.5
    frame = frame_of(true + rng.normal(size=(6, 256)) * 0.03, sd=0.03 * np.sqrt(1000))
    table = law.compare_forms_of(next(iter(law.position_matrices(frame)))).set_index("form")
    assert table["excess_mse"].idxmin() == name
    assert table.loc[name, "wins"] == 1
    assert abs(table.loc[name, "excess_mse"]) < 1e-4


def test_residuals_by_bin_see_a_wrong_form():
    frame = frame_of(3.0 * I**-0.5 + 2.5, sd=0.5)
    assert law.fit_positions(frame)["bin_chi2"].iloc[0] > 3


def test_400_checkpoints_of_1024_positions_in_two_seconds():
    rng = np.random.default_rng(0)
    frame, _, _ = simulate.positions(rng, checkpoints=400, length=1024)
    begin = time.process_time()
    fit = law.fit_positions(frame)
    assert time.process_time() - begin < 2
    assert len(fit) == 400


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"loss_sum": np.nan}, "positions table: row 3, column 'loss_sum': nan is empty or NaN"),
        ({"loss_sum": -5.0}, "positions table: row 3, column 'loss_sum': -5.0 is negative"),
        ({"position": 0}, "positions table: row 3, column 'position': 0 is below 1"),
        ({"position": 1}, "the key (run=r, step=10, split=iid, position=1) is listed twice"),
    ],
)
def test_bad_rows_of_a_frame_are_one_line(change, says):
    """As the reader of files has it: a frame built by hand gave a0 = nan with the status ok."""
    frame = frame_of(np.linspace(5, 4, 8))
    for name, value in change.items():
        frame.loc[2, name] = value
    with pytest.raises(InputError) as error:
        law.fit_positions(frame)
    assert str(error.value).startswith(says)
