"""Where a run is going: its planned end and rate from the command line, and no forecast of a row that exists."""

import json

import numpy as np
import pandas as pd
import pytest
import yaml

from emergence_train import cli
from emergence_train.analysis.logs import LogOptions
from emergence_train.analysis.outlook import Ahead, continued, parse_schedule, rates_of
from emergence_train.analysis.planned_schedule import PlannedSchedule
from emergence_train.analysis.runs import load
from emergence_train.analysis.temporal import analyze_temporal, simulate
from emergence_train.errors import InputError

EACH = simulate.TOKENS_PER_STEP


def curve(until=8000, kind="cosine") -> pd.DataFrame:
    frame = simulate.curve(np.random.default_rng(0), kind, rows=120)[0]
    return frame[frame["step"] <= until]


def written(frame, tmp_path, name="table.csv"):
    frame.to_csv(tmp_path / name, index=False)
    return tmp_path / name


def analysed(capsys, *arguments) -> tuple[dict, str]:
    assert cli.main(["analyze", "temporal", *map(str, arguments), "--json"]) == 0
    output = capsys.readouterr()
    return json.loads(output.out), output.err


def test_a_finished_run_is_not_forecast(tmp_path, capsys):
    """Every row is observed and nothing says more is to come: the last row is no forecast, in no view."""
    result, printed = analysed(capsys, written(curve(), tmp_path), "--out", tmp_path / "out")
    (run,) = result["runs"]
    assert run["forecast"] == [] and "give --to-tokens" in run["nothing_to_forecast"]
    assert "nothing to forecast" in printed and "forecast 2" not in printed and "forecast 3" not in printed
    assert pd.read_csv(tmp_path / "out" / "forecast.csv").empty
    assert abs(run["final"]["loss"] - curve()["loss"].iloc[-1]) < 0.1  # the contract's key: the law at the last row


def test_held_out_rows_are_named_so(tmp_path, capsys):
    result, printed = analysed(capsys, written(curve(), tmp_path), "--fit-fraction", 0.5)
    until = result["runs"][0]["fit_until_tokens"]
    assert "loss at step 8" in printed and "held out of the fit" in printed
    assert f"fitted until {until:,} tokens, 50% of the run; forecast" in printed and "observed" in printed
    assert "nothing_to_forecast" not in result["runs"][0]


def test_share_fitted_is_that_of_its_last_row(tmp_path, capsys):
    """Rows at each of 40 parts of the run, but none at the 13th to 16th: up to 40% of it, the last is at 30%."""
    part = np.array([k for k in range(1, 41) if not 13 <= k <= 16])
    frame = pd.DataFrame({"run": "r", "params": 7, "step": part, "tokens": EACH * part, "loss": 2 + part**-0.3})
    _, printed = analysed(capsys, written(frame, tmp_path), "--fit-fraction", 0.4)
    assert f"fitted until {12 * EACH:,} tokens, 30% of the run" in printed


def test_a_table_is_forecast_to_a_given_end_at_a_given_rate(tmp_path, capsys):
    """The first 40% of a simulated run whose end is known, with the schedule that made it."""
    truth = simulate.curve(np.random.default_rng(0), "cosine", rows=120)[1][-1]
    path = written(curve()[["step", "loss"]], tmp_path)
    schedule = f"cosine,lr=1e-3,warmup={200 * EACH},final=0.1"
    more = ["--to-tokens", f"{20000 * EACH:.1e}", "--schedule", schedule, "--tokens-per-step", EACH, "--params", 7]
    result, printed = analysed(capsys, path, *more, "--run", "mine")
    (run,) = result["runs"]
    assert (run["run"], run["final"]["step"], run["final"]["tokens"]) == ("mine", 20000, 20000 * EACH)
    assert run["final"]["curve_low95"] <= truth <= run["final"]["curve_high95"]
    assert "not reached yet" in printed and not any("unknown" in note for note in run["notes"])


def test_schedules_are_read_as_the_configuration_writes_them():
    schedule = parse_schedule("wsd,lr=3e-4,warmup=2e3,final=0,decay=5_000,shape=sqrt")
    assert (schedule.kind, schedule.lr, schedule.warmup_tokens, schedule.decay_tokens) == ("wsd", 3e-4, 2000, 5000)
    rates = rates_of(schedule, 20_000)
    for tokens, rate in ((0, 0), (1000, 1.5e-4), (2000, 3e-4), (15_000, 3e-4), (20_000, 0)):
        assert np.interp(tokens, *rates.T) == pytest.approx(rate, abs=1e-9)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cosine", "lr: Field required"),
        ("straight,lr=1", "the kind: Input should be"),
        ("cosine,lr", "'lr' is none of lr, warmup"),
        ("cosine,lr=1e-3,warm=3", "'warm' is none of"),
        ("cosine,lr=1e-3,warmup=0.5", "warmup: Input should be a valid integer"),
    ],
)
def test_bad_schedules_are_refused_with_an_example(text, message):
    with pytest.raises(InputError, match=message) as caught:
        parse_schedule(text)
    assert "write it as cosine,lr=3e-4" in str(caught.value)


def loaded(tmp_path, frame, ahead=None, options=None, **more):
    (series,) = load(written(frame, tmp_path), ahead=ahead, options=options, **more)
    return series


def test_an_end_before_the_last_row_is_refused(tmp_path):
    frame = curve()
    with pytest.raises(InputError, match="--to-tokens ends at 100,000, before its last row"):
        loaded(tmp_path, frame, Ahead(100_000))
    steps = np.c_[frame["step"], frame["lr"]]  # steps where tokens are meant
    with pytest.raises(InputError, match=r"planned_lr \(tokens, lr\) ends at 8,000.*is 8,000 in steps"):
        loaded(tmp_path, frame, planned_lr=steps)
    with pytest.raises(InputError, match="its rows have no tokens.*--tokens-per-step"):
        loaded(tmp_path, frame.assign(tokens=0), Ahead(10**9))
    with pytest.raises(InputError, match="warmup and decay .* do not fit into the run's"):
        loaded(tmp_path, frame, Ahead(20000 * EACH, parse_schedule(f"cosine,lr=1e-3,warmup={30000 * EACH}")))


def test_a_rate_that_is_not_known_to_the_end_is_noted(tmp_path):
    series = loaded(tmp_path, curve(kind="constant"), Ahead(20000 * EACH))
    assert (series.end_step, series.end_tokens) == (20000, 20000 * EACH)
    assert any("after step 8000 is not known and taken to stay" in note for note in series.notes)
    series = loaded(tmp_path, curve(), Ahead(20000 * EACH))
    assert any("to go on from 0.000689 to 0.0001 as a cosine" in note for note in series.notes)
    assert series.plan.share(np.array([14000.0]))[0] == pytest.approx(
        simulate.learning_rate("cosine", AT)[7000] * 1000, 0.01
    )


AT = np.linspace(0, 20000, 10001)
COURSES = {
    "cosine": lambda t: 0.5 + 0.5 * np.cos(np.pi * t),
    "line": lambda t: 1 - 0.9 * t,
    "decay": lambda t: np.clip((1 - t) / 0.7, 0, 1),
    "sqrt": lambda t: 1 - np.sqrt(np.clip((t - 0.3) / 0.7, 0, 1)),
    "inverse": lambda t: (1 + np.clip(t - 0.02, 0, 1) / 0.02) ** -0.5,
}


@pytest.mark.parametrize("digits", [17, 3])
@pytest.mark.parametrize("course", sorted(COURSES))
def test_a_fall_that_has_begun_goes_on(course, digits):
    """Courses by their own formulas, seen at 80 rows to half of the run, printed with so many digits."""
    x = np.linspace(125, 10000, 80)
    rate = np.array([float(f"{r:.{digits}g}") for r in 6e-4 * COURSES[course](x / 20000) * np.minimum(1, x / 300)])
    whole, _ = continued(PlannedSchedule(x, rate), 20000)
    np.testing.assert_allclose(whole.share(AT[5000:]), COURSES[course](AT[5000:] / 20000), atol=0.02)


@pytest.mark.parametrize(
    "rate",
    [
        np.full(80, 6e-4),
        np.where(np.arange(80) < 60, 6e-4, 3e-4),  # a stair
        6e-4 * (1 - 0.002 * np.maximum(np.arange(80) - 76, 0)),  # four rows of a fall
        6e-4 * np.random.default_rng(0).uniform(0.5, 1, 80),
    ],
)
def test_other_rates_are_not_continued(rate):
    assert continued(PlannedSchedule(np.linspace(125, 10000, 80), rate), 20000) is None


def test_an_unknown_rest_leaves_room_for_a_decay(tmp_path):
    """A WSD run seen before its decay, with its rate, without it and with all of it planned, and where it ended."""
    seen, truth = curve(12000, "wsd"), simulate.curve(np.random.default_rng(0), "wsd", rows=120)[1][-1]
    ends = []
    for frame in (seen, seen.drop(columns="lr")):
        path = written(frame, tmp_path)
        (run,) = analyze_temporal(path, ahead=Ahead(20000 * EACH)).runs
        ends.append(run.final)
        assert run.final.curve_low95 < truth < run.final.curve_high95
        assert any("low bounds leave room for a decay to 0" in note for note in run.notes)
    assert ends[0].low95 == pytest.approx(ends[1].low95, abs=0.05)


def ramp(total=5e9) -> tuple[np.ndarray, np.ndarray]:
    """Steps and tokens of a run whose steps grow from 2^17 to 2^20 tokens, counted one by one."""
    tokens = [0]
    while tokens[-1] < total:
        tokens.append(tokens[-1] + (2**17 if tokens[-1] < 5e8 else 2**19 if tokens[-1] < 1e9 else 2**20))
    return np.arange(1, len(tokens)), np.array(tokens[1:])


def test_a_batch_that_grows_keeps_steps_and_tokens_together(tmp_path):
    steps, tokens = ramp()
    rows = np.flatnonzero((steps % 50 == 0) & (tokens <= 2e9))
    rate = 6e-4 * (0.1 + 0.45 * (1 + np.cos(np.pi * tokens / tokens[-1]))) * np.minimum(1, tokens / 1e8)
    loss = 2.5 + 6 * (steps + 50.0) ** -0.3
    frame = pd.DataFrame({"run": "r", "params": 7, "step": steps, "tokens": tokens, "lr": rate, "loss": loss}).loc[rows]
    series = loaded(tmp_path, frame, Ahead(int(tokens[-1]), parse_schedule(f"cosine,lr=6e-4,warmup={10**8},final=0.1")))
    assert abs(series.end_step - steps[-1]) <= 1
    np.testing.assert_allclose(series.tokens_at(steps[rows[0] :: 100]), tokens[rows[0] :: 100], rtol=0.01)
    np.testing.assert_allclose(series.steps_at(tokens[rows[0] :: 100]), steps[rows[0] :: 100], rtol=0.01)
    at = steps[rows[-1] :: 200]
    np.testing.assert_allclose(series.plan.share(at) * series.plan.peak, rate[at - 1], atol=0.02 * 6e-4)
    assert series.plan.tokens == pytest.approx(tokens[-1], rel=1e-3)
    assert [note[:37] for note in series.notes] == ["tokens a step change along the run: t"]


def test_an_end_beyond_the_rows_that_are_scored_is_refused(tmp_path):
    path, far = written(curve(), tmp_path), 20000 * EACH
    with pytest.raises(InputError, match="rows that exist, up to 2,000,000,000 tokens, and --to-tokens asks for 5,0"):
        analyze_temporal(path, fit_fraction=0.3, ahead=Ahead(far))
    schedule = parse_schedule(f"cosine,lr=1e-3,warmup={200 * EACH},final=0.1")
    (run,) = analyze_temporal(path, fit_fraction=0.3, ahead=Ahead(far, schedule)).runs
    assert run.final.step == 8000 and any("leave --fit-fraction out" in note for note in run.notes)
    assert analyze_temporal(path, fit_fraction=0.3, ahead=Ahead(8000 * EACH)).runs[0].final.step == 8000


def test_multipliers_of_a_rate_are_no_rates(tmp_path):
    """A rate logged as a multiplier (LambdaLR's) has the same course; its peak would be a thousand times too high."""
    frame = curve()
    rates, multipliers = (loaded(tmp_path, frame.assign(lr=frame["lr"] * factor)) for factor in (1, 1000))
    assert (rates.plan.peak, multipliers.plan.peak) == (pytest.approx(1e-3, rel=1e-3), 1e-3) and rates.notes == []
    np.testing.assert_allclose(rates.plan.e, multipliers.plan.e, atol=1e-9)
    assert any("rates look like multipliers (the highest is 0.999" in note for note in multipliers.notes)


def test_a_schedule_beside_other_logged_rates_is_noted(tmp_path):
    series = loaded(tmp_path, curve(), Ahead(20000 * EACH, parse_schedule("constant,lr=3e-3")))
    assert series.plan.peak == 3e-3
    assert any("is not the logged one" in note for note in series.notes)


def run_directory(tmp_path, kind):
    """A run of a plan of 10,000 steps, cut off after 6,000."""
    folder, total = tmp_path / kind, 10_000 * EACH
    folder.mkdir()
    schedule = {
        "kind": kind,
        "lr": 1e-3,
        "warmup_tokens": 100 * EACH,
        "decay_tokens": 2000 * EACH if kind == "wsd" else 0,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump({"training": {"tokens": total, "schedule": schedule}}))
    lines: list[dict] = [{"kind": "run", "run": kind, "params": 7}]
    for row in curve(6000).to_dict("records"):
        lines.append({"kind": "train", **{key: row[key] for key in ("step", "tokens", "lr", "loss")}})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_a_run_may_be_forecast_beyond_its_plan(tmp_path):
    (series,) = load(run_directory(tmp_path, "wsd"), ahead=Ahead(40_000 * EACH))
    assert series.end_step == 40_000
    np.testing.assert_allclose(
        series.plan.share(np.array([5_000, 38_000, 39_000, 40_000])), [1, 1, 0.55, 0.1], atol=0.01
    )
    cosine = run_directory(tmp_path, "cosine")
    with pytest.raises(
        InputError, match="its cosine schedule falls towards .* give the rate up to there with --schedule"
    ):
        load(cosine, ahead=Ahead(40_000 * EACH))
    (series,) = load(cosine, ahead=Ahead(40_000 * EACH, parse_schedule("constant,lr=1e-3")))
    assert series.end_step == 40_000


def test_options_of_logs_are_refused_for_what_is_none(tmp_path):
    with pytest.raises(InputError, match="is a run directory.*leave --format"):
        load(run_directory(tmp_path, "wsd"), options=LogOptions(params=7))


def test_a_whole_table_is_read_as_a_log_where_a_column_is_named(tmp_path):
    frame = curve().assign(smooth=1.5)
    series = loaded(tmp_path, frame, options=LogOptions(columns={"loss": "smooth"}))
    assert set(series.loss) == {1.5} and series.run == "simulated" and series.tokens[-1] == frame["tokens"].iloc[-1]


def test_runs_of_different_tokenizers_are_not_ranked(tmp_path):
    """Losses per token do not compare then; each run is still forecast."""
    for name, vocabulary in (("a", "gpt2"), ("b", "llama"), ("c", "gpt2")):
        (tmp_path / name).mkdir()
        lines: list[dict] = [{"kind": "run", "run": name, "params": 7, "vocabulary": vocabulary}]
        for k in range(1, 31):
            lines.append({"kind": "train", "step": k, "tokens": 100 * k, "lr": 1e-3, "loss": 2 + k**-0.3})
        (tmp_path / name / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = analyze_temporal([tmp_path / "a", tmp_path / "b"])
    assert result.ranking == () and len(result.runs) == 2
    assert all(any("different tokenizers" in note for note in run.notes) for run in result.runs)
    (ranking,) = analyze_temporal([tmp_path / "a", tmp_path / "c"]).ranking
    assert [place.run for place in ranking.order] == ["a", "c"]


def decayed(steps: int, last: int, again: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Rates of `steps` steps that fall to a tenth over the `last`; and their loss, a power of the summed rate less 0.17 of the
    fall at once, which is no law of the analysis. `again`: another such fall half-way, after which the rate is back."""
    step = np.arange(1, steps + 1)
    left = np.clip((steps - step) / last, 0, 1)
    if again:
        left = np.where((step > 0.4 * steps) & (step < 0.5 * steps), np.clip((0.5 - step / steps) / 0.1, 0, 1), left)
    share = np.minimum(step / 100, 1) * (0.1 + 0.9 * left)
    fallen = (1 - share) * (step > 100)
    return 1e-3 * share, 3 + 40 * (np.cumsum(share) + 50) ** -0.5 - 0.17 * fallen


@pytest.mark.parametrize(
    ("schedule", "again"),
    [("wsd,decay=1e9,final=0.1,", False), ("constant,", False), ("wsd,decay=1e9,final=0.1,", True)],
)
def test_a_finished_decay_is_no_learning_at_the_peak(tmp_path, schedule, again):
    """A run of 5,000 steps that has decayed is forecast to 10,000 of another plan: its end is known. With the planned rates for
    the rows, as it was, the ends came out 0.05 to 0.09 too low."""
    rate, loss = decayed(5000, 1000, again)
    rows = np.arange(9, 5000, 20)
    noisy = loss + np.random.default_rng(0).normal(0, 0.01, len(loss))
    frame = pd.DataFrame({"run": "r", "params": 7, "step": rows + 1, "tokens": (rows + 1) * 500_000})
    path = written(frame.assign(lr=rate[rows], loss=noisy[rows]), tmp_path)
    plan = parse_schedule(f"{schedule}lr=1e-3,warmup=5e7")
    (run,) = analyze_temporal(path, ahead=Ahead(10_000 * 500_000, plan)).runs
    truth = decayed(10_000, 2000)[1][-1] if plan.kind == "wsd" else 3 + 40 * (9950 + 50) ** -0.5
    assert abs(run.final.loss - truth) < 0.025 and run.final.curve_low95 <= truth <= run.final.curve_high95
    off = sum(rate[rows][rows + 1 > 100] < 0.9e-3)
    (note,) = (note for note in run.notes if "is not the logged one" in note)
    assert abs(int(note.split(" rows")[0].split()[-1]) - off) <= 2 and "fitted at the logged rates" in note
    assert not any("hardly begun" in note for note in run.notes)


def test_a_plan_that_the_log_keeps_is_its_own_past(tmp_path):
    """Also where the log has one digit, is a row late, holds multipliers, or ends before the rows do."""
    rate, loss = decayed(5000, 1000)
    rows = np.arange(9, 5000, 20)
    frame = pd.DataFrame(
        {"run": "r", "params": 7, "step": rows + 1, "tokens": (rows + 1) * 500_000, "loss": loss[rows]}
    )
    digit = [float(f"{each:.0e}") for each in rate[rows]]
    half = np.where(rows < 2500, rate[rows], np.nan)
    plan = Ahead(5000 * 500_000, parse_schedule("wsd,decay=5e8,final=0.1,lr=1e-3,warmup=5e7"))
    for lr in (rate[rows], digit, np.r_[0, rate[rows][:-1]], rate[rows] * 1000, half):
        series = loaded(tmp_path, frame.assign(lr=lr), plan)
        assert series.plan.past is series.plan and series.notes == []


def test_a_rate_that_was_lowered_by_hand_goes_on(tmp_path):
    """Halved at step 1,500 of 3,000, and the plan is the lower rate: the run continues from the rates that it had."""
    step = np.arange(1, 6001)
    share = np.minimum(step / 100, 1) * np.where(step < 1500, 1.0, 0.5)
    truth = 3 + 40 * (np.cumsum(share) + 50) ** -0.5 - 0.17 * (1 - share) * (step > 100)
    rows = np.arange(9, 3000, 10)
    frame = pd.DataFrame({"run": "r", "params": 7, "step": rows + 1, "tokens": (rows + 1) * 500_000})
    noisy = truth[rows] + np.random.default_rng(0).normal(0, 0.01, len(rows))
    path = written(frame.assign(lr=1e-3 * share[rows], loss=noisy), tmp_path)
    ahead = Ahead(6000 * 500_000, parse_schedule("constant,lr=5e-4,warmup=5e7"))
    (run,) = analyze_temporal(path, ahead=ahead).runs
    assert run.final.curve_low95 <= truth[-1] <= run.final.curve_high95 and abs(run.final.loss - truth[-1]) < 0.05
    assert abs(run.forecast[0].loss - truth[3000]) < 0.05, "no jump behind the last row"
    assert any("back on the plan" in note for note in run.notes)


@pytest.mark.parametrize("factor", [20.0, 0.05])
def test_rates_of_other_parameters_are_not_fitted_to(tmp_path, factor):
    """A log of a decay to 0 whose rates are 20 times the plan's: near 0 all rates are alike, and say nothing."""
    rate, loss = decayed(5000, 1000)
    rate = (rate - rate[-1]).clip(0) * factor
    rows = np.arange(9, 5000, 20)
    frame = pd.DataFrame(
        {
            "run": "r",
            "params": 7,
            "step": rows + 1,
            "tokens": (rows + 1) * 500_000,
            "loss": loss[rows],
            "lr": rate[rows],
        }
    )
    plan = Ahead(10_000 * 500_000, parse_schedule("wsd,decay=1e9,final=0,lr=1e-3,warmup=5e7"))
    series = loaded(tmp_path, frame, plan)
    assert series.plan.past is series.plan and any("the planned one counts" in note for note in series.notes)


def test_multipliers_of_late_rows_are_of_the_plan_there(tmp_path):
    """Rows from step 2,000 of a cosine, logged as factors of its peak: the highest is that of row 2,000."""
    plan = Ahead(5000 * 500_000, parse_schedule("cosine,lr=1e-3,warmup=5e7,final=0"))
    step = np.arange(2000, 4900, 20)
    share = 0.5 * (1 + np.cos(np.pi * (step - 100) / 4900))
    frame = pd.DataFrame({"run": "r", "params": 7, "step": step, "tokens": step * 500_000, "loss": 2 + step**-0.3})
    series = loaded(tmp_path, frame.assign(lr=share), plan)
    assert series.plan.past is series.plan and series.notes == []


def test_the_outcome_of_a_training_loss_is_of_its_last_rows(tmp_path, capsys):
    """A twentieth of 300 rows of one batch each, the last of which is of a text known by heart; of iid one checkpoint is all."""
    steps = np.arange(1, 301)
    loss = 2 + 3 * steps**-0.4 + np.random.default_rng(0).normal(0, 0.1, 300)
    loss[-1] -= 1.5
    frame = pd.DataFrame({"run": "r", "params": 7, "step": steps, "tokens": EACH * steps, "loss": loss, "lr": 1e-3})
    result, printed = analysed(capsys, written(frame, tmp_path), "--fit-fraction", 0.4)
    final, ahead = result["runs"][0]["final"], result["runs"][0]["forecast"]
    off = np.mean([row["actual"] - row["loss"] for row in ahead[-15:]])
    assert (final["actual"], final["actual_rows"]) == (pytest.approx(ahead[-1]["loss"] + off), 15)
    assert final["low95"] <= final["actual"] <= final["high95"] and not final["low95"] <= loss[-1]
    assert f"observed {final['actual']:.4f} (by its last 15 rows)" in printed
    assert ahead[-1]["actual"] == pytest.approx(loss[-1])
    few, _ = analysed(capsys, written(frame.iloc[::20], tmp_path), "--fit-fraction", 0.4)
    assert "actual_rows" not in few["runs"][0]["final"]


def test_the_outcome_of_a_steep_end_is_at_the_end(tmp_path):
    """A decay over the last 5% of the steps, along which the mean of the last rows is 0.08 above the end: what the forecast
    has of the fall is taken out, which is half of it here."""
    rate, loss = decayed(5000, 250)
    rows = np.arange(9, 5000, 10)
    noisy = loss[rows] + np.random.default_rng(0).normal(0, 0.01, len(rows))
    frame = pd.DataFrame({"run": "r", "params": 7, "step": rows + 1, "tokens": (rows + 1) * 500_000})
    path = written(frame.assign(lr=rate[rows], loss=noisy), tmp_path)
    (run,) = analyze_temporal(path, fit_fraction=0.9).runs
    assert abs(run.final.actual - loss[-1]) < 0.55 * (noisy[-25:].mean() - loss[-1])


def test_a_fraction_within_the_warm_up_is_not_named(tmp_path):
    """30 rows, the first five of them in the warm-up: the fraction that a message names has four rows behind it."""
    step = 200 * np.arange(1, 31)
    rate = 1e-3 * np.minimum(step / 1000, 1)
    frame = pd.DataFrame(
        {"run": "r", "params": 7, "step": step, "tokens": step * 1000, "lr": rate, "loss": 3 + step**-0.3}
    )
    path = written(frame, tmp_path)
    with pytest.raises(InputError, match="--fit-fraction 0.27 or more"):
        analyze_temporal(path, fit_fraction=0.05)
    assert analyze_temporal(path, fit_fraction=0.27).runs[0].observed_points == 8


def test_a_late_branch_names_a_fraction_that_works(tmp_path):
    """Rows from 75% of the run on, as of a decay branch: at 40% there are none, however often it logs; 0.79 has four."""
    frame = curve(20000).assign(step=np.arange(1, 121))
    frame["tokens"] = EACH * frame["step"]
    frame["step"], late = 100 * frame["step"], frame["step"] > 90
    path = written(frame[late], tmp_path)
    with pytest.raises(
        InputError, match="0 of 30 .* first 40% of the run, as they begin at 76%, .*--fit-fraction 0.79"
    ):
        analyze_temporal(path, fit_fraction=0.4)
    assert analyze_temporal(path, fit_fraction=0.79).runs[0].observed_points == 4
    with pytest.raises(InputError, match="0 of 4 .*; log more often"):
        analyze_temporal(written(frame[late].tail(4), tmp_path), fit_fraction=0.4)
