"""A spike comes back and does not count; an end that has not come back is left out and noted; the rate's own dips stay."""

import numpy as np
import pandas as pd
import pytest
from scipy.signal import lfilter

from emergence_train.analysis.planned_schedule import PlannedSchedule
from emergence_train.analysis.temporal import analyze_temporal, forecast_final
from emergence_train.analysis.temporal.jumps import find_jump
from emergence_train.analysis.temporal.mean_law import observed_part
from emergence_train.analysis.temporal.output import format_table
from emergence_train.analysis.temporal.spikes import (
    noise_of,
    rate_effect,
    rounding_of,
    shared_noise,
    unreturned_end,
    without_spikes,
)


def curve(rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    x = np.linspace(20000 / rows, 20000, rows)
    return x, 2.2 + 2.5 * (1 + x / 60) ** -0.5 + np.random.default_rng(seed).normal(0, 0.005, rows)


def table(path, x, y, lr=None):
    lr = np.full(len(x), 6e-4) if lr is None else lr
    pd.DataFrame({"step": x.astype(int), "tokens": x.astype(int) * 524288, "lr": lr, "loss": y}).to_csv(
        path, index=False
    )
    return path


@pytest.mark.parametrize("rows, bad", [(9, 2), (16, 3), (20, 6), (28, 14), (80, 5), (80, 9), (400, 7)])
def test_an_end_that_stays_up_is_counted(rows, bad):
    x, y = curve(rows)
    y[-bad:] = np.linspace(4, 8, bad) if rows != 20 else 7.5
    end = unreturned_end(x, y, np.zeros(rows))
    assert (end.rows, end.step) == (bad, x[-bad]) and end.level == pytest.approx(np.median(y[-bad:]))


@pytest.mark.parametrize(
    "rows, bad",
    [(80, 15), (80, 30), (1300, 32), (2000, 15), (2000, 25), (2000, 45), (10000, 15), (10000, 200), (10000, 900)],
)
def test_a_diverged_end_of_any_length_has_one_note(tmp_path, rows, bad):
    """Of few rows of many it is an end, longer it is a jump; the forecast while training says the same."""
    x, y = curve(rows)
    y[-bad:] = 7.5
    (run,) = analyze_temporal(table(tmp_path / "run.csv", 10 * x, y)).runs
    noted = [note for note in run.notes if f"the last {bad} rows" in note or "the loss jumps by" in note]
    ahead = forecast_final(x, y, x, np.full(rows, 6e-4), 30000.0)
    assert len(noted) == 1 and ahead.reason[:18] == noted[0][:18]
    if "the last" in noted[0]:
        assert ahead.loss == pytest.approx(2.2 + 2.5 * (1 + 30000 / 60) ** -0.5, abs=0.02)


@pytest.mark.parametrize("back", [1, 2, 40])
def test_a_spike_that_is_back_is_no_end_of_many_rows(back):
    for seed in range(10):
        x, y = curve(10000, seed)
        y[-back - 20 : -back] += 3
        assert unreturned_end(x, y, np.zeros(10000)) is None


@pytest.mark.parametrize("rows", [6, 9, 20, 200, 2000])
def test_a_curve_that_falls_has_no_such_end(rows):
    assert not any(unreturned_end(*curve(rows, seed), np.zeros(rows)) for seed in range(50))


def test_spikes_go_and_a_new_level_stays():
    x, y = curve(80)
    spiked, raised = y.copy(), y.copy()
    spiked[40:45] += 2.0
    raised[-20:] += 2.0
    still = np.zeros(80)
    assert np.abs(without_spikes(spiked, 0.005, still) - y).max() < 0.1
    assert np.array_equal(without_spikes(raised, 0.005, still), raised)


def test_a_diverged_run_is_noted_where_users_look(tmp_path):
    x, y = curve(20)
    y[-6:] = 7.5
    result = analyze_temporal(table(tmp_path / "run.csv", x, y))
    noted = [note for note in result.runs[0].notes if "last 6 rows, from step 15000, at 7.50 nats" in note]
    assert len(noted) == 1 and noted[0] in format_table(result)
    ahead = forecast_final(x, y, x, np.full(20, 6e-4), 30000.0)
    assert ahead.reason == noted[0] and ahead.loss == pytest.approx(2.2 + 2.5 * (1 + 30000 / 60) ** -0.5, abs=0.05)


def test_a_rate_warmed_up_again_keeps_its_dip(tmp_path):
    """The loss's dip is the decay's only trace in the observed part. Its form: a leaky mean of the rate, not ours."""
    step = np.arange(1, 20001.0)
    share = np.minimum(step / 200, 1) * (1 - 0.95 * np.clip((step / 20000 - 0.8) / 0.2, 0, 1))
    again = (step > 5000) & (step <= 5500)
    share[again] *= (step[again] - 5000) / 500
    true = 2.2 + 2.5 * (1 + np.cumsum(share) / 60) ** -0.5 + 0.17 * lfilter([0.01], [1, -0.99], share**0.8)
    k = np.arange(99, 20000, 100)
    plan = PlannedSchedule(step[k], share[k])
    effect = rate_effect(step[k], plan)
    assert np.array_equal(without_spikes(true[k], 0.01, effect), true[k])
    assert find_jump(step[k], true[k], plan) is None
    y = true[k] + np.random.default_rng(0).normal(0, 0.01, len(k))
    (run,) = analyze_temporal(table(tmp_path / "run.csv", step[k], y, 6e-4 * share[k]), fit_fraction=0.4).runs
    assert (
        run.final.curve_low95 < true[-1] < run.final.curve_high95 and abs(run.final.loss - true[-1]) < 0.04
    )  # was 0.08


@pytest.mark.parametrize("decimals, jumps", [(1, 0.0), (2, 0.0), (1, 0.3)])
def test_rounded_losses_jump_only_where_they_do(decimals, jumps):
    """Rounding to 0.1 nats is noise of 0.1 / sqrt(12), whatever the differences of neighbours are."""
    x = np.linspace(100, 8000, 80)
    y = 2.2 + 2.5 * (1 + x / 60) ** -0.5 + np.random.default_rng(0).normal(0, 0.004, 80)
    rounded = np.round(y + jumps * (x > 5000), decimals)
    jump = find_jump(x, rounded, None)
    assert (jump is not None) == bool(jumps)
    assert noise_of(rounded) >= 10.0**-decimals / np.sqrt(12)


@pytest.mark.parametrize("rows, correlation", [(200, 0.0), (200, 0.5), (400, 0.8), (400, 0.9), (1000, 0.95)])
def test_noise_that_neighbours_share_is_measured(rows, correlation):
    """Autoregressive noise of 0.03 nats, as of running means, about a curve that falls by three times as much."""
    x = np.linspace(1600, 4000, rows)
    measured = []
    for seed in range(20):
        drawn = np.random.default_rng(seed).normal(0, 0.03 * np.sqrt(1 - correlation**2), rows + 300)
        rest = lfilter([1], [1, -correlation], drawn)[300:]
        y = 2.5 + 6 * x**-0.4 + rest
        measured.append(shared_noise(rest - np.polyval(np.polyfit(np.log(x), rest, 1), np.log(x)), noise_of(y), 0.0))
    noise, shared = np.median(measured, 0)
    assert noise == pytest.approx(0.03, rel=0.15) and shared == pytest.approx(correlation, abs=0.05)


@pytest.mark.parametrize("what", ["nothing", "a rate in steps", "two decimals", "slow spikes", "a batch that doubles"])
def test_independent_noise_beside_what_else_moves_the_loss(what):
    x, noise = np.arange(20, 20001, 20.0), 0.005
    share = np.where(x < 12000, 1, np.where(x < 16000, 0.3, 0.1)) if what == "a rate in steps" else np.ones(len(x))
    rng = np.random.default_rng(0)
    y = 2.5 + 6 * x**-0.4 - 0.17 * (1 - share**0.75) + rng.normal(0, noise, len(x))
    if what == "slow spikes":
        y += sum(np.where(x >= at, 0.4 * np.exp(-(x - at) / 400), 0) for at in (9000, 12000, 15000, 18000))
    plan = PlannedSchedule(x, 1e-3 * share)
    if what == "a batch that doubles":
        y -= np.where(x > 12000, 0.1, 0)
        plan = plan.with_batches(x, np.cumsum(np.where(x > 12000, 2.0, 1.0)))
    y = np.round(y, 2) if what == "two decimals" else y
    most = 5 * noise if what == "slow spikes" else max(noise, 1.5 * rounding_of(y)) * 1.3
    assert 0.8 * noise < observed_part(x, y, plan).noise < most


def test_rounded_losses_of_a_smooth_curve_are_read():
    x = np.arange(20, 20001, 20.0)
    assert observed_part(x, np.round(2.5 + 6 * x**-0.4, 2), None).noise < 0.01


def test_running_means_of_a_loss_do_not_narrow_its_intervals(tmp_path):
    """Of the rows held out 66% lay inside 95% intervals, when noise was what neighbours differ by."""
    x = np.arange(5, 4001, 5.0)
    inside = []
    for seed in range(8):
        drawn = np.random.default_rng(seed).normal(0, 0.03 * np.sqrt(1 - 0.9**2), len(x) + 300)
        y = 2.5 + 6 * x**-0.4 + lfilter([1], [1, -0.9], drawn)[300:]
        (run,) = analyze_temporal(table(tmp_path / "run.csv", x, y, np.full(len(x), 6e-4)), fit_fraction=0.6).runs
        inside += [row.low95 <= row.actual <= row.high95 for row in run.forecast]
    assert np.mean(inside) > 0.85
