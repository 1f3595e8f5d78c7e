"""The page: self-contained, its numbers those of the tables, and, where there is a browser, without a script error."""

import json
import re
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest
import yaml

from emergence_train.analysis.emergence import analyze_emergence
from emergence_train.analysis.figures import short
from emergence_train.errors import InputError
from emergence_train.recorder import tables
from emergence_train.report import page as page_module
from emergence_train.report.collect import collect
from emergence_train.report.page import report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


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


@pytest.fixture
def page(tmp_path):
    runs = [write_run(tmp_path, "small & <b>", 1000, seed=1), write_run(tmp_path, "large", 4000, seed=2)]
    for seed, (run, params) in enumerate(zip(runs, (1000, 4000)), 1):
        write_evaluations(run, params, seed)
    return report(runs, tmp_path / "out")


def test_nothing_is_fetched_and_names_are_escaped(page):
    text = page.read_text()
    assert not re.search(r"(?:src|href)=\"(?!#|data:)", text) and "http" not in re.sub(
        r"<script type.*?</script>", "", text
    )
    assert "small &amp; &lt;b&gt;" in text and "small & <b>" not in re.sub(r"<script.*?</script>", "", text, flags=re.S)
    assert page.stat().st_size < 1_000_000


def test_the_numbers_are_those_of_the_tables(page, tmp_path):
    text = page.read_text()
    means = tables.mean_loss(tables.read(tables.POSITIONS, tmp_path / "large"))
    last = means[(means["step"] == 80) & (means["split"] == "iid")].iloc[0]
    assert f"<td>{last['loss']:.3f}</td>" in text
    law = re.search(r"a0 = ([\d.]+) \[([\d.]+), ([\d.]+)\], a1 = ([\d.]+) \[([\d.]+), ([\d.]+)\]", text)
    a0, low, high, a1, low1, high1 = map(float, law.groups())
    assert low < 1.5 < high and low1 < 0.2 < high1 and low < a0 < high and low1 < a1 < high1


def test_the_section_on_tasks_says_what_the_analysis_finds(page, tmp_path):
    text = page.read_text()
    section = text[text.index('<section id="emergence">') :]
    result = analyze_emergence([tmp_path / "small & <b>", tmp_path / "large"])
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
    drawn = json.loads(re.search(r'<script type="application/json">(.*?)</script>', figure, re.S).group(1))
    labels = [series["label"] for series in drawn["series"]]
    assert figure.count('class="band"') >= 4 and "forecast" in labels and "η of jump <i>" in labels
    crossing = next(run for ability in result.abilities for run in ability.runs if run.run == "unfinished")
    assert crossing.status in ("expected", "reached")
    when = next(series for series in drawn["series"] if series["label"].startswith("jump <i>: "))
    assert when["x"] == [short(crossing.tokens.value)]
    history = text[text.index("unfinished: forecast while it trained") :]
    assert '["50k", "50k"]' in history[: history.index("</figure>")]
    assert "loss to come" not in report(runs[:2], tmp_path / "two").read_text()


def test_the_cost_of_tasks_is_shown(page):
    """Two times 1.5 s, beside 79 steps of 1,000 tokens at 5,000 tokens/s: 15.8 s."""
    assert "<td>2</td><td>3.0</td><td>15.8</td><td>19.0%</td>" in page.read_text()


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        report([tmp_path])
    (tmp_path / "metrics.jsonl").write_text('{"kind": "run", "run": "r", "params": 3}\n')
    with pytest.raises(InputError, match="no checkpoint yet"):
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


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium on this machine")
def test_a_browser_runs_it_without_an_error(page, tmp_path):
    """The page reports its own errors into the title; arrow keys read a value, and one split is shown at a time."""
    probe = """<script>addEventListener('error', e => document.title = 'ERROR ' + e.message);
    addEventListener('load', () => { const svg = 
        [...document.querySelectorAll('figure.chart svg')].find(s => s.checkVisibility());
      svg.focus(); svg.dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowRight'}));
      const grids = [...document.querySelectorAll('[data-of=split]')].filter(g => g.checkVisibility()).length;
      const wide = document.documentElement.scrollWidth > innerWidth;
      document.title += ' | ' + svg.parentElement.querySelector('output').textContent 
        + ' | grids ' + grids + ' | wide ' + wide; });
    </script>"""
    probed = tmp_path / "probed.html"
    probed.write_text(page.read_text().replace("<head>", "<head>" + probe))
    for width in (390, 1280):
        done = subprocess.run(
            [
                CHROMIUM,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-background-networking",
                "--dump-dom",
                f"--window-size={width},900",
                f"--user-data-dir={tmp_path / 'profile'}",
                f"file://{probed}",
            ],
            capture_output=True,
            text=True,
            timeout=120,
        )
        title = re.search(r"<title>(.*?)</title>", done.stdout, re.S).group(1)
        assert (
            "ERROR" not in title and "loss (nats per token)" in title and "grids 1" in title and "wide false" in title
        )
