"""The end that a Recorder's header plans, in tokens or steps: what forecasts, `watch` and the report look to."""

import math

import numpy as np
import pytest
import torch

from emergence_train.analysis.emergence import analyze_emergence
from emergence_train.analysis.results import as_json
from emergence_train.analysis.runs import recorded_plan
from emergence_train.analysis.temporal import analyze_temporal
from emergence_train.recorder import Recorder
from emergence_train.recorder.planned_end import planned_steps, planned_tokens
from emergence_train.report import conclusions
from emergence_train.report.collect import collect
from emergence_train.report.page import report
from emergence_train.watch.progress import progress

END, STEPS, TOKENS, ETA = 400, 200, 4096, 3.95


def rate(step):
    return 1e-3 * min(1, step / 20) * (0.55 + 0.45 * math.cos(math.pi * step / END))


def loss_at(step):
    return 3 + 4 * step**-0.3


def record(path, steps=STEPS, rated=True, every=1, tables=10, tokens=lambda step: step * TOKENS, **end):
    """A run whose losses follow a power of its steps, with a task that is known below ETA; a row `every` so many steps."""
    noise = np.random.default_rng(3)
    with Recorder(path, params=10**6, sequence=8, vocabulary="v", **end) as recorder:
        for step in range(1, steps + 1):
            loss = loss_at(step) + noise.normal(0, 0.004)
            recorder.add(torch.full((2, 8), loss))
            if step % every == 0:
                recorder.log(step, tokens(step), loss, rate(step) if rated else None)
            if step % tables == 0 or step == steps:
                recorder.add(torch.full((2, 8), loss), split="iid")
                value = noise.binomial(4000, 0.25 + min(0.7, 3 * max(0.0, ETA - loss))) / 4000
                recorder.evaluation("t", "acc", value, items=4000, chance=0.25)
                recorder.checkpoint(step, tokens(step), rate(step) if rated else None)
    return path


@pytest.mark.parametrize("end", [{"total_steps": END}, {"total_tokens": END * TOKENS}], ids=["steps", "tokens"])
def test_forecasts_reach_the_end_that_the_header_plans(tmp_path, end):
    """At half of it, without --to-tokens: the loss there, at the rate that the rows go on to."""
    run = record(tmp_path / "run", **end)
    for result in as_json(analyze_temporal(run))["runs"]:
        final = result["final"]
        assert (final["step"], final["tokens"]) == (END, END * TOKENS)
        assert final["low95"] < loss_at(END) < final["high95"]
    assert not any("planned ends" in note for note in as_json(analyze_emergence(run))["notes"])


def test_the_page_forecasts_the_end_of_a_run_that_goes_on(tmp_path):
    """From all rows, as of a log: a Recorder logs no forecasts. At its end it is what was forecast early beside what came."""
    half = record(tmp_path / "half", total_steps=END)
    (run,) = collect([half]).runs
    finals = [analysis.result.final for analysis in run.forecast.runs]
    assert {final.tokens for final in finals} == {END * TOKENS} and not any(final.actual for final in finals)
    assert "is forecast for its end" in conclusions._sentence(run, None)
    assert "taken to go on or to stay" in report([half], tmp_path / "page").read_text()
    (run,) = collect([record(tmp_path / "whole", END, total_steps=END)]).runs
    assert all(analysis.result.final.actual for analysis in run.forecast.runs)


def test_a_plan_holds_the_rates_up_to_the_recorded_end(tmp_path):
    """The emergence analysis forecasts by the same plan as the temporal one; without an end there is none."""
    planned = recorded_plan(record(tmp_path / "planned", total_steps=END))
    assert planned.end_tokens == END * TOKENS and planned.plan.x[-1] == END
    assert planned.plan.peak * planned.plan.share(END) == pytest.approx(rate(END), rel=0.02)
    assert recorded_plan(record(tmp_path / "open")) is None


def test_a_run_whose_end_is_not_planned_says_so(tmp_path):
    """Abilities of a directory without an end do not ask for a run directory, which was given."""
    able, young = record(tmp_path / "able"), record(tmp_path / "young", steps=60)
    notes = as_json(analyze_emergence([able, young]))["notes"]
    assert any("no end is planned of young" in note for note in notes) and not any(
        "give run directories" in note for note in notes
    )


@pytest.mark.parametrize("end", [{"total_steps": END}, {"total_tokens": END * TOKENS}], ids=["steps", "tokens"])
def test_watch_knows_the_recorded_end(tmp_path, end):
    """Closed before its end a run is stopped, at its end finished; the part that is done is known in steps and tokens."""
    half, whole = (progress(record(tmp_path / name, steps, **end)) for name, steps in (("half", STEPS), ("whole", END)))
    assert (half.state, whole.state) == ("stopped", "finished")
    assert (half.step, half.total_steps, half.total_tokens) == (STEPS, END, END * TOKENS)


def test_a_planned_end_is_given_in_steps_and_tokens():
    """One from the other at the rows' pace; what is no number of them plans nothing."""
    assert (
        planned_steps({"total_tokens": 1000}, 10, 200) == 50 and planned_tokens({"total_tokens": 1000}, 10, 200) == 1000
    )
    assert planned_steps({"total_steps": 50}, 10, 200) == 50 and planned_tokens({"total_steps": 50}, 10, 200) == 1000
    assert planned_steps({"total_steps": 50}, 10, 0) == 50 and planned_tokens({"total_steps": 50}, 0, 0) == 0
    assert (
        planned_tokens({"total_steps": 50}, 10, math.nan) == 0
        and planned_steps({"total_tokens": 9}, 10, math.nan) is None
    )
    both = {"total_tokens": 1000, "total_steps": 7}
    assert planned_steps(both, 10, 200) == 50 and planned_steps(both, 10, 0) == 7, "tokens, where there are any"
    for bad in (None, "900", True, -1, 0, math.nan, math.inf):
        assert (
            planned_steps({"total_tokens": bad}, 10, 200) is None and planned_tokens({"total_steps": bad}, 10, 200) == 0
        )


@pytest.mark.parametrize(
    "options",
    [{"every": 10, "tables": 15, "total_steps": 205}, {"total_tokens": 205 * TOKENS + 900}],
    ids=["a table behind the last row", "no multiple of the batch"],
)
def test_a_run_that_ended_is_over_everywhere(tmp_path, options):
    """Its last row may be before the end, or the end inside a batch: it is finished, and the page shows what came."""
    run = record(tmp_path / "run", 205, **options)
    assert progress(run).state == "finished"
    (known,) = collect([run]).runs
    assert all(analysis.result.fit_fraction for analysis in known.forecast.runs)


def test_a_run_closed_before_its_end_is_not_awaited(tmp_path):
    """As where training stops early: nobody requeues it, so `watch` must not wait for it."""
    state = progress(record(tmp_path / "run", total_steps=END))
    assert (state.state, state.awaited) == ("stopped", False)


def test_a_batch_that_grows_is_forecast_to_the_planned_tokens(tmp_path):
    """1,000 tokens a step, 2,000 behind step 100: 600,000 tokens are 350 steps, by the last batch."""
    tokens = lambda step: 1000 * step + 1000 * max(step - 100, 0)  # noqa: E731
    run = record(tmp_path / "run", tokens=tokens, total_tokens=600_000)
    for result in as_json(analyze_temporal(run))["runs"]:
        assert (result["final"]["step"], result["final"]["tokens"]) == (350, 600_000)
    assert progress(run).total_steps == 350


def test_a_bad_curve_refuses_no_emergence_analysis(tmp_path):
    """One with a step twice: its tasks are judged, beside those of others, and the reason is with its forecast."""
    good, bad = record(tmp_path / "good", total_steps=END), record(tmp_path / "bad", total_steps=END)
    rows = (bad / "metrics.jsonl").read_text().splitlines()
    (bad / "metrics.jsonl").write_text("\n".join([*rows[:50], rows[49], *rows[50:]]) + "\n")
    (ability,) = as_json(analyze_emergence([good, bad]))["abilities"]
    assert {run["run"]: "listed twice" in run["note"] for run in ability["runs"]} == {"good": False, "bad": True}


def test_tokens_that_nobody_counts_plan_no_end_in_tokens(tmp_path):
    """The page has what came of the first part, as before, and no end at 0 tokens."""
    (run,) = collect([record(tmp_path / "run", tokens=lambda step: 0, total_tokens=END * TOKENS)]).runs
    assert all(analysis.result.fit_fraction for analysis in run.forecast.runs)
