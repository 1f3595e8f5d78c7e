"""Forecasts of the mean loss: recovery, use of the prior, noise, short logs."""

import dataclasses
import json
import time

import numpy as np
import pytest

from emergence_train.analysis.planned_schedule import PlannedSchedule
from emergence_train.analysis.position_matrix import observed_rows, position_matrices
from emergence_train.analysis.temporal import mean_law, priors, simulate
from emergence_train.analysis.temporal.analyze import forecast_final
from emergence_train.analysis.temporal.forecast import forecast
from emergence_train.analysis.temporal.mean_law import (
    CLASSICAL,
    LAWS,
    ObservedPart,
    above_zero,
    below,
    fit,
    observed_part,
)
from emergence_train.analysis.temporal.parameter_laws import fit_family, fit_parameter
from emergence_train.analysis.temporal.position_forecast import forecast_positions
from emergence_train.analysis.temporal.ranking import rank
from emergence_train.errors import InputError
from emergence_train.files import write_json

GRID = np.linspace(0, 20000, 2001)


def plan_of(kind: str) -> PlannedSchedule:
    return PlannedSchedule(GRID, simulate.learning_rate(kind, GRID))


def curve_of(kind: str, seed=0, noise=0.003, rows=200, truth=None):
    frame, true = simulate.curve(np.random.default_rng(seed), kind, truth, rows=rows, noise=noise)
    return frame["step"].to_numpy(float), frame["loss"].to_numpy(), true


@pytest.mark.parametrize(
    ("name", "curve"),
    [
        ("power", lambda x: 2 + 30 * x**-0.4),
        ("reciprocal", lambda x: 2 + 3 / (1 + x / 4000)),
        ("logarithmic", lambda x: 9 - 0.5 * np.log(x)),
    ],
)
def test_a_classical_law_continues_its_own_curve(name, curve):
    x = np.linspace(200, 20000, 100)
    seen = x < 8000
    fitted = fit(LAWS[name], ObservedPart(x[seen], curve(x[seen]), 0.0, 0.0), plan_of("constant"))
    guess, sd = fitted.predict(x[~seen])
    np.testing.assert_allclose(guess, curve(x[~seen]), atol=1e-3)


@pytest.mark.parametrize("kind", ["cosine", "wsd", "restarts", "constant"])
@pytest.mark.parametrize("share", [0.2, 0.4])
def test_the_schedule_law_beats_every_classical_one(kind, share):
    x, y, true = curve_of(kind)
    seen = x <= share * x[-1]
    ahead = forecast(x[seen], y[seen], x[~seen], plan_of(kind))
    errors = {name: np.mean((law.predict(x[~seen])[0] - true[~seen]) ** 2) for name, law in ahead.fits.items()}
    mine = np.mean((ahead.mean - true[~seen]) ** 2)
    assert np.sqrt(mine) < 0.06
    if share == 0.2 and kind != "constant":  # at a constant rate a power law knows as much
        assert mine < min(errors[name] for name in CLASSICAL) / 2


def test_before_any_decay_the_prior_is_used_and_noted():
    x, y, _ = curve_of("wsd")
    seen = x <= 0.3 * x[-1]
    plan = plan_of("wsd")
    ahead = forecast(x[seen], y[seen], x[~seen], plan)
    assert any("not identified" in note and "decay" in note for note in ahead.notes)
    law = ahead.fits["schedule"]
    assert law.decay_seen < 0.01
    kernel, clock = "fast^0.75", "mixed"
    mean, _ = priors.SHIPPED.decay(clock, kernel, plan)
    rows = [j for j, label in enumerate(law.labels) if label[:2] == (clock, kernel)]
    np.testing.assert_allclose(law.coef[rows, 2], mean, rtol=1e-3)
    wider = dataclasses.replace(
        priors.SHIPPED,
        drop={key: dataclasses.replace(law, sd=3 * law.sd) for key, law in priors.SHIPPED.drop.items()},
    )
    assert forecast(x[seen], y[seen], x[~seen], plan, wider).sd[-1] > 1.5 * ahead.sd[-1]
    # at the plateau's end, where the decay plays no part, the spread of the prior does not matter
    assert ahead.sd[np.searchsorted(x[~seen], 15000)] < ahead.sd[-1]


def test_once_decay_is_seen_the_data_overrule_the_prior():
    truth = simulate.Truth(b=0.45)  # more than two spreads from the prior's 0.2
    x, y, _ = curve_of("cosine", truth=truth, noise=0.001)
    seen = x <= 0.9 * x[-1]
    assert (
        fit(LAWS["schedule"], observed_part(x[seen], y[seen], plan_of("cosine")), plan_of("cosine")).constants.B > 0.33
    )


def test_spikes_in_a_sparse_log_do_not_count():
    """Too few rows for bins: spikes of three rows are taken out, and a curve that falls loses nothing."""
    x = np.arange(100.0, 4100, 100)
    y = 2 + x**-0.5 * 40
    spiked = y.copy()
    spiked[[20, 21, 22, 31]] += [1.5, 0.6, 0.1, 2.0]
    plain, cleaned = (mean_law.observed_part(x, values, plan_of("cosine")) for values in (y, spiked))
    assert np.array_equal(plain.y, y[x >= plain.x[0]])
    assert np.abs(cleaned.y - plain.y).max() < 0.08  # neighbours stand in, four rows away at most


def test_forecast_is_robust_to_spikes_and_noise():
    x, y, true = curve_of("cosine", noise=0.04, rows=15000)
    spiked = y.copy()
    spiked[::97] += 4
    seen = x <= 0.4 * x[-1]
    ahead = forecast(x[seen], spiked[seen], x[~seen], plan_of("cosine"))
    assert abs(ahead.mean[-1] - true[-1]) < 0.05
    assert ahead.noise == pytest.approx(0.04, rel=0.15)
    low, high = ahead.interval(95)
    assert np.mean((low <= y[~seen]) & (y[~seen] <= high)) > 0.9


def test_irregular_spacing():
    x, y, true = curve_of("cosine", rows=4000)
    pick = np.unique(np.random.default_rng(1).integers(0, len(x), 150))
    x, y, true = x[pick], y[pick], true[pick]
    seen = x <= 0.3 * x[-1]
    assert np.sqrt(np.mean((forecast(x[seen], y[seen], x[~seen], plan_of("cosine")).mean - true[~seen]) ** 2)) < 0.04


def test_unknown_rate_is_noted_and_widens_the_lower_bound():
    x, y, _ = curve_of("cosine")
    seen = x <= 0.2 * x[-1]
    ahead = forecast(x[seen], y[seen], x[~seen], None)
    assert any("learning rate unknown" in note for note in ahead.notes)
    low, high = ahead.interval(95)
    assert low[-1] <= y[-1] <= high[-1]
    assert ahead.mean[-1] - low[-1] > 1.5 * (high[-1] - ahead.mean[-1])


def test_a_plan_may_end_within_the_last_step():
    """A plan in tokens may end in the middle of a step: 200,000 tokens are 195.3 steps of 1,024, and 196 are trained."""
    x = np.arange(1.0, 197)
    plan = PlannedSchedule(np.array([0.0, 20, 195.3]), np.array([0.0, 1e-3, 2e-4]), 1024)
    y, seen = 3 + 4 * x**-0.4, x <= 100
    ahead = forecast(x[seen], y[seen], x[~seen], plan)
    assert not ahead.shift_low.any() and not any("learning rate unknown" in note for note in ahead.notes)
    ahead = forecast(x[seen], y[seen], np.append(x[~seen], 210.0), plan)
    assert any("learning rate unknown after step 195" in note for note in ahead.notes)


def test_too_short_is_not_identified():
    with pytest.raises(InputError, match="not identified: 2 points"):
        forecast(np.array([1.0, 2]), np.array([5.0, 4]), np.array([10.0]), None)
    x, y, _ = curve_of("wsd")
    with pytest.raises(InputError, match="nothing is observed beyond the warm-up"):
        forecast(x[:1], y[:1], x[1:], plan_of("wsd"))


def test_forecast_of_a_short_unbent_run_has_a_wide_interval():
    """Steps 30 to 150 of a tiny model (losses measured): a straight fall in log steps, which continued to 4.25 nats."""
    x, y = np.array([30.0, 60, 90, 120, 150]), np.array([6.543, 6.316, 6.204, 5.961, 5.755])
    plan = PlannedSchedule(np.array([0.0, 20, 1500]), np.array([0, 4e-3, 4e-4]))
    ahead = forecast(x, y, np.array([1500.0]), plan)
    assert any("where the loss levels off" in note for note in ahead.notes)
    low, high = ahead.interval(95)
    assert low[0] < 4.25 < high[0]


def test_intervals_are_nested():
    x, y, _ = curve_of("wsd")
    ahead = forecast(x[:60], y[:60], x[60:], plan_of("wsd"))
    ends = [ahead.interval(level) for level in (95, 80, 50)]
    for (low, high), (inner_low, inner_high) in zip(ends, ends[1:]):
        assert np.all(low <= inner_low) and np.all(inner_high <= high)


def test_lower_ends_bend_before_zero():
    """Straight down to a quarter of the mean; beyond, an exponential of the same slope; in the order of the widths."""
    mean, width = np.full(400, 2.0), np.linspace(-1, 8, 400)
    low = below(mean, width)
    straight = width <= 1.5
    assert np.array_equal(low[straight], 2.0 - width[straight]) and np.all(np.diff(low) < 0) and low[-1] > 0
    assert np.allclose(low[~straight], 0.5 * np.exp(3 - width[~straight] / 0.5))
    assert below(np.array([-1.0]), np.array([2.0])) == [-3.0]  # no loss of words: as it is


def test_means_bend_before_zero():
    """As they are down to `sd` or a quarter of the last loss, the lesser; below it a hyperbola of the same slope there."""
    mean = np.linspace(-3, 2, 5001)
    for sd, last, bend in ((0.1, 4.0, 0.1), (2.0, 4.0, 1.0)):
        bent, far = above_zero(mean, np.full(5001, sd), last), mean >= bend
        assert np.array_equal(bent[far], mean[far]) and np.all(np.diff(bent) > 0) and bent[0] > 0
        assert np.allclose(bent[~far], bend**2 / (2 * bend - mean[~far]))
        assert np.all(np.diff(bent) <= 0.001 + 1e-9)  # steps of 0.001
    assert above_zero(np.zeros(1), np.zeros(1), 0.0) == [0.0]


@pytest.mark.parametrize("seed", range(8))
def test_forecasts_of_memorised_texts_are_positive(seed):
    """Losses that fall as an exponential to 0.002 to 0.01: none of the laws, whose powers pass 0 there."""
    rng = np.random.default_rng(seed)
    x = np.arange(10.0, 610, 10)
    true = rng.uniform(0.002, 0.01) + rng.uniform(4, 11) * np.exp(-x / rng.uniform(70, 120))
    y = true * np.exp(0.02 * rng.standard_normal(60))
    ahead = forecast(x[:36], y[:36], x[36:], None)
    by_laws = sum(w * ahead.fits[name].predict(x[36:])[0] for name, w in ahead.weights.items())
    assert by_laws.min() < 0 < ahead.mean.min()
    for noisy in (True, False):
        low, high = ahead.interval(95, noisy=noisy)
        assert low.min() >= 0 and np.mean((low <= true[36:]) & (true[36:] <= high)) > 0.9
    end = forecast_final(x[:36], y[:36], x, np.full(60, 1e-3), 1e6)
    assert end.loss > 0 and end.low95 >= 0
    negative = forecast(x[:36], y[:36] - 2, x[36:], None)  # a log-likelihood's: as it is
    assert negative.mean.min() < -2


def test_no_interval_of_a_young_run_is_below_zero():
    """128 steps and a horizon of two million: the lower ends were down to -0.97 nats."""
    x = np.arange(8.0, 129, 8)
    y = 6.2 - 0.55 * np.log(x)
    ahead = forecast(
        x, y, np.geomspace(200, 2e6, 40), PlannedSchedule(np.array([0.0, 2, 2e6]), np.array([0, 1e-2, 1e-2]))
    )
    lows = [ahead.interval(level)[0] for level in (95, 80, 50)]
    assert (ahead.mean - 1.96 * ahead.sd).min() < 0 < min(low.min() for low in lows)
    assert np.all(lows[0] < lows[1]) and np.all(lows[1] < lows[2])


def test_forecast_final_is_quick_and_never_raises():
    x, y, true = curve_of("cosine", rows=19000, noise=0.03)
    seen = x <= 0.5 * x[-1]
    begin = time.process_time()
    final = forecast_final(x[seen], y[seen], GRID, simulate.learning_rate("cosine", GRID), 20000)
    assert time.process_time() - begin < 0.5
    assert final.low95 <= true[-1] <= final.high95
    young = forecast_final(x[:2], y[:2], GRID, simulate.learning_rate("cosine", GRID), 20000)
    assert young.loss is None and young.reason.startswith("not identified")
    none = forecast_final([], [], GRID, simulate.learning_rate("cosine", GRID), 20000)
    assert none.loss is None and none.reason == "not identified: 0 rows"


def test_parameter_families_recover_curve_and_separation():
    x = np.linspace(200, 20000, 100)
    for family, value in (
        ("logarithmic", 4 + 0.2 * np.log(x)),
        ("hyperbolic", 0.1 + 0.3 / (1 + x / 2300)),
        ("power", 2 + x**-0.5),
    ):
        fitted = fit_family(family, x, value, np.full(100, 0.01))
        np.testing.assert_allclose(fitted.predict(x), value, atol=0.02)
        assert np.isinf(fitted.separation)
    held = 4 + 0.2 * np.log(np.minimum(x, 10000))
    fitted = fit_family("logarithmic", x, held, np.full(100, 0.01))
    assert fitted.separation == pytest.approx(10000, rel=0.01)
    law = fit_parameter(x, 4 + 0.2 * np.log(x), np.full(100, 0.01))
    assert law.fits[0].family == "logarithmic"
    assert law.weights.sum() == pytest.approx(1)
    assert law.predict(np.array([60000.0]))[1][0] >= law.predict(np.array([21000.0]))[1][0]


def test_position_forecast_improves_with_the_pattern():
    rng = np.random.default_rng(4)
    frame, plan, _ = simulate.positions(rng, "cosine", checkpoints=50, length=128)
    matrix = position_matrices(frame)[0]
    x = matrix.keys["step"].to_numpy(float)
    seen = x <= 0.4 * x[-1]
    ahead = forecast_positions(observed_rows(matrix, seen), x[seen], x[~seen], plan)
    actual = matrix.loss[~seen]
    assert ahead.loss.shape == actual.shape
    np.testing.assert_allclose(ahead.mean, ahead.level.mean, atol=1e-9)
    with_pattern = np.mean((ahead.loss - actual) ** 2)
    without = np.mean((ahead.loss - ahead.pattern.value - actual) ** 2)
    assert with_pattern < without / 2  # the same sequences are hard at every checkpoint
    low, high = ahead.interval(95)
    assert np.mean((low <= actual) & (actual <= high)) > 0.9


def test_ranking_probabilities():
    ranking = rank(["b", "a"], np.array([3.0, 2.9]), np.array([0.05, 0.05]))
    assert [place.run for place in ranking.order] == ["a", "b"]
    expected = 0.9214  # Phi(0.1 / (0.05 sqrt 2)) by table
    assert ranking.order[0].probability_above_next == pytest.approx(expected, abs=1e-3)
    assert ranking.probability == pytest.approx(expected, abs=0.01)
    assert rank(["x"], np.array([1.0]), np.array([0.1])).probability == 1


def test_effective_points_widen_the_interval(monkeypatch):
    x, y, _ = curve_of("cosine")
    seen = x <= 0.4 * x[-1]
    shipped = forecast(x[seen], y[seen], x[~seen], plan_of("cosine")).sd[-1]
    monkeypatch.setattr(mean_law, "EFFECTIVE", 10**6)
    assert forecast(x[seen], y[seen], x[~seen], plan_of("cosine")).sd[-1] < shipped


def test_the_prior_file_gives_back_what_was_written(tmp_path):
    """What benchmarks/studies/temporal_prior.py writes is what priors reads, and the shipped file is of that form."""
    write_json(tmp_path / "prior.json", priors.as_json(priors.SHIPPED))
    assert priors.from_json(json.loads((tmp_path / "prior.json").read_text())) == priors.SHIPPED
    plan = PlannedSchedule(np.array([0.0, 1e4]), np.array([1e-3, 0]), 5e5)  # what 124M models measured: 0.2 to 0.23
    assert priors.SHIPPED.decay("mixed", "fast^0.75", plan)[0] == pytest.approx(0.18, abs=0.04)
    assert priors.SHIPPED.exponent[0] == pytest.approx(0.53, abs=0.06)  # measured at constant rates: 0.49 to 0.60


def test_the_fall_ahead_bends_at_one_loss_and_widens():
    """By hand: a tent of -0.2 at 4 nats, half of it 0.2 nats off; the spread falls with the steps to 0.05."""
    ahead = priors.FallAhead(bend=-0.2, bend_sd=0.3, loss=4.0, width=0.4, least=0.05, sd=0.12, highest=5.0)
    assert ahead.log_change(2000, 3.0) == (0.0, pytest.approx(0.13))
    mean, sd = ahead.log_change(2000, 4.2)
    assert mean == pytest.approx(-0.1) and sd == pytest.approx(np.hypot(0.13, 0.15))
    assert ahead.log_change(125, 3.0)[1] == pytest.approx(np.hypot(0.05, 0.12 * 8))  # a sixteenth of the steps
    assert ahead.log_change(1e9, 3.0)[1] == pytest.approx(0.05)
    assert ahead.above(4.9) == 0 and ahead.above(5.5) == pytest.approx(0.5)


def test_smallness_is_counted_in_tokens_a_step_and_steps():
    """1 at 2,048 tokens and 400 steps and below, none from 40,000 tokens on and where they are unknown; half way in the logarithm
    of tokens, 10,119, a half, and a tenth of it after ten times the steps."""
    half = (2048 * 5e4) ** 0.5
    cases = ((512, 10, 1), (2048, 400, 1), (half, 300, 0.5), (half, 4000, 0.05), (41_000, 9, None), (0, 9, None))
    for batch, steps, share in cases:
        plan = PlannedSchedule(np.array([0.0, 30, 600]), np.array([0, 8e-3, 8e-4]), batch)
        assert priors.SHIPPED.smallness(plan, steps) == (share if share is None else pytest.approx(share)), batch


def test_what_a_small_run_borrows_from_small_runs():
    small = priors.SHIPPED.small
    exponents = np.geomspace(0.2, 1.4, 400)
    for share, exponent, spread in ((1.0, small.exponent, small.change_sd), (0.0, 0.5, 0.5)):
        mean, sd = priors.SHIPPED.log_change(1e9, 3.0, share)  # at an age that adds nothing, far from the bend
        assert mean == pytest.approx(share * small.change) and sd == pytest.approx(np.hypot(spread, 0.05))
        likeliest = exponents[np.argmax(priors.SHIPPED.log_exponent(exponents, share))]
        assert likeliest == pytest.approx(exponent, rel=0.01)
    mean, sd = priors.SHIPPED.log_change(1e9, 3.0, 0.5)
    assert mean == pytest.approx(small.change / 2) and small.change_sd < sd < 0.5
    assert priors.SHIPPED.log_change(1e9, 3.0, 1.0, rate=0.3)[0] == pytest.approx(0.3 * small.change)


@pytest.mark.parametrize("decades", [0.25, 1.0])
def test_small_runs_fall_on_where_large_ones_level_off(decades):
    """A loss that falls by as much in each decade of steps, forecast from 40%: with 1,024 tokens a step a smaller error than
    with half a million, and the truth inside the interval."""
    x = np.arange(20.0, 1001, 20)
    y = 7.0 - decades * np.log10(x)
    past = x <= 400
    errors = {}
    for tokens in (1024, 524_288):
        plan = PlannedSchedule(np.array([0.0, 20, 1000]), np.array([0, 4e-3, 4e-3]), tokens)
        ahead = forecast(x[past], y[past], x[~past], plan)
        errors[tokens] = ahead.mean[-1] - y[-1]
        borrows = any("as runs of so few tokens a step did" in note for note in ahead.notes)
        assert borrows == (tokens == 1024)
        low, high = ahead.interval(95)
        assert tokens > 2048 or low[-1] < y[-1] < high[-1]
    assert errors[524_288] > 0 and abs(errors[1024]) < errors[524_288]


@pytest.mark.parametrize("bend", [0.0, -0.3])
def test_a_bend_scales_the_fall_ahead_alone(bend):
    """The level at the last row stays; what a run at a constant rate still loses is exp(bend) times as much."""
    x = np.linspace(2000, 8000, 40)
    y = 2.5 + 30 * x**-0.5
    ahead = dataclasses.replace(priors.SHIPPED.ahead, bend=bend, bend_sd=0.0, loss=float(y[-1]), width=1.0, sd=0.0)
    prior = dataclasses.replace(priors.SHIPPED, exponent=(0.5, 1e-3), ahead=ahead)
    last, later = fit(LAWS["schedule"], ObservedPart(x, y, 0.0, 0.0), plan_of("constant"), prior).predict(
        np.array([8e3, 2e4])
    )[0]
    tent = 1 - (y[-3:].mean() - y[-1])
    assert last == pytest.approx(y[-1], abs=2e-3)
    assert last - later == pytest.approx(np.exp(bend * tent) * 30 * (8e3**-0.5 - 2e4**-0.5), rel=0.03)


def test_white_noise_counts_as_that_of_independent_rows():
    """Rows of a known curve with white noise: the stated error of the level agrees with that of repeated draws."""
    x = np.linspace(2000, 8000, 40)
    plan, true = plan_of("constant"), 2.5 + 30 * x**-0.5
    rng = np.random.default_rng(0)
    fits = [
        fit(LAWS["schedule"], observed_part(x, true + 0.02 * rng.normal(size=40), plan), plan).predict(x[-1:])
        for _ in range(40)
    ]
    errors = np.array([mean[0] for mean, _ in fits]) - true[-1]
    stated = np.median([sd[0] for _, sd in fits])
    assert 0.7 < stated / np.sqrt(np.mean(errors**2)) < 1.6


def test_other_exponents_widen_and_move_nothing(monkeypatch):
    """Of a power law at a constant rate with an exponent that no laboratory had the interval alone grows, and holds the end."""
    x = np.linspace(200.0, 20000, 100)
    y = 2 + 2.2 * (1 + x / 50) ** -0.25
    seen = x <= 4000
    ahead = forecast(x[seen], y[seen], x[~seen], plan_of("constant"))
    low, high = ahead.interval(95)
    assert low[-1] < y[-1] < high[-1]
    monkeypatch.setattr(priors, "OTHERS", 0.0)
    alone = forecast(x[seen], y[seen], x[~seen], plan_of("constant"))
    np.testing.assert_allclose(alone.mean, ahead.mean, atol=1e-12)
    assert alone.sd[-1] < 0.7 * ahead.sd[-1] and alone.interval(95)[0][-1] > y[-1]
