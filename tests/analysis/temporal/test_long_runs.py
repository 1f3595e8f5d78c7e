"""Runs longer than any whose drop with the learning rate is known."""

import numpy as np
import pytest

from emergence_train.analysis.planned_schedule import PlannedSchedule
from emergence_train.analysis.temporal.forecast import LONGEST, forecast

PEAK, SEEN = 6e-4, 0.6


def cosine(steps: float, drop: float, final: float = 0.1) -> tuple[np.ndarray, np.ndarray, PlannedSchedule]:
    """(x, loss, plan) of a power law in steps that loses `drop` nats, linear in the rate, along a cosine to `final` of it."""
    x = np.linspace(steps / 300, steps, 300)
    share = final + (1 - final) * (1 + np.cos(np.pi * x / steps)) / 2
    return x, 2.6 + 40 * x**-0.5 - drop * (1 - share), PlannedSchedule(x, PEAK * share, 5e5)


def forecast_of(steps: float, drop: float):
    x, loss, plan = cosine(steps, drop)
    seen = x <= SEEN * steps
    return loss, forecast(x[seen], loss[seen], x[~seen], plan)


@pytest.mark.parametrize("steps", [1e4, 7e4])
def test_a_run_as_long_as_the_priors_has_no_more_room(steps):
    _, ahead = forecast_of(steps, 0.15)
    assert not ahead.shift_low.any() and not any(f"{LONGEST:,}" in note for note in ahead.notes)


@pytest.mark.parametrize("steps", [1.2e5, 4e5])
def test_a_longer_run_may_lose_up_to_twice_as_much(steps):
    """The middle and the high bounds stay; the low ones go down by at most the prior's own drop, most at the end."""
    _, ahead = forecast_of(steps, 0.15)
    low, high = ahead.interval(95, noisy=False)
    assert np.all(np.diff(ahead.shift_low) >= 0) and 0.02 < ahead.shift_low[-1] < 0.2
    assert high - ahead.mean == pytest.approx(1.96 * ahead.sd, abs=1e-9)
    assert np.all(ahead.mean - low > 1.96 * ahead.sd)
    assert sum(f"{LONGEST:,}" in note for note in ahead.notes) == 1


def test_room_grows_with_the_steps_and_ends_at_twice_them():
    rooms = [forecast_of(steps, 0.15)[1].shift_low[-1] for steps in (8e4, 1.1e5, 1.5e5, 6e5)]
    assert rooms[0] < rooms[1] < rooms[2] and rooms[3] < 1.2 * rooms[2]


def test_a_constant_rate_leaves_no_room():
    x = np.linspace(500, 2e5, 300)
    plan = PlannedSchedule(x, np.full_like(x, PEAK), 5e5)
    loss, seen = 2.6 + 40 * x**-0.5, x <= 1.2e5
    assert not forecast(x[seen], loss[seen], x[~seen], plan).shift_low.any()
