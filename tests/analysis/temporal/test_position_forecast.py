"""Forecasts by position: holes are no losses, what the law leaves of the first positions is carried, intervals are possible.

The truths are power laws and exponentials in position, which the position law is not.
"""

import numpy as np
import pandas as pd
import pytest

from emergence_train.analysis.position_matrix import position_matrices
from emergence_train.analysis.runs import load
from emergence_train.analysis.temporal import investigate
from emergence_train.analysis.temporal.figures import binned
from emergence_train.analysis.temporal.fitted import FittedRun
from emergence_train.analysis.temporal.position_forecast import _carried

STEPS = np.linspace(200, 4000, 20).astype(int)


def level(step):
    return 2.6 + 2.2 * (1 + step / 40) ** -0.38


def table(path, position, curve, *, counted=lambda step, position: True, tokens=400, steps=STEPS, same=0.0, seed=0):
    """Rows of a loss curve(step, position); `same`: share of the noise's sd that every checkpoint has alike."""
    rng, parts = np.random.default_rng(seed), []
    fixed = rng.normal(0, 1.5 / np.sqrt(tokens), len(position))
    for step in steps:
        fresh = rng.normal(0, 1.5 / np.sqrt(tokens), len(position))
        mean = curve(step, position) + same * fixed + np.sqrt(1 - same**2) * fresh
        count = np.where(counted(step, position), tokens, 0)
        row = {"run": "p", "params": 10**8, "step": step, "tokens": step * 262144, "split": "iid", "position": position}
        sums = {"loss_sum": count * mean, "loss_sq_sum": count * (2.25 + mean**2), "correct": 0}
        parts.append(pd.DataFrame({**row, "count": count, **sums}))
    frame = pd.concat(parts)
    frame.to_parquet(path)
    return path


@pytest.mark.parametrize("position", [np.arange(100, 257), np.array([5, 50, 150, 250])])
def test_a_hole_is_no_loss_of_zero(tmp_path, position):
    """No dependence on position, so that the law is not identified; the late observed rows do not count positions above 200."""
    hole = lambda step, at: (at <= 200) | (step < 800) | (step > 1600)  # noqa: E731
    path = table(tmp_path / "p.parquet", position, lambda step, at: level(step) + 0 * at, counted=hole)
    end = investigate(path, fit_fraction=0.4).runs[0].positions.forecast.query("step == 4000")
    assert np.abs(end["loss"] - level(4000)).max() < 0.2  # a measurement's noise is 0.075
    assert ((end["low95"] < level(4000)) & (level(4000) < end["high95"])).all()


def test_bins_that_count_nothing_have_no_loss(tmp_path):
    counted = lambda step, at: (at <= 200) | (step < 2000)  # noqa: E731
    path = table(
        tmp_path / "p.parquet", np.arange(1, 257), lambda step, at: level(step) + 0.9 * at**-0.25, counted=counted
    )
    (run,) = investigate(path, fit_fraction=0.4).runs
    rows = run.positions.forecast.query("step > 2000")
    beyond = rows["position_low"] > 200
    assert rows["actual"].isna().equals(beyond) and beyond.any()
    mixed = rows[(rows["position_low"] <= 200) & (rows["position_high"] > 200)]
    assert len(mixed) and np.abs(mixed["actual"] - mixed["loss"]).max() < 0.15
    residuals = run.positions.residuals
    assert residuals["residual"].isna().equals((residuals["step"] >= 2000) & (residuals["position_low"] > 200))
    _, loss, _ = binned(run.series.matrix)
    assert np.isnan(loss[-1]).any() and np.nanmin(loss) > 2


@pytest.mark.parametrize("length, fraction", [(1024, 0.7), (8192, 0.4)])
def test_what_the_law_leaves_of_early_positions_is_carried(tmp_path, length, fraction):
    """The reciprocal law misses a power of position by up to half a nat at the first of them: 0.56 of the next row."""
    steps = np.linspace(100, 4000, 24).astype(int)
    curve = lambda step, at: level(step) + 0.9 * at**-0.25 * (1 + 0.3 * np.tanh(step / 1500))  # noqa: E731
    inside, missed = [], []
    for seed in range(3):
        path = table(tmp_path / "p.parquet", np.arange(1, length + 1), curve, steps=steps, seed=seed)
        fitted = FittedRun(load(path)[0], fraction)
        ahead, actual = fitted.positions.forecast, fitted.series.matrix.loss[~fitted.seen]
        low, high = ahead.interval(95)
        inside.append(((low <= actual) & (actual <= high))[:, :8].mean())
        missed.append(ahead.loss[0, 0] - curve(fitted.future[0], 1.0))
    assert np.mean(inside) > 0.9 and abs(np.mean(missed)) < 0.15


@pytest.mark.parametrize("length", [1024, 8192])
def test_no_interval_is_wider_than_the_losses_are(tmp_path, length):
    """Few sequences, a1 that falls: the law of a1 is continued below 0, and its slope there gave intervals of 100 nats."""
    gain = lambda step, at: 1.1 * (1 + step / 400) ** -0.1 * (at + 0.5) ** (-1 / 1.7)  # noqa: E731

    def curve(step, at):
        return level(step) + gain(step, at) - 0.25 * np.tanh(step / 2000) * np.log1p(at) / np.log1p(length)

    steps = np.linspace(100, 4000, 24).astype(int)
    for seed in range(4):
        path = table(
            tmp_path / "p.parquet", np.arange(1, length + 1), curve, tokens=32, steps=steps, same=0.7, seed=seed
        )
        fitted = FittedRun(load(path)[0], 0.4)
        low, high = fitted.positions.forecast.interval(95)
        assert (high - low).max() / 2 < 2.5
        actual = fitted.series.matrix.loss[~fitted.seen]
        assert ((low <= actual) & (actual <= high)).mean() > 0.9


@pytest.mark.parametrize("early, late", [(128, 1024), (1024, 128)])
def test_the_mean_loss_is_of_common_positions(tmp_path, early, late):
    counted = lambda step, at: at <= (early if step <= 3000 else late)  # noqa: E731
    curve = lambda step, at: 2.2 + 2.4 * (1 + step / 60) ** -0.45 + 0.9 * at**-0.25  # noqa: E731
    path = table(tmp_path / "p.parquet", np.arange(1, 1025), curve, counted=counted)
    (series,) = load(path)
    true = np.array([curve(step, np.arange(1, 129.0)).mean() for step in STEPS])
    assert series.loss == pytest.approx(true, abs=0.03)
    assert any("of the 128 that all count (1 to 128)" in note for note in series.notes)
    (run,) = investigate(path, fit_fraction=0.7).runs
    assert run.result.final.loss == pytest.approx(true[-1], abs=0.1)


def test_a_missing_row_changes_no_mean(tmp_path):
    position = np.arange(1, 257)
    path = table(tmp_path / "p.parquet", position, lambda step, at: level(step) + 0 * at)
    frame = pd.read_parquet(path)
    (matrix,) = position_matrices(frame[(frame["step"] != 1000) | (frame["position"] != 17)])
    rows = frame[(frame["step"] == 1000) & (frame["position"] != 17)]
    assert matrix.composition is None
    assert matrix.mean_loss[STEPS == 1000] == pytest.approx(rows["loss_sum"].sum() / rows["count"].sum())


@pytest.mark.parametrize("share", [0.5, 0.25, "halves", "disjoint"])
def test_positions_in_common_or_not_a_hole_is_no_loss(tmp_path, share):
    """Each checkpoint counts other positions: the mean loss is that of its tokens, and the forecast has numbers."""
    rng, last = np.random.default_rng(1), {}

    def counted(step, at):
        k = list(STEPS).index(step)
        kinds = {"halves": (at <= 32) == (k % 2 == 0), "disjoint": (at - 1) // 3 == k}
        return last.setdefault(step, kinds[share] if isinstance(share, str) else rng.random(len(at)) < share)

    curve = lambda step, at: level(step) + 1.2 / (1 + 0.05 * at)  # noqa: E731
    position = np.arange(1, 65)
    path = table(tmp_path / "p.parquet", position, curve, counted=counted, tokens=2000)
    (matrix,) = position_matrices(pd.read_parquet(path))
    true = [curve(step, position[last[step]]).mean() for step in STEPS]
    assert matrix.mean_loss == pytest.approx(true, abs=0.1) and "none in common" in matrix.composition
    ahead = FittedRun(load(path)[0], 0.7).positions.forecast
    assert np.isfinite(ahead.loss).all() and np.isfinite(ahead.interval(95)).all()
    if share != "disjoint":
        assert np.abs(ahead.loss[-1] - curve(STEPS[-1], position)).max() < 0.25


def test_scattered_counts_have_no_composition(tmp_path):
    """Every position is counted everywhere, by 20 tokens of a Poisson number: their shares differ by more than is noted."""
    counts = np.random.default_rng(0).poisson(20, (len(STEPS), 64)) + 1
    path = table(tmp_path / "p.parquet", np.arange(1, 65), lambda step, at: level(step) + 0 * at, tokens=20)
    frame = pd.read_parquet(path)
    sums = frame[["loss_sum", "loss_sq_sum"]].mul(counts.ravel() / 20, axis=0)
    (matrix,) = position_matrices(frame.assign(count=counts.ravel(), **sums))
    assert matrix.composition is None and matrix.mean_loss == pytest.approx(level(STEPS), abs=0.2)


@pytest.mark.parametrize("rows", [8, 18])
def test_a_carried_residual_of_noise_is_less_than_its_mean(rows):
    """Where the law is the truth the residual is noise: carrying the mean over the rows is as bad as not to shrink at all."""
    x, position, carried = np.linspace(0.1, 1, rows) * 10000, np.arange(1, 65), []
    for seed in range(40):
        noise = np.random.default_rng(seed).normal(0, 1.0, (rows, 64))
        carried.append(_carried(noise, np.ones((rows, 64), bool), position, x).value)
    rms = np.sqrt(np.mean(np.square(carried), 0))
    assert np.sqrt(np.mean(rms[:8] ** 2)) < 0.7 / np.sqrt(rows) and np.sqrt(np.mean(rms[8:] ** 2)) < 0.6 / np.sqrt(rows)


@pytest.mark.parametrize("slope", [0.0, 0.9])
def test_positions_of_a_small_loss_are_positive(tmp_path, slope):
    """A memorised text, of which the late positions are known best: neither a mean nor a low bound is below 0."""
    position = np.arange(1, 129)

    def curve(step, at):
        return (4 * np.exp(-step / 500) + 0.004) * (0.1 + at**-slope)

    path = table(tmp_path / "p.parquet", position, curve, tokens=10**9)
    (run,) = investigate(path, fit_fraction=0.5).runs
    rows = run.positions.forecast
    assert rows["loss"].min() > 0 and min(rows[f"low{level}"].min() for level in (50, 80, 95)) >= 0
    assert run.forecast["loss"].min() > 0 and run.result.final.low95 >= 0
