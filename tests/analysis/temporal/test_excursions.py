"""A rise that the loss takes back is left out of the fit; a curve without one, whatever its schedule, has none."""

import numpy as np
import pytest
from noisy_quadratic import simulate as simulate_training

from emergence_train.analysis.planned_schedule import PlannedSchedule
from emergence_train.analysis.temporal import forecast_final, simulate
from emergence_train.analysis.temporal.excursions import excursions
from emergence_train.analysis.temporal.forecast import forecast
from emergence_train.analysis.temporal.mean_law import SCHEDULE_AWARE

ROW = np.arange(300)
FORMS = {
    "slow return at the end": lambda at: np.where(ROW >= 140, 0.8 * np.exp(-(ROW - 140) / 18.0), 0),
    "return": lambda at: np.where(at <= ROW, np.exp(-(ROW - at) / 12.0), 0),
    "plateau": lambda at: ((at <= ROW) & (at + 40 > ROW)) * 0.5,
    "bump": lambda at: 1.5 * np.exp(-(((ROW - at) / 14) ** 2)),
    "near the end": lambda at: ((ROW >= 165) & (ROW < 188)) * 0.6,
}


def truth_of(kind, seed):
    """Steps, rate and the loss without noise, of a power law or of simulated training."""
    if kind == "power":
        step = 50.0 * (ROW + 1)
        return step, np.full(300, 3e-4), 2.8 + 18 * step**-0.35
    run = simulate_training(np.random.default_rng(seed), kind, 12000, spacing=40, noise=0.0)
    return run.step, run.rate, run.truth


@pytest.mark.parametrize("kind", ["power", "cosine"])
@pytest.mark.parametrize("form", FORMS)
def test_the_end_is_held_and_the_interval_no_wider(kind, form):
    """Fitted with the rise, ends were up to a nat off and intervals three to ten times as wide."""
    held, wider = [], []
    for seed in range(4):
        step, rate, true = truth_of(kind, seed)
        plan, seen = PlannedSchedule(step, rate, 3e5), ROW < 200
        rise = FORMS[form](70 + 18 * seed)
        loss = true + np.random.default_rng(seed).normal(0, 0.01, 300)
        plain = forecast(step[seen], loss[seen], step[-1:], plan, laws=SCHEDULE_AWARE)
        ahead = forecast(step[seen], (loss + rise)[seen], step[-1:], plan, laws=SCHEDULE_AWARE)
        low, high = ahead.interval(95, noisy=False)
        held.append(low[0] <= true[-1] <= high[0])
        wider.append(ahead.sd[0] / plain.sd[0])
        assert plain.excursions == [] and len(ahead.excursions) == 1 and ahead.jump is None
        assert "rows are left out of the fit" in ahead.excursions[0] and ahead.excursions[0] in ahead.notes
    assert sum(held) == 4 and np.median(wider) < 3


def test_rows_left_out_are_those_of_the_rise():
    step, rate, true = truth_of("power", 0)
    loss = true + np.random.default_rng(0).normal(0, 0.01, 300)
    for first, last in ((60, 79), (120, 159), (150, 249)):
        (each,) = excursions(step, loss + 0.5 * ((first <= ROW) & (last >= ROW)), PlannedSchedule(step, rate))
        assert abs(each.first - step[first]) <= 200 and abs(each.last - step[last]) <= 200
        assert each.rise == pytest.approx(0.5, abs=0.05)
    both = loss + 0.5 * ((ROW >= 60) & (ROW < 80)) + 0.3 * ((ROW >= 200) & (ROW < 230))
    assert len(excursions(step, both, PlannedSchedule(step, rate))) == 2


@pytest.mark.parametrize("kind", ["constant", "cosine", "wsd", "restarts"])
@pytest.mark.parametrize("noise", [0.0, 0.003, 0.03])
def test_a_schedule_makes_no_excursion(kind, noise):
    for seed, rows in enumerate((100, 600, 4000)):
        frame, _ = simulate.curve(np.random.default_rng(seed), kind, rows=rows, noise=noise)
        x, y, lr = (frame[name].to_numpy(float) for name in ("step", "loss", "lr"))
        for share in (0.4, 1.0):
            seen = x <= share * x[-1]
            assert excursions(x[seen], y[seen], PlannedSchedule(x, lr)) == [], (seed, share)


def test_what_the_rate_explains_is_kept():
    """A rate that is raised fourfold for a while lifts the loss for as long."""
    step = 50.0 * (ROW + 1)
    raised = (ROW >= 100) & (ROW < 140)
    loss = 2.8 + 18 * step**-0.35 + 0.2 * raised + np.random.default_rng(0).normal(0, 0.01, 300)
    assert excursions(step, loss, PlannedSchedule(step, np.where(raised, 1e-3, 2.5e-4))) == []
    assert len(excursions(step, loss, PlannedSchedule(step, np.full(300, 1e-3)))) == 1


LONG = 50.0 * np.arange(1, 401)


def annealed(kind):
    """Rate and loss without noise of 400 rows: a power law whose level follows a cosine or a decay over the last fifth."""
    done = np.arange(1, 401) / 400
    rate = 0.1 + 0.45 * (1 + np.cos(np.pi * done)) if kind == "cosine" else np.clip((1 - done) / 0.2, 0, 1)
    return 1e-3 * rate, 2.5 + 25 * LONG**-0.45 - 0.2 * (1 - rate)


@pytest.mark.parametrize(("kind", "shares"), [("cosine", (0.5, 0.6, 0.7, 1.0)), ("wsd", (0.7, 0.8, 0.9, 1.0))])
@pytest.mark.parametrize("size", [0.1, 0.3])
def test_the_end_of_a_dip_is_no_excursion(kind, shares, size):
    """Data that are easier for a while: where it ends the loss is on its course, and what follows was left out."""
    rate, true = annealed(kind)
    for first, last in ((100, 160), (120, 160), (120, 180), (120, 200), (140, 200)):
        for share in shares:
            seen = share * LONG[-1] >= LONG
            dip = size * ((np.arange(400) >= first) & (np.arange(400) < last))
            loss = true - dip + np.random.default_rng([first, last]).normal(0, 0.01, 400)
            assert excursions(LONG[seen], loss[seen], PlannedSchedule(LONG, rate)) == [], (first, last, share)


def test_forecasts_behind_a_dip_are_held():
    """0.26 to 0.28 nats too low, none held, when the rows behind it were left out."""
    (rate, true), row, held = annealed("cosine"), np.arange(400), []
    for first, last, share in ((120, 200, 0.6), (120, 200, 0.7), (100, 160, 0.5), (100, 160, 0.6)):
        loss = true - 0.3 * ((row >= first) & (row < last)) + np.random.default_rng(first).normal(0, 0.01, 400)
        seen = share * LONG[-1] >= LONG
        ahead = forecast(LONG[seen], loss[seen], LONG[-1:], PlannedSchedule(LONG, rate), laws=SCHEDULE_AWARE)
        low, high = ahead.interval(95, noisy=False)
        held.append(low[0] <= true[-1] <= high[0])
    assert sum(held) >= 3


def test_a_rise_behind_a_lasting_fall_is_left_out():
    """The loss falls for good, rises by more much later, and comes back to where the fall had left it."""
    step, rate, true = truth_of("power", 0)
    for form in ("plateau", "return"):
        loss = true - 0.3 * (ROW >= 75) + FORMS[form](130) + np.random.default_rng(0).normal(0, 0.01, 300)
        (each,) = excursions(step, loss, PlannedSchedule(step, rate))
        assert abs(each.first - step[130]) <= 200


def test_a_rate_that_the_loss_follows_slowly_explains_it():
    """A rate that rises for a while, and a loss that follows with 75 rows' delay: it is seen to rise 30 rows later."""
    step = np.arange(1, 1501) * 13.0
    rate = np.where((step > 0.4 * step[-1]) & (step < 0.6 * step[-1]), 0.5, 0.2)
    slow = [0.2]
    for now in rate[1:]:
        slow.append(slow[-1] + (now - slow[-1]) / 75)
    for seed in range(3):
        loss = 2.5 + 18 * step**-0.35 + 0.5 * np.array(slow) + np.random.default_rng(seed).normal(0, 0.005, 1500)
        assert excursions(step, loss, PlannedSchedule(step, 1e-3 * rate)) == []


@pytest.mark.parametrize("size", [0.15, 0.3, -0.3])
@pytest.mark.parametrize("kind", ["power", "cosine", "linear", "wsd", "constant"])
def test_a_new_level_is_no_excursion(kind, size):
    """Along a rate that falls, a course bent until the level of the rows before it seemed to be where the loss went back."""
    for seed, (first, seen, noise) in enumerate(
        ((70, 150, 0.015), (100, 300, 0.01), (168, 240, 0.015), (200, 300, 0.02))
    ):
        step, rate, true = truth_of(kind, seed)
        loss = (true + size * (first <= ROW) + np.random.default_rng(seed).normal(0, noise, 300))[:seen]
        assert excursions(step[:seen], loss, PlannedSchedule(step, rate)) == [], (first, seen)


@pytest.mark.parametrize("kind", ["cosine", "linear"])
def test_forecasts_go_on_from_a_new_level(kind):
    """Of twelve ends 1 and 4 were held, up to 0.33 nats too low: the rows on the new level were left out."""
    held = []
    for seed in range(3):
        step, rate, true = truth_of(kind, seed)
        for first, seen in ((70, 150), (100, 150), (110, 240), (168, 240)):
            true_here = true + 0.3 * (first <= ROW)
            loss = true_here + np.random.default_rng([seed, first]).normal(0, 0.015, 300)
            ahead = forecast(step[:seen], loss[:seen], step[-1:], PlannedSchedule(step, rate), laws=SCHEDULE_AWARE)
            low, high = ahead.interval(95, noisy=False)
            held.append(ahead.jump is not None and low[0] <= true_here[-1] <= high[0])
    assert sum(held) >= 11


@pytest.mark.parametrize("tau", [12, 18])
def test_a_slow_return_is_left_out_below_the_noise(tau):
    """An exponential return, known: behind the last row left out it is less than half the noise, not as large as it."""
    step, rate, true = truth_of("power", 0)
    rise, noise = np.where(ROW >= 120, np.exp(-(ROW - 120.0) / tau), 0), 0.01
    behind = []
    for seed in range(6):
        loss = true + rise + np.random.default_rng(seed).normal(0, noise, 300)
        (each,) = excursions(step, loss, PlannedSchedule(step, rate))
        behind.append(rise[step > each.last][0])
    assert np.median(behind) < noise / 2


def test_what_is_left_out_is_said_during_training():
    step, rate, true = truth_of("power", 0)
    loss = true + FORMS["plateau"](100)
    ahead = forecast_final(step[:200], loss[:200], step, rate, step[-1])
    assert ahead.low95 <= true[-1] <= ahead.high95 and "left out of the fit" in ahead.reason


@pytest.mark.parametrize("kind", ["power", "cosine", "wsd", "constant"])
def test_a_slow_return_is_no_new_level(kind):
    """A course with another level leaves more of it than noise."""
    for seed in range(4):
        step, rate, true = truth_of(kind, seed)
        back = 0.5 * np.where(ROW < 50, 0.0, np.exp(-(ROW - 50) / 43))
        loss = true + back + np.random.default_rng(seed).normal(0, 0.01, 300)
        (rise,) = excursions(step[:172], loss[:172], PlannedSchedule(step[:172], rate[:172]))
        assert rise.first == pytest.approx(step[50], abs=8 * step[0])
