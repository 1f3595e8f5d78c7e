"""The sentences at the top say what the runs' files say."""

import html
import json
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import yaml

from emergence_train.recorder import tables
from emergence_train.report import outlook
from emergence_train.report.collect import collect
from emergence_train.report.conclusions import _one_side, sections
from emergence_train.report.page import report
from report.test_page import write_evaluations, write_run


def text_of(data) -> str:
    ((_, _, body),) = sections(data)
    return html.unescape(re.sub("<[^>]*>", " ", body))


def last_iid(run) -> float:
    frame = tables.mean_loss(tables.read(tables.POSITIONS, run))
    return float(frame[(frame["split"] == "iid") & (frame["step"] == frame["step"].max())]["loss"].iloc[0])


def test_runs_of_two_tokenizers_are_ranked_apart(tmp_path):
    """The lowest of each tokenizer by a plain loop; no mean over seeds of both; losses that are alike have two names."""
    data = collect([write_run(tmp_path, name, 1000, seed=n) for n, name in enumerate("abcd")])
    mixed = [replace(run, header=run.header | {"vocabulary": v}) for run, v in zip(data.runs, "xyxy")]
    text = re.sub(r"\s+", " ", text_of(replace(data, runs=mixed)))
    loss = {run.name: last_iid(run.directory) for run in mixed}
    lowest = [min(pair, key=loss.__getitem__) for pair in ("ac", "bd")]
    first, second = (f"{name} , {loss[name]:.3f} (of 2 runs)" for name in lowest)
    assert f"do not compare. The lowest loss on iid with each: {first}; {second}." in text
    assert "below the next" not in text and "over seeds" not in text and "Over its seeds" not in text
    alike = [data.runs[0], replace(data.runs[0], name="twin")]
    text = re.sub(r"\s+", " ", text_of(replace(data, runs=alike)))
    assert f"The lowest loss on iid have a and twin , {loss['a']:.3f}: less than 0.001 nats apart." in text


def test_a_nan_in_the_log_costs_the_curve_alone(tmp_path):
    """Without the curve the held-out losses are what they were; the page says which row, and where to read why."""
    run = write_run(tmp_path, "a", 1000)
    log = run / "metrics.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    at = next(number for number, row in enumerate(rows) if row["kind"] == "train" and row["step"] > 3)
    rows[at]["loss"] = float("nan")
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = collect([run])
    assert any("column 'loss': nan is empty or NaN" in why for why in data.runs[0].no_forecast)
    text = text_of(data)
    assert f"{last_iid(run):.3f} nats per token on iid" in text
    assert "It has no forecast: why ." in re.sub(r"\s+", " ", text)


def test_finished_runs_say_where_they_ended_and_what_they_can_do(tmp_path):
    runs = [
        write_run(tmp_path, name, params, seed=n) for n, (name, params) in enumerate((("a <i>", 1000), ("b", 4000)))
    ]
    for seed, run in enumerate(runs):
        write_evaluations(run, 1000 * (seed + 1), seed)
        (run / "config.yaml").write_text(
            yaml.safe_dump({"training": {"schedule": {"lr": 0.001 * (seed + 1)}}, "seed": 3})
        )
    data = collect(runs)
    text, losses = text_of(data), [last_iid(run) for run in runs]
    for run, loss, name in zip(data.runs, losses, ("a <i>", "b")):
        assert f"{name} " in text and f"{loss:.3f} nats per token on iid after 80k tokens." in text
        (final,) = (
            part.result.final for part in run.forecast.runs
        )  # four checkpoints are too few: the training curve's
        place = "inside" if final.low95 <= final.actual <= final.high95 else "outside"
        side = "above" if final.actual > final.loss else "below"
        assert (
            f"a training loss of {final.loss:.3f} [{final.low95:.3f}, {final.high95:.3f}] was forecast for the end"
            in text
        )
        assert f"{abs(final.actual - final.loss):.3f} {side} that, {place} the 95% interval" in text
    best = ("a <i>", "b")[int(np.argmin(losses))]
    assert f"The lowest loss on iid has {best} , {abs(losses[0] - losses[1]):.3f} nats below the next, " in re.sub(
        r"\s+", " ", text
    )
    assert "; the two differ in lr." in text
    assert "steady (" in text and "Above chance" in text
    assert "What differs" in text and "lr" in text and "0.002" in text and "seed" not in text
    assert "<i>" not in sections(data)[0][2]
    verdicts = re.sub(
        r"\s+", " ", text.split("Tasks as the loss falls, all runs together: ")[1].split("What differs")[0]
    )
    for task in data.emergence.result.tasks:
        if task.metric == "acc":
            eta = task.eta and f" from {task.eta.value:.2f} nats [{task.eta.low95:.2f}, {task.eta.high95:.2f}]"
            (listed,) = [part for part in verdicts.split("; ") if part.strip().startswith(f"{task.verdict} :")]
            assert f"{task.task}{eta or ''}" in listed


def test_a_difference_of_seeds_is_not_one_of_settings(tmp_path):
    """Nor are samples of text a setting; and of other data, the held-out text may be another."""
    runs = [write_run(tmp_path, name, 1000, seed=n) for n, name in enumerate("ab")]
    for seed, run in enumerate(runs):
        tree = {"seed": seed, "samples": {"prompts": ["x"] * seed}, "model": {"width": 8}}
        (run / "config.yaml").write_text(yaml.safe_dump(tree))
        (run / "data.json").write_text('{"data": "1"}')
    text = text_of(collect(runs))
    assert "; the two differ in the seed alone, so no setting makes that difference." in text
    assert "may not compare" not in text and "prompts" not in text
    (runs[0] / "data.json").write_text('{"data": "2"}')
    assert "Their prepared data are not the same" in text_of(collect(runs))


def test_an_unfinished_run_says_what_it_forecast_last(tmp_path):
    run = write_run(tmp_path, "half", until=40)
    with open(run / "metrics.jsonl", "a") as file:
        for loss in (3.5, 3.3):
            row = {
                "kind": "forecast",
                "step": 40,
                "tokens": 40_000,
                "loss": loss,
                "low95": loss - 0.1,
                "high95": loss + 0.2,
            }
            file.write(json.dumps(row) + "\n")
    text = text_of(collect([run]))
    assert "after 40k tokens of 80k." in text and "is forecast to end at 3.300 [3.200, 3.500]" in text
    assert "was forecast" not in text and "lowest" not in text and "differs" not in text


def test_losses_of_two_tokenizers_are_not_compared(tmp_path):
    runs = [write_run(tmp_path, name) for name in ("a", "b")]
    log = runs[1] / "metrics.jsonl"
    log.write_text(log.read_text().replace('"vocabulary": "v"', '"vocabulary": "w"'))
    text = text_of(collect(runs))
    assert "their losses do not compare" in text and "lowest" not in text


def test_the_page_names_the_runs_own_texts_and_has_no_empty_card(tmp_path):
    """Not "books" of everybody's data; one run has no size beside it."""
    run = write_run(tmp_path)
    ood = [{"domain": "patents & law", "files": ["x"]}]
    (run / "config.yaml").write_text(yaml.safe_dump({"data": {"ood": ood}}))
    text = report([run], tmp_path / "out").read_text()
    assert "text from outside it (ood: patents &amp; law)" in text and "books" not in text
    assert "No data" not in text and "side by side" not in text and "In short" in text


def test_runs_without_a_forecast_are_named_by_reason():
    """A page of a ladder has a dozen branches that begin late: not a dozen sentences."""
    runs = [SimpleNamespace(name=f"r{k}", no_forecast=(f"run 'r{k}', split 'iid': 0 checkpoints",)) for k in range(8)]
    runs.append(SimpleNamespace(name="other", no_forecast=("no curve",)))
    assert outlook._missing(runs) == [
        "<p>r0, r1, r2, r3, r4, r5 and 2 more: no forecast of iid. 0 checkpoints</p>",
        "<p>other: no forecast. no curve</p>",
    ]


def test_forecasts_that_all_err_to_one_side_are_called_so():
    def run(forecast, actual):
        final = SimpleNamespace(loss=forecast, actual=actual)
        results = [SimpleNamespace(split=split, final=final) for split in ("ood", "iid")]
        return SimpleNamespace(forecast=SimpleNamespace(runs=[SimpleNamespace(result=result) for result in results]))

    below = [run(4.0, 3.9 - 0.05 * k) for k in range(6)]
    assert "All 6 finished forecasts erred to one side: the runs came out 0.100 to 0.350 nats below" in _one_side(below)
    assert "0.100 to 0.350 nats above" in _one_side(
        [run(each.forecast.runs[1].result.final.actual, 4.0) for each in below]
    )
    unfinished = [run(4.0, None), SimpleNamespace(forecast=None)]
    assert not _one_side(below[:5] + unfinished) and not _one_side([*below, run(4.0, 4.1)])


def test_verdicts_say_whose_they_are_where_losses_do_not_compare(tmp_path):
    """Two tokenizers: a task has a verdict for each, and its name alone would stand there twice."""
    runs = [write_run(tmp_path, name, 1000, seed=n) for n, name in enumerate(("one", "two"))]
    for seed, run in enumerate(runs):
        write_evaluations(run, 1000, seed)
    assert "all runs together" in text_of(collect(runs))
    path = runs[1] / "evaluations" / "all.parquet"
    tables.write(tables.EVALUATIONS, pd.read_parquet(path), path, vocabulary="w")
    text = re.sub(r"\s+", " ", text_of(collect(runs)))
    assert "runs whose losses compare together" in text
    assert "A: jump <i>" in text and "B: jump <i>" in text and "B: steady" in text
    assert re.search(r"A ?: (one|two) B ?: (one|two)", text)


def test_nothing_right_of_few_items_is_not_below_a_low_chance(tmp_path):
    """Of 200 items guessed at 1/1024 none is right in 82 of 100 trials; of 4,000 at 1/4 none is below chance."""
    run = write_run(tmp_path, "a", 1000)
    write_evaluations(run, 1000)
    file = run / "evaluations" / "all.parquet"
    frame = pd.read_parquet(file)
    hard = frame[frame["task"] == "steady"].assign(task="hard", value=0.0, stderr=0.0, items=200, chance=1 / 1024)
    never = frame[frame["task"] == "steady"].assign(task="never", value=0.0, stderr=0.0)
    tables.write(tables.EVALUATIONS, pd.concat([frame, hard, never]), file, vocabulary="v")
    text = text_of(collect([run]))
    assert "Not above chance: hard (0.00, chance 0.00098)" in text
    assert "Below chance: never (0.00, chance 0.25)" in text
