"""Median times by a plain product, and the power of the share on simulated times that are not Weibull."""

import numpy as np
import pandas as pd
import pytest

from emergence_train.analysis.grokking.times import median_time, time_trend


def test_the_median_is_of_all_runs_without_censoring():
    times = np.array([30.0, 10.0, 20.0, 40.0, 50.0])
    assert median_time(times, np.ones(5, bool)) == np.median(times)


def test_the_median_counts_censored_runs_as_later():
    """By hand: 10 of 5 left 4/5; one leaves at 15 unseen; 20 of 3 left 8/15; 30 of 2 left 4/15."""
    times, happened = np.array([10.0, 15.0, 20.0, 30.0, 40.0]), np.array([True, False, True, True, False])
    assert median_time(times, happened) == 30.0
    assert median_time(times, np.array([True, False, False, False, False])) is None


def simulated(rng, power: float, seeds: int = 6) -> tuple:
    """Lognormal times of two groups, budget 4,000, in a sweep of five shares."""
    shares = np.repeat(np.linspace(0.4, 0.8, 5), seeds)
    parts = []
    for level in (500.0, 900.0):
        times = level * (shares / 0.8) ** power * np.exp(0.3 * rng.normal(size=len(shares)))
        parts.append(
            pd.DataFrame({"share": shares, "time": np.minimum(times, 4000), "did": times < 4000, "group": level})
        )
    frame = pd.concat(parts)
    return tuple(frame[name].to_numpy() for name in ("share", "time", "did", "group"))


def test_the_power_is_found_with_censored_runs():
    held, p_of_none = [], []
    for number in range(20):
        power = (0.0, -4.0)[number % 2]
        slope, p = time_trend(*simulated(np.random.default_rng([number, 3]), power))
        held.append(slope.low95 <= power <= slope.high95)
        assert slope.value == pytest.approx(power, abs=1.2)
        p_of_none += [p] if power == 0 else []
    assert np.mean(held) >= 0.8
    assert np.mean(np.array(p_of_none) < 0.05) <= 0.3


def test_too_few_that_generalised_say_nothing():
    slope, p = time_trend(np.array([0.4, 0.5, 0.6]), np.array([9.0, 5.0, 3.0]), np.array([0, 1, 1], bool), np.zeros(3))
    assert slope.value is None and p is None


def test_times_that_are_all_one_measurement_tell_nothing():
    shares, ones = np.tile([0.4, 0.6, 0.8], 4), np.ones(12, bool)
    slope, p = time_trend(shares, np.full(12, 200.0), ones, np.zeros(12, int))
    assert (slope.value, slope.low95, slope.high95, p) == (None,) * 4
