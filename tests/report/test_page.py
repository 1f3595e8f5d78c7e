"""The page: self-contained, its numbers those of the tables, and, where there is a browser, without a script error."""

import html
import json
import math
import re

import numpy as np
import pandas as pd
import pytest
import yaml

from emergence_train.analysis.emergence import analyze_emergence
from emergence_train.analysis.logs import LogOptions
from emergence_train.analysis.outlook import Ahead
from emergence_train.analysis.temporal import analyze_temporal
from emergence_train.errors import InputError
from emergence_train.recorder import tables
from emergence_train.report import page as page_module
from emergence_train.report.collect import collect
from emergence_train.report.page import report
from emergence_train.report.reading import Reading, reading_of
from report.test_chart import chart_data
from report.test_svg import contrast


def write_run(root, name="one", params=1000, positions=64, seed=0, until=80):
    """A run directory with known losses: L_i = a0 / (1 + a1 i) + a2, falling with training, up to step `until`."""
    rng = np.random.default_rng(seed)
    run = root / name
    rows = [
        {
            "kind": "run",
            "run": name,
            "params": params,
            "vocabulary": "v",
            "batch": 10,
            "sequence": 100,
            "total_tokens": 80_000,
        }
    ]
    for step in range(1, until + 1):
        rows.append(
            {
                "kind": "train",
                "step": step,
                "tokens": 1000 * step,
                "lr": 1e-3,
                "loss": 3 + 20 / (step + 9),
                "grad_norm": 1.0,
                "tokens_per_second": 5000.0 if step > 1 else None,
            }
        )
    run.mkdir(parents=True)
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    i = np.arange(1, positions + 1)
    for step in [s for s in (10, 20, 40, 80) if s <= until]:
        parts = []
        for split, shift in (("train", 0.0), ("iid", 0.0), ("ood", 0.5)):
            mean = 1.5 / (1 + 0.2 * i) + 3 + 20 / (step + 9) + shift
            tokens = mean[:, None] + rng.normal(0, 0.5, (positions, 400))
            parts.append(
                pd.DataFrame(
                    {
                        "run": name,
                        "params": params,
                        "step": step,
                        "tokens": 1000 * step,
                        "split": split,
                        "position": i,
                        "count": 400,
                        "loss_sum": tokens.sum(1),
                        "loss_sq_sum": (tokens**2).sum(1),
                        "correct": 10,
                    }
                )
            )
        table = pd.concat(parts)
        tables.write(tables.POSITIONS, table, run / "positions" / f"step-{step:010d}.parquet", vocabulary="v")
    return run


def write_evaluations(run, params, seed=0, until=80):
    """A task that is flat at chance down to a loss of 3.6 and then rises, and one that rises all along."""
    rng = np.random.default_rng(seed)
    rows = []
    for step in np.unique(np.geomspace(1, until, 14).astype(int)):
        loss = 3.2 + 20 / (step + 9) - 0.1 * seed
        for task, share in (("jump <i>", 0.25 + 0.5 * max(3.6 - loss, 0)), ("steady", 0.8 - 0.1 * loss)):
            value = rng.binomial(4000, share) / 4000
            rows.append(
                {
                    "run": run.name,
                    "params": params,
                    "step": step,
                    "tokens": 1000 * step,
                    "loss": loss,
                    "task": task,
                    "metric": "acc",
                    "value": value,
                    "stderr": np.sqrt(value * (1 - value) / 4000),
                    "items": 4000,
                    "chance": 0.25,
                    "higher_is_better": True,
                    "unigram_loss": 6.0,
                }
            )
    tables.write(tables.EVALUATIONS, pd.DataFrame(rows), run / "evaluations" / "all.parquet", vocabulary="v")
    with open(run / "metrics.jsonl", "a") as file:
        file.writelines(
            json.dumps({"kind": "evaluation", "step": s, "tokens": 1000 * s, "seconds": 1.5, "value": {}}) + "\n"
            for s in (40, 80)
        )


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """report.html in out/, beside its runs."""
    root = tmp_path_factory.mktemp("page")
    runs = [write_run(root, "small & <b>", 1000, seed=1), write_run(root, "large", 4000, seed=2)]
    for seed, (run, params) in enumerate(zip(runs, (1000, 4000)), 1):
        write_evaluations(run, params, seed)
    return report(runs, root / "out")


def test_nothing_is_fetched_and_names_are_escaped(page):
    text = page.read_text()
    assert not re.search(r"(?:src|href)=\"(?!#|data:)", text) and "http" not in re.sub(
        r"<script type.*?</script>", "", text
    )
    assert "small &amp; &lt;b&gt;" in text and "small & <b>" not in re.sub(r"<script.*?</script>", "", text, flags=re.S)
    assert page.stat().st_size < 1_000_000


def test_the_numbers_are_those_of_the_tables(page):
    text = page.read_text()
    means = tables.mean_loss(tables.read(tables.POSITIONS, page.parents[1] / "large"))
    last = means[(means["step"] == 80) & (means["split"] == "iid")].iloc[0]
    assert f"<td>{last['loss']:.3f}</td>" in text
    law = re.search(r"a0 = ([\d.]+) \[([\d.]+), ([\d.]+)\], a1 = ([\d.]+) \[([\d.]+), ([\d.]+)\]", text)
    a0, low, high, a1, low1, high1 = map(float, law.groups())
    assert low < 1.5 < high and low1 < 0.2 < high1 and low < a0 < high and low1 < a1 < high1


def test_the_section_on_tasks_says_what_the_analysis_finds(page, tmp_path):
    text = page.read_text()
    section = text[text.index('<section id="emergence">') :]
    result = analyze_emergence([page.parents[1] / "small & <b>", page.parents[1] / "large"])
    jump = next(task for task in result.tasks if task.task == "jump <i>")
    eta, size = jump.eta, jump.size_effect
    assert jump.verdict == "emergent" and eta.low95 < 3.6 < eta.high95
    assert f"<td>{eta.value:.3f} [{eta.low95:.3f}, {eta.high95:.3f}]</td>" in section
    assert f"<td>{size.value:+.3f} [{size.low95:+.3f}, {size.high95:+.3f}]</td>" in section
    assert "jump &lt;i&gt;" in section and "<td>gradual</td>" in section and "<td>reached</td>" in section
    assert 'id="emergence"' not in report([write_run(tmp_path, "no-tasks")], tmp_path / "without").read_text()


def test_an_unfinished_run_has_a_fan_that_crosses_the_threshold(tmp_path):
    """Two finished runs and one at half of its plan; its own forecasts while it trained are drawn too."""
    runs = [write_run(tmp_path, f"done-{n}", 1000 * n, seed=n) for n in (1, 2)]
    runs.append(write_run(tmp_path, "unfinished", 9000, seed=3, until=40))
    for seed, run in enumerate(runs, 1):
        write_evaluations(run, 1000 * seed, 0, 80 if run.name != "unfinished" else 40)
    plan = {"training": {"tokens": 80_000, "schedule": {"kind": "constant", "lr": 1e-3}}}
    (runs[2] / "config.yaml").write_text(yaml.safe_dump(plan))
    with open(runs[2] / "metrics.jsonl", "a") as file:
        for step, high in ((20, None), (40, 70_000)):
            value = {
                f"jump <i>/acc/{k}": v
                for k, v in {"probability": 0.8, "tokens": 50_000, "low95": 45_000, "high95": high}.items()
            }
            file.write(json.dumps({"kind": "abilities", "step": step, "tokens": 1000 * step, "value": value}) + "\n")
    text = report(runs, tmp_path / "out").read_text()
    result = analyze_emergence(runs)
    (fan,) = [ahead for ahead in result.outlooks if ahead.planned_end_known]
    assert fan.run == "unfinished" and fan.tokens[-1] == 80_000 and np.all(np.array(fan.low95) < fan.high95)
    assert fan.low95[-1] < 3.2 + 20 / 89 < fan.high95[-1]
    figure = text[text.index("unfinished: loss to come") :]
    figure = figure[: figure.index("</figure>")]
    drawn = chart_data(figure)
    labels = [series.get("l") for series in drawn["s"]]
    assert figure.count('class="band"') >= 4 and "forecast" in labels and "η of jump <i>" in labels
    crossing = next(run for ability in result.abilities for run in ability.runs if run.run == "unfinished")
    assert crossing.status in ("expected", "reached")
    when = next(series for series in drawn["s"] if series.get("l", "").startswith("jump <i>: "))
    assert drawn["xs"][when["x"]] == pytest.approx([crossing.tokens.value], rel=1e-4)
    history = text[text.index("unfinished: forecast while it trained") :]
    assert chart_data(history)["s"][0]["y"] == [50_000, 50_000]
    assert "loss to come" not in report(runs[:2], tmp_path / "two").read_text()


def test_the_cost_of_tasks_is_shown(page):
    """Two times 1.5 s, beside 79 steps of 1,000 tokens at 5,000 tokens/s: 15.8 s."""
    assert "<td>2</td><td>3.0</td><td>15.8</td><td>19.0%</td>" in page.read_text()


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(InputError, match="holds no positions or curves table"):
        report([tmp_path])
    with pytest.raises(InputError, match="no such file or directory"):
        report([tmp_path / "elsewhere.csv"])
    (tmp_path / "metrics.jsonl").write_text('{"kind": "run", "run": "r", "params": 3}\n')
    with pytest.raises(InputError, match="no checkpoint with losses by position yet"):
        report([tmp_path])
    (tmp_path / "metrics.jsonl").write_text('{"kind": "train"}\n')
    with pytest.raises(InputError, match="no line of kind 'run'"):
        report([tmp_path])
    run = write_run(tmp_path, "twice")
    with pytest.raises(InputError, match="named twice"):
        report([run, tmp_path / "x" / ".." / "twice"])


def test_the_page_is_rendered_without_a_fit(tmp_path, monkeypatch):
    """After collect no solver, no fit and no draw of random numbers is needed; and the page is the same."""
    runs = [write_run(tmp_path, "small", 1000, seed=1), write_run(tmp_path, "large", 4000, seed=2)]
    for seed, run in enumerate(runs, 1):
        write_evaluations(run, 1000 * seed, seed)
    data = collect(runs)
    expected = page_module.page(data)

    def refuse(*arguments, **options):
        raise AssertionError("the report fits something")

    for module in ("scipy.optimize", "scipy.interpolate", "numpy.linalg"):
        for name in (
            "least_squares",
            "lsq_linear",
            "minimize",
            "curve_fit",
            "BSpline",
            "lstsq",
            "solve",
            "inv",
            "pinv",
        ):
            monkeypatch.setattr(f"{module}.{name}", refuse, raising=False)
    monkeypatch.setattr("emergence_train.analysis.temporal.position_law._fit", refuse)
    monkeypatch.setattr("numpy.random.default_rng", refuse)
    assert page_module.page(data) == expected


def test_structure_is_there_without_a_browser(page):
    """What a screen reader goes by: one h1, headings without a gap, named regions and pictures, heads of rows and columns."""
    text = re.sub(r"<(script|style).*?</\1>", "", page.read_text(), flags=re.S)
    levels = [int(level) for level in re.findall(r"<h(\d)", text)]
    assert levels[0] == 1 and levels.count(1) == 1 and all(b - a <= 1 for a, b in zip(levels, levels[1:]))
    assert '<html lang="en">' in text and text.count("<main") == 1 and 'name="viewport"' in text
    assert all('aria-label="' in region for region in re.findall(r"<[^>]* role=\"[^>]*>", text))
    ids = re.findall(r' id="?([\w-]+)', text)
    assert len(ids) == len(set(ids)) and set(re.findall(r'href="#([^"]*)"', text)) <= set(ids)
    assert all(re.search(r"<svg[^>]*(aria-label|aria-hidden)", svg) for svg in re.findall(r"<svg[^>]*>", text))
    assert not re.search(r"<th(?! scope=)[ >]|<th[^>]*></th>", text) and not re.search(r'tabindex="[1-9]', text)
    assert "No data" not in text and not re.search(r"<figure[^>]*><figcaption>[^<]*</figcaption></figure>", text)
    assert "<label" in text and all(control in text for control in ('<fieldset data-choice="split"><legend>',))


def test_colours_of_text_are_those_of_wcag_aa():
    """4.5:1 for the page's text and its links, on the page and on a card, light and dark."""
    from emergence_train.analysis.figures import PALETTE

    style = (page_module.HERE / "page.css").read_text()
    for number, part in enumerate(style.split("@media")[:2]):
        colours = dict(re.findall(r"--(\w+): (#\w{6})", part))
        for ground in (colours["bg"], colours["card"]):
            for text in (colours["ink"], colours["soft"], PALETTE[0][number]):
                assert contrast(text, ground) >= 4.5, (text, ground)


def test_the_ends_of_several_runs_are_in_one_figure(tmp_path):
    """Of each run its interval, forecast and outcome, those of the analysis."""
    paths = [write_run(tmp_path, f"r{n}", 1000 * n, seed=n) for n in (1, 2, 3, 4)]
    data = collect(paths)
    text = page_module.page(data)
    drawn = chart_data(text[text.index("The end of each run: forecast, and what came") :])
    finals = [next(r.final for r in run.forecast.result.runs if r.split in ("iid", None)) for run in data.runs]
    assert drawn["n"] == [run.name for run in data.runs] == ["r1", "r2", "r3", "r4"]
    lines = [drawn["xs"][series["x"]] for series in drawn["s"] if series["k"] == "l"]
    wanted = [[f.low95, f.high95] for f in finals]
    assert np.allclose(lines, wanted, rtol=1e-4)
    (came,) = [series for series in drawn["s"] if series.get("l") == "what came"]
    assert drawn["xs"][came["x"]] == pytest.approx([f.actual for f in finals], rel=1e-4) and came["y"] == [0, 1, 2, 3]


def test_a_run_that_has_just_begun_has_seen_less_than_40_percent(tmp_path):
    begun = report([write_run(tmp_path, "begun", until=20)], tmp_path / "begun-page").read_text()
    assert "Fitted to all there is so far, less than 40% of the planned tokens; " in begun
    assert (
        "the first 40% of each run"
        in report([write_run(tmp_path, "half", until=40)], tmp_path / "half-page").read_text()
    )


def test_tables_of_anyone_get_a_page(page, tmp_path):
    """Positions and curves that no run directory made, another framework's log, results of tasks alone."""
    run = page.parents[1] / "large"
    positions, curves = tmp_path / "positions.parquet", tmp_path / "log.csv"
    frame = tables.read(tables.POSITIONS, run)
    frame.assign(run="theirs").to_parquet(positions)
    steps = np.arange(1, 81)
    log = pd.DataFrame({"_step": steps, "train/loss": 3 + 20 / (steps + 9), "tokens": 1000 * steps, "lr": 1e-3})
    log.to_csv(curves, index=False)
    text = report([positions, curves], tmp_path / "both").read_text()
    assert "<b>theirs</b>" in text and "<b>log</b>" in text and 'id="outlook"' in text and 'id="position"' in text
    last = frame[(frame["split"] == "iid") & (frame["step"] == 80)]
    assert f"{last['loss_sum'].sum() / last['count'].sum():.3f} nats per token on iid after 80k tokens" in text
    assert "What differs" not in text and 'id="speed"' not in text
    alone = report([curves], tmp_path / "alone").read_text()
    assert "no loss on iid" not in alone and "a training loss of 3.225 nats per token after 80k tokens" in alone
    assert 'id="position"' not in alone and 'id="summary"' not in alone

    scores = tmp_path / "scores.parquet"
    tables.read(tables.EVALUATIONS, run).to_parquet(scores)
    tasks = report([scores], tmp_path / "tasks").read_text()
    assert "jump &lt;i&gt;" in tasks and 'id="emergence"' in tasks and 'id="outlook"' not in tasks

    log.drop(columns="tokens").to_csv(curves, index=False)
    with pytest.raises(InputError, match="run 'log': its rows have no tokens.*give --tokens-per-step"):
        report([curves], tmp_path / "none")
    again = report([curves], tmp_path / "again", Reading(LogOptions(tokens_per_step=1000))).read_text()
    assert "after 80k tokens" in again


def test_a_page_of_a_log_says_how_it_was_read(tmp_path):
    """And that a log without a learning rate has none that is known."""
    log = tmp_path / "log.csv"
    rows = [f"{step},{math.exp(2 + 3 * step**-0.3)}" for step in range(10, 610, 10)]
    log.write_text("\n".join(["step,train_ppl", *rows]))
    text = html.unescape(report([log], tmp_path / "page", Reading(LogOptions(tokens_per_step=1000))).read_text())
    assert "read: step from 'step', loss from 'train_ppl', tokens 1,000 a step" in text
    assert "'train_ppl' is taken as perplexity" in text and f"{2 + 3 * 600**-0.3:.3f} nats per token" in text
    assert "neither the learning rate nor the later losses are known" in text


def test_a_log_is_forecast_to_the_end_that_is_given(tmp_path):
    """The forecast of `analyze temporal` with the same words, from all rows; a schedule that has no log is refused."""
    log = tmp_path / "log.csv"
    rows = [f"{step},{2 + 3 * step**-0.3 + 0.01 * math.sin(step)}" for step in range(10, 610, 10)]
    log.write_text("\n".join(["step,loss", *rows]))
    words = ("auto", None, [], 1000, [], None, None, 1_000_000, "cosine,lr=1e-3,warmup=1e4,final=0.1")
    text = html.unescape(report([log], tmp_path / "page", reading_of(*words)).read_text())
    asked = reading_of(*words)
    final = analyze_temporal([log], ahead=asked.ahead, options=asked.log).runs[0].final
    assert final.tokens == 1_000_000
    interval = f"{final.loss:.3f} [{final.low95:.3f}, {final.high95:.3f}]"
    assert f"From all of it, a training loss of {interval} is forecast for its end at 1M tokens." in text
    assert "Fitted to all rows, which end before the run does; the planned learning rate is known" in text
    with pytest.raises(InputError, match="--to-tokens and --schedule are for logs"):
        report([write_run(tmp_path, "run", positions=8, until=20)], tmp_path / "page", asked)


@pytest.mark.parametrize(
    ("rows", "max_steps", "words", "finished"),
    [
        (24, 1234, (), True),  # the next row would be step 1,250
        (23, 1234, (), False),
        (24, 1250, (), True),  # a log that counts from 0 ends one row early
        (24, 1234, (1_234_000,), False),  # asked for
    ],
)
def test_a_log_is_finished_within_a_row_of_its_end(tmp_path, rows, max_steps, words, finished):
    """Of the Trainer, which logs every 50 steps and not at the last: 40% of a finished run are observed, else all rows."""
    history = [{"step": 50 * k, "loss": 2 + 3 * (50 * k) ** -0.3} for k in range(1, rows + 1)]
    state = {"global_step": min(50 * rows + 34, max_steps), "max_steps": max_steps, "log_history": history}
    log = tmp_path / "trainer_state.json"
    log.write_text(json.dumps(state))
    ahead = Ahead(*words)
    (run,) = collect([log], Reading(LogOptions(tokens_per_step=1000), ahead=ahead)).runs
    assert run.forecast.result.runs[0].fit_fraction == (0.4 if finished else None)


def test_each_log_is_given_its_own_size(tmp_path):
    """--params RUN=N of logs, N of the rest of them; the runs come by size."""
    for name in ("a", "b", "c"):
        rows = [f"{step},{2 + 3 * step**-0.3}" for step in range(10, 210, 10)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["step,loss", *rows]))
    logs = [tmp_path / f"{name}.csv" for name in ("a", "b", "c")]
    words = ("auto", None, ["a=9e6", "7000", "b=800"], 1000, [], None, None, None, None)
    assert {run.name: run.params for run in collect(logs, reading_of(*words)).runs} == {
        "a": 9_000_000,
        "b": 800,
        "c": 7000,
    }
    with pytest.raises(InputError, match="--params a=9000000: no log is of this run, they are of b, c; leave it out"):
        collect(logs[1:], reading_of(*words))
    with pytest.raises(InputError, match="no log is of this run, they are of none; leave it out"):
        collect([write_run(tmp_path, "run", positions=8, until=20)], reading_of(*words[:2], ["a=9e6"], *words[3:]))


def test_a_size_may_be_of_a_log_or_of_results(tmp_path):
    log, scores = tmp_path / "mine.csv", tmp_path / "scores.csv"
    log.write_text("\n".join(["step,loss", *(f"{step},{2 + 3 * step**-0.3}" for step in range(10, 210, 10))]))
    rows = [f"theirs,{step},{4 - step / 100},arc,acc,{0.2 + step / 500}" for step in range(10, 210, 10)]
    scores.write_text("\n".join(["run,step,loss,task,metric,value", *rows]))
    words = ("auto", None, ["mine=70", "theirs=80"], 1000, [], None, None, None, None)
    data = collect([log, scores], reading_of(*words))
    assert [run.params for run in data.runs] == [70]
    assert set(data.emergence.pairs[0][1].task.frame["params"]) == {80}
    with pytest.raises(InputError, match="--params other=1: no such run"):
        collect([log, scores], reading_of(*words[:2], [*words[2], "other=1"], *words[3:]))


def test_results_of_a_harness_get_a_page(tmp_path):
    """lm-eval's files, whose losses are in a log of their own; what is asked is what `analyze emergence` asks."""
    losses = {1000: 4.0, 2000: 3.5, 4000: 3.2, 8000: 2.9}
    for step in losses:
        values = {"acc,none": 0.25 + 0.05 * (4 - losses[step]), "acc_stderr,none": 0.01}
        arguments = f"pretrained=EleutherAI/pythia-70m,revision=step{step}"
        content = {"results": {"arc_easy": values}, "config": {"model_args": arguments}}
        (tmp_path / "results").mkdir(exist_ok=True)
        (tmp_path / "results" / f"results_{step}.json").write_text(json.dumps(content))
    log = tmp_path / "losses.csv"
    log.write_text("experiment,step,val_loss\n" + "".join(f"pythia-70m,{s},{x}\n" for s, x in losses.items()))
    words = ("auto", None, ["pythia-70m=18915328"], 2**21, [], None, str(log), None, None)
    text = report([tmp_path / "results"], tmp_path / "page", reading_of(*words)).read_text()
    assert 'id="emergence"' in text and "pythia-70m" in text and "arc_easy" in text
    with pytest.raises(InputError, match="--loss is for results of tasks"):
        report([log], tmp_path / "page", reading_of(*words))


def test_the_page_says_how_its_runs_came_about(tmp_path):
    """The newest start's device and commit, the first one's date; the configuration as it is, escaped."""
    run = write_run(tmp_path, "run", positions=8, until=20)
    first = {"started": "2026-11-20T10:00:00+00:00", "device": "old", "commit": "aaa"}
    versions = {"emergence-train": "0.1.0", "torch": "2.13.0"}
    newest = {
        "started": "2026-11-22T10:00:00+00:00",
        "device": "H100",
        "processes": 8,
        "commit": "bbb+",
        "versions": versions,
    }
    (run / "environment.json").write_text(json.dumps({"sessions": [first, newest]}))
    (run / "config.yaml").write_text("name: run\nseed: 3  # <script>\n")
    (run / "parent.json").write_text(json.dumps({"run": "elder", "path": "/gone/elder", "step": 40}))
    text = report([run], tmp_path / "out").read_text()
    cells = ["2026-11-20", "H100", "8", "2", "bbb+", "0.1.0", "2.13.0", "elder@40"]
    assert '<th scope="row">run</th>' + "".join(f"<td>{cell}</td>" for cell in cells) in text
    assert "seed: 3  # &lt;script&gt;" in text and "Configuration of run" in text
    (run / "environment.json").write_text("{}")
    (run / "config.yaml").unlink()
    assert 'id="origin"' not in report([run], tmp_path / "out").read_text()
