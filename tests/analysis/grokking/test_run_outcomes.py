"""Outcomes and times of curves written by hand."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest

from emergence_train.analysis.grokking import analyze, curves, figures
from emergence_train.analysis.grokking.outcomes import outcome, run_result, told_from_luck
from emergence_train.analysis.grokking.output import format_table
from emergence_train.errors import InputError


def curve(train: list[float], heldout: list[float], every: int = 500, **keys) -> pd.DataFrame:
    """A measurement every so many updates, from 0."""
    rows = len(train)
    given = {"run": "r", "model": "m", "params": 100, "fraction": 0.5, "weight_decay": 1.0, "seed": 1} | keys
    loss = np.exp(-np.arange(rows))
    columns = {"update": np.arange(rows) * every, "train_loss": loss, "heldout_loss": 2.0, "norm": 3.0}
    return pd.DataFrame(columns).assign(train_accuracy=train, heldout_accuracy=heldout, **given)


@pytest.mark.parametrize(
    ("train", "heldout", "name"),
    [
        (None, None, "confusion"),
        (500, None, "memorisation"),
        (500, 1499, "comprehension"),
        (500, 1500, "grokking"),
        (500, 400, "comprehension"),
        (None, 400, "confusion"),
    ],
)
def test_outcome_is_by_the_two_times(train, heldout, name):
    assert outcome(train, heldout) == name


def test_times_are_the_first_measurements_at_90_and_99_percent():
    run = run_result(curve([0, 0.9, 0.95, 1, 1, 1], [0, 0, 0.1, 0.89, 0.9, 0.985]), budget=2500)
    assert (run.train_90, run.train_99, run.heldout_90, run.heldout_99) == (500, 1500, 2000, None)
    assert run.before_heldout_90 == 1500
    assert run.outcome == "grokking" and run.delay == 1500 and run.updates == 2500
    assert run.heldout_accuracy == 0.985 and not run.censored


def sweep(able: dict[float, int], lost: float | None = None, seeds: int = 3, params: int = 100) -> list[pd.DataFrame]:
    """Curves of one size: at each share so many of the seeds generalise; at the share `lost` none has a finite loss."""
    parts = []
    for share, seed in itertools.product(able, range(seeds)):
        heldout = [0, 0, 1] if seed < able[share] else [0, 0, 0]
        keys = {"model": f"m{params}", "params": params, "fraction": share, "seed": seed}
        part = curve([0, 1, 1], heldout, run=f"{params}-{share}-{seed}", **keys)
        if share == lost:
            part.loc[part["update"] > 0, ["train_loss", "heldout_loss", "norm"]] = np.nan
        parts.append(part)
    return parts


def test_a_run_whose_loss_is_not_finite_diverged():
    parts = sweep({0.4: 0, 0.6: 3, 0.8: 0}, lost=0.8)
    result = analyze(pd.concat(parts), budget=1000)
    assert result.outcomes == {"memorisation": 3, "comprehension": 3, "diverged": 3}
    assert not any(run.censored for run in result.runs if run.outcome == "diverged")
    assert result.warning().startswith("3 of 9 runs diverged, the first after 1,000 updates")
    assert format_table(result).startswith("warning: 3 of 9 runs diverged")
    without = analyze(pd.concat(parts[:6]), budget=1000)
    assert result.critical_fraction == without.critical_fraction and without.warning() is None


def test_a_run_that_generalised_before_it_diverged_counts():
    part = curve([0, 1, 1], [0, 1, 1])
    part.loc[2, ["train_loss", "norm"]] = np.nan
    assert run_result(part, budget=1000).outcome == "comprehension"


def test_a_sweep_that_diverged_has_no_number():
    result = analyze(pd.concat(sweep({0.4: 0}, lost=0.4) + sweep({0.4: 0}, lost=0.4, params=900)), budget=1000)
    for row in result.critical_fraction:
        assert (row.value, row.low95, row.high95, row.runs, row.reason) == (None, None, None, 0, "every run diverged")
    assert result.trend.p is None and result.time_trend.runs == 0 and result.trend.reason == "one share alone"
    assert not figures.critical_share(result).drawable()


@pytest.mark.parametrize(
    ("able", "ends", "reason"),
    [
        ({0.4: 0, 0.6: 0}, (True, False), "no run generalised"),
        ({0.4: 3, 0.6: 3}, (False, True), "every run generalised"),
        ({0.4: 1, 0.6: 0}, (False, False), "more data did not go with more"),
        ({0.4: 1}, (False, False), "one share alone"),
        ({0.4: 0, 0.6: 0, 0.8: 1}, (True, False), "half of the runs"),
    ],
)
def test_a_critical_share_that_is_not_known_says_why(able, ends, reason):
    """No number is made up; what bounds there are stay, and what is open is drawn to the edge with an arrow."""
    result = analyze(pd.concat(sweep(able)), budget=1000)
    (row,) = result.critical_fraction
    assert row.value is None and row.reason.startswith(reason)
    assert (row.low95 is not None, row.high95 is not None) == ends
    assert f"; {row.reason}" in format_table(result)
    drawn = figures.critical_share(result).drawable()
    (bar,) = [trace for trace in drawn if trace.bars]
    arrows = {trace.marker: float(trace.y[0]) for trace in drawn if trace.marker != "circle"}
    assert set(arrows) == {name for name, known in zip(("down", "triangle"), ends) if not known}
    assert arrows.get("down", row.low95) == bar.low[0] and arrows.get("triangle", row.high95) == bar.high[0]
    assert not [trace for trace in drawn if trace.marker == "circle" and trace.points]


def test_a_power_of_time_that_is_not_known_says_why():
    """Below 0.6 none came: whether later or never, nobody knows, so times of one share have no power."""
    time = (result := analyze(pd.concat(sweep({0.4: 0, 0.6: 3})), budget=1000)).time_trend
    assert (time.value, time.low95, time.high95, time.p, time.generalised) == (None, None, None, None, 3)
    assert time.reason.startswith("no size generalised at two shares") and time.reason in format_table(result)


@pytest.mark.parametrize(
    ("budget", "stopped"), [(500, False), (999, False), (1000, False), (1499, False), (1500, True)]
)
def test_a_run_stopped_where_another_measurement_fits(budget, stopped):
    """Measured every 500 updates until 1,000: the next one was due at 1,500. Either way it might have generalised later."""
    run = run_result(curve([0, 1, 1], [0, 0, 0.5]), budget)
    assert run.outcome == "memorisation" and run.stopped is stopped and run.censored and run.delay is None


def test_rows_beyond_the_budget_are_not_read():
    """Runs of 2,000 updates and a budget of 1,000 are those that were cut off there, whatever came later."""
    parts = [
        curve([0, 1, 1, 1, 1], [0, 0, able, 1, 1], run=f"r{seed}", seed=seed) for seed, able in enumerate((0, 1, 0.5))
    ]
    whole = pd.concat(parts)
    result = analyze(whole, budget=1000)
    assert repr(result) == repr(analyze(whole[whole["update"] <= 1000], budget=1000))
    assert [run.heldout_90 for run in result.runs] == [None, 1000, None] and result.runs[0].updates == 1000
    with pytest.raises(InputError, match="run r0 begins at update 500; give a larger budget than 300"):
        analyze(whole[whole["update"] > 0], budget=300)


def test_runs_that_stopped_are_left_out_of_critical_shares():
    """Of three that did not generalise at 0.6 two were killed at 500 of 2,000 updates: nobody knows what they would have done."""
    parts = sweep({0.4: 0, 0.6: 1, 0.8: 3})
    killed = [
        part[part["update"] <= 500] if part["fraction"].iloc[0] == 0.6 and part["seed"].iloc[0] else part
        for part in parts
    ]
    result = analyze(pd.concat(killed), budget=1000)
    (row,) = result.critical_fraction
    assert (row.runs, row.generalised) == (7, 4) and sum(run.censored for run in result.runs) == 5
    assert result.warning().startswith("2 of 9 runs end before update 1,000 without having generalised")
    assert (row.value, row.low95) == (
        analyze(pd.concat(parts[:4] + parts[6:]), budget=1000).critical_fraction[0].value,
        row.low95,
    )
    assert [part.runs for part in result.times] == [3, 3, 3]  # times take them as censored
    (none,) = analyze(pd.concat(parts[:3]), budget=9000).critical_fraction
    assert (none.value, none.runs, none.reason) == (None, 0, "every run stopped")


@pytest.mark.parametrize("lost", [["norm"], ["heldout_loss"], ["norm", "heldout_loss"]])
def test_what_is_not_recorded_makes_no_run_diverge(lost):
    parts = sweep({0.4: 0, 0.6: 1, 0.8: 3})
    whole, empty = pd.concat(parts), pd.concat([part.assign(**dict.fromkeys(lost, np.nan)) for part in parts])
    last = whole.assign(**{name: whole[name].mask(whole["update"] == 1000) for name in lost})
    for frame in (empty, last):
        result = analyze(frame, budget=1000)
        assert result.outcomes == analyze(whole, budget=1000).outcomes and result.warning() is None
        assert result.critical_fraction == analyze(whole, budget=1000).critical_fraction


@pytest.mark.parametrize(
    ("questions", "chance"), [(4, 0.5), (9, 0.5), (10, 0.5), (100, 0.95), (160, 0.95), (500, 0.04), (60, 0.9)]
)
def test_what_luck_gets_is_counted_out(questions, chance):
    """By all numbers of right answers: the least of which, or of more, luck has a chance of at most 0.001."""
    chances = [math.comb(questions, k) * chance**k * (1 - chance) ** (questions - k) for k in range(questions + 1)]
    able = [k / questions for k in range(questions + 1) if sum(chances[k:]) <= 1e-3]
    assert (
        told_from_luck(questions, chance) == pytest.approx(able[0]) if able else told_from_luck(questions, chance) > 1
    )


def test_a_constant_answer_is_no_comprehension():
    """95% of the answers are one: that answer gets 0.95 of 200 held-out questions, and 0.99 of them are more than luck."""
    luck = {"heldout_questions": 200, "chance": 0.95}
    assert run_result(curve([0, 1, 1], [0.9, 0.95, 0.96], **luck), 1000).outcome == "memorisation"
    run = run_result(curve([0, 1, 1], [0.9, 0.95, 1.0], **luck), 1000)
    assert (run.outcome, run.heldout_90, run.chance) == ("comprehension", 1000, 0.95)


def test_no_held_out_question_tells_nothing():
    assert told_from_luck(0, 0.1) > 1 and told_from_luck(0, 1.0) > 1
    assert run_result(curve([0, 1, 1], [np.nan] * 3, heldout_questions=0, chance=0.1), 1000).outcome == "unclear"


@pytest.mark.parametrize("chance", [0.043, 0.1, 0.5, 0.95])
def test_as_many_questions_as_the_warning_says_are_enough(chance):
    luck = {"heldout_questions": 1, "chance": chance}
    warning = analyze(curve([0, 1, 1], [0, 0, 1], **luck), 1000).warning()
    least = int(warning.split("hold out at least ")[1].split(":")[0])
    assert told_from_luck(least, chance) <= 1 and told_from_luck(least - 2, chance) > 1
    assert warning.endswith("lower fractions, or give the task more questions")


def test_an_unclear_run_that_settled_is_not_said_to_have_stopped():
    """`grok` ends it when it knows all, long before the budget; more updates would not make it clear."""
    run = run_result(curve([0, 1, 1], [0, 1, 1], heldout_questions=4, chance=0.5), 9000)
    assert (run.outcome, run.censored, run.stopped) == ("unclear", False, False)


def test_unclear_runs_are_no_solution_whose_norm_is_compared():
    parts = [part.assign(norm=3.0) for part in sweep({0.4: 0, 0.6: 3})]
    few = [
        part.assign(run=part["run"] + "f", fraction=0.9, norm=9.0, heldout_questions=4, chance=0.5) for part in parts
    ]
    alone = analyze(pd.concat(parts), budget=1000).efficiency
    assert len(alone) == 1 and analyze(pd.concat(parts + few), budget=1000).efficiency == alone


def test_four_held_out_questions_of_two_answers_tell_nothing():
    luck = {"heldout_questions": 4, "chance": 0.5}
    parts = sweep({0.4: 0, 0.6: 3})
    frame = pd.concat([*parts, *[part.assign(run=f"few-{k}", fraction=0.9, **luck) for k, part in enumerate(parts)]])
    result = analyze(frame, budget=1000)
    assert result.outcomes == {"memorisation": 3, "comprehension": 3, "unclear": 6}
    assert result.warning().startswith("6 of 12 runs have so few held-out questions")
    assert result.critical_fraction == analyze(pd.concat(parts), budget=1000).critical_fraction
    assert result.note().startswith("whether luck or a constant answer reaches 90% is not known of 6 of 12 runs")
    alone = analyze(frame[frame["fraction"] == 0.9], budget=1000)
    assert (
        alone.critical_fraction[0].reason == alone.time_trend.reason == "every run is unclear" and alone.note() is None
    )


@pytest.mark.parametrize("name", ["heldout_loss", "norm"])
def test_a_run_ended_for_its_norm_or_held_out_loss_diverged(name):
    """It ends any run of which a measure is not finite: to train it on gives the same."""
    part = curve([0, 1, 1], [0, 0, 0.5])
    part.loc[2, name] = np.inf
    (run,) = analyze(part, budget=9000).runs
    assert (run.outcome, run.stopped) == ("diverged", False)
    part.loc[2, ["heldout_loss", "heldout_accuracy"]] = np.nan  # not asked at this measurement
    part.loc[2, "norm"] = 3.0
    assert run_result(part, 9000).stopped


def test_a_size_whose_runs_diverged_and_stopped_says_both():
    lost, stopped = sweep({0.4: 0}, lost=0.4), sweep({0.6: 0})
    (row,) = analyze(pd.concat(lost + stopped), budget=9000).critical_fraction
    assert row.reason == "every run diverged or stopped"


def test_the_slope_of_log_shares_is_said_to_be_at_the_middle():
    shares = {0.01: 0, 0.02: 0, 0.04: 3, 0.08: 3, 0.16: 3, 0.32: 3}
    small = {share: 3 * (share > 0.1) for share in shares}
    log = analyze(pd.concat(sweep(shares, params=9000) + sweep(small)), budget=1000)
    assert log.trend.log_share and "parameters (slope at the middle of the sizes): -" in format_table(log)
    even = sweep({0.4: 0, 0.6: 3, 0.8: 3}, params=900) + sweep({0.4: 0, 0.6: 0, 0.8: 3})
    assert "parameters: -" in format_table(analyze(pd.concat(even), budget=1000))


def test_nothing_is_known_before_the_first_update():
    run = run_result(curve([1, 1, 1], [1, 0.5, 0.95]), budget=1000)
    assert (run.train_90, run.heldout_90) == (500, 1000)


@pytest.mark.parametrize("budget", ["5000", None, 0, -1, 1000.5, float("nan"), float("inf"), True])
def test_a_budget_that_is_no_number_of_updates_is_refused(budget):
    with pytest.raises(InputError, match="budget: .* is no number of updates; give a whole number above 0"):
        analyze(curve([0, 1, 1], [0, 0, 1]), budget)


def test_efficiency_compares_norms_at_equal_loss():
    """Two solutions whose norm is a + b log(loss), read at the middle of the losses that both had."""
    parts = []
    for seed in (1, 2, 3):
        for accuracy, base, first in ((0.1, 40.0, 1.0), (1.0, 30.0, 0.3)):
            part = curve([1.0] * 41, [accuracy] * 41, every=25, run=f"{accuracy}-{seed}", seed=seed)
            part["train_loss"] = first * np.exp(-0.2 * np.arange(41))
            part["norm"] = base + 0.1 * seed - np.log(part["train_loss"])
            parts.append(part)
    (cost,) = analyze(pd.concat(parts), budget=1000).efficiency
    low, high = np.exp(-0.2 * 40), 0.3 * np.exp(-0.2 * 30)
    assert cost.loss == pytest.approx(np.sqrt(low * high))
    assert cost.memorising_norm == pytest.approx(40.2 - np.log(cost.loss), rel=0.01)
    assert cost.generalising_norm == pytest.approx(30.2 - np.log(cost.loss), rel=0.01)
    assert cost.low95 < cost.ratio < cost.high95 < 1
    assert (cost.memorising_runs, cost.generalising_runs) == (3, 3)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda frame: frame.drop(columns="norm"), "no column 'norm'"),
        (lambda frame: frame.iloc[:0], "no rows"),
        (lambda frame: pd.concat([frame, frame.iloc[-1:]]), "has update 1000 twice"),
        (lambda frame: frame.assign(seed=[1, 1, 2]), "a name of its own"),
        (lambda frame: frame.assign(chance=[0.1, 0.1, 0.2]), "a name of its own"),
        (lambda frame: frame.assign(params=0), "column 'params': 0 is no size of a model"),
        (lambda frame: frame.assign(params=[1, np.nan, 1]), "curves: row 2, column 'params': nan is empty or NaN"),
        (
            lambda frame: frame.assign(heldout_accuracy=[1.03, 1.03, 100.0]),
            "row 1, column 'heldout_accuracy': 1.03 is above 1",
        ),
        (
            lambda frame: frame.assign(train_accuracy=[0.0, 90.0, np.nan]),
            "row 2, column 'train_accuracy': 90.0 is above 1",
        ),
        (
            lambda frame: frame.assign(train_accuracy=[0.0, 1.0, -0.5]),
            "row 3, column 'train_accuracy': -0.5 is negative",
        ),
        (lambda frame: frame.assign(heldout_accuracy=np.inf), "column 'heldout_accuracy': inf is not a finite number"),
        (
            lambda frame: frame.assign(fraction=30.0),
            "row 1, column 'fraction': 30.0 is above 1; give shares, not percent",
        ),
        (lambda frame: frame.assign(update=[0, 500.5, 1000]), "row 2, column 'update': 500.5 is not a whole number"),
        (lambda frame: frame.assign(norm=["3", "big", "3"]), "row 2, column 'norm': 'big' is not a finite number"),
    ],
)
def test_wrong_curves_are_refused(change, says):
    with pytest.raises(InputError, match=says):
        curves.checked(change(curve([0, 1, 1], [0, 0, 1])))


def test_a_diverged_run_is_the_same_with_inf_or_nan():
    parts = sweep({0.4: 0, 0.6: 3, 0.8: 0}, lost=0.8)
    frame = pd.concat(parts)
    infinite = frame.assign(train_loss=frame["train_loss"].fillna(np.inf), norm=frame["norm"].fillna(np.inf))
    results = [analyze(each, budget=1000) for each in (frame, infinite)]
    assert repr(results[0]) == repr(results[1]) and results[0].outcomes["diverged"] == 3


@pytest.mark.parametrize(
    ("sizes", "shares", "able", "says"),
    [
        ((100,), (0.4, 0.6), {0.6}, "models of one size alone"),
        ((100, 900), (0.4,), set(), "one share alone"),
        ((100, 900), (0.4, 0.6), set(), "fewer than two sizes"),
        ((100, 900), (0.4, 0.6), {0.4, 0.6}, "fewer than two sizes"),
        ((100, 900), (0.4, 0.6), {0.4}, "more data did not go with more"),
    ],
)
def test_a_sweep_without_a_trend_says_why(sizes, shares, able, says):
    """One size, one share, no run or every run that generalises, and those of less data alone; no number is made up."""
    parts = []
    for params, share, seed in itertools.product(sizes, shares, (1, 2)):
        keys = {"model": f"m{params}", "params": params, "fraction": share, "seed": seed}
        heldout = [0, 0, 1] if share in able else [0, 0, 0]
        parts.append(curve([0, 1, 1], heldout, run=f"{params}-{share}-{seed}", **keys))
    result = analyze(pd.concat(parts), budget=1000)
    trend = result.trend
    assert (trend.value, trend.low95, trend.high95, trend.p) == (None,) * 4
    assert says in result.trend_unknown() and f"unknown, {result.trend_unknown()}" in format_table(result)


def test_sizes_that_share_no_share_say_so():
    parts = []
    for params, share, able in ((100, 0.4, 0), (100, 0.6, 1), (900, 0.5, 0), (900, 0.7, 1)):
        keys = {"model": f"m{params}", "params": params, "fraction": share, "run": f"{params}-{share}"}
        parts.append(curve([0, 1, 1], [0, 0, able], **keys))
    result = analyze(pd.concat(parts), budget=1000)
    assert result.trend.value is None and result.trend_unknown().startswith("no share was tried with two")
