"""open_run: frames, forecasts and plots of a run directory and of a log, beside a backend that stays as it is."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

import emergence_train
from emergence_train import open_run
from emergence_train.errors import InputError
from emergence_train.recorder import Recorder, tables

POSITIONS = 8


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "mine"
    rng = np.random.default_rng(1)
    with Recorder(path, params=1000, sequence=POSITIONS) as recorder:
        for step in range(1, 81):
            level = 2 + 3 * step**-0.5
            recorder.log(step, step * 1000, level + rng.normal(0, 0.005), 1e-3)
            if step % 5 == 0:
                losses = level + 2 * np.exp(-np.arange(POSITIONS)) + rng.normal(0, 0.01, (8, POSITIONS))
                recorder.add(torch.tensor(losses), split="iid", correct_BT=torch.ones(8, POSITIONS, dtype=bool))
                recorder.evaluation("skill", "accuracy", step / 80)
                recorder.checkpoint(step, step * 1000, 1e-3)
    return path


def test_frames_are_those_of_the_tables(run):
    opened = open_run(run)
    assert repr(opened).startswith("<run mine: step 80, 80k tokens, loss 2.3") and len(repr(opened)) < 120
    assert opened.curve["step"].tolist() == list(range(1, 81)) and (opened.curve["lr"] == 1e-3).all()
    assert opened.splits == ["iid"]
    read = tables.read(tables.POSITIONS, run)
    assert (opened.positions["loss"] == read["loss_sum"] / read["count"]).all()
    assert (opened.losses["accuracy"] == 1).all() and len(opened.losses) == 16
    assert opened.evaluations["value"].tolist() == [step / 80 for step in range(5, 81, 5)]


def test_a_forecast_is_that_of_the_analysis(run):
    for split in (None, "iid"):
        forecast = open_run(run).forecast(split, fit_fraction=0.5)
        [expected] = [
            of
            for of in emergence_train.analysis.temporal.investigate(run, fit_fraction=0.5).result.runs
            if of.split == split
        ]
        assert forecast.result == expected
        assert {"step", "tokens", "loss", "low95", "actual"} <= set(forecast.table)
    shown = repr(forecast)
    assert "mine, iid: " in shown and "at 80k tokens, measured 2." in shown and "\n" not in shown


def test_a_run_that_goes_on_is_forecast_to_where_it_is_asked(run):
    forecast = open_run(run).forecast(to_tokens=160_000, schedule="constant,lr=1e-3")
    assert forecast.result.final.tokens == 160_000
    assert forecast.result.final.low95 < 2 + 3 * 160**-0.5 < forecast.result.final.high95


def test_plots_are_drawn_on_the_given_axes(run):
    opened, figure = open_run(run), Figure()
    axes = figure.subplots(3)
    assert opened.plot(ax=axes[0]) is axes[0]
    assert np.allclose(axes[0].lines[0].get_ydata(), opened.curve["loss"])
    assert len(opened.plot("iid", ax=axes[1]).lines) == 16  # a line for each checkpoint
    assert opened.forecast("iid", fit_fraction=0.5).plot(axes[2]).get_xlabel() == "tokens trained"
    with pytest.raises(InputError, match="no positions of split 'ood'; it has iid"):
        opened.plot("ood", ax=axes[0])


def test_a_log_of_others_is_opened_too(tmp_path):
    rows = [{"step": step, "loss": 2 + 3 * step**-0.5, "learning_rate": 1e-3, "epoch": 0} for step in range(1, 61)]
    path = tmp_path / "trainer_state.json"
    path.write_text(json.dumps({"log_history": rows, "max_steps": 60, "global_step": 60}))
    opened = open_run(path, tokens_per_step=100, params=5000)
    assert opened.curve["tokens"].tolist() == [100 * step for step in range(1, 61)]
    assert opened.losses is opened.curve and opened.splits == []
    final = opened.forecast(fit_fraction=0.5).result.final  # by a twentieth of the rows
    assert (final.actual, final.actual_rows) == (pytest.approx(2 + 3 * 60**-0.5, abs=0.003), 3)
    assert "splits none" in repr(opened)


def test_one_run_of_several_is_chosen(tmp_path):
    frame = "run,params,step,tokens,lr,loss\n"
    for name in ("a", "b"):
        frame += "".join(f"{name},10,{step},{step * 10},0.1,{3 - step / 100}\n" for step in range(1, 21))
    path = tmp_path / "curves.csv"
    path.write_text(frame)
    with pytest.raises(InputError, match="holds several runs; choose with run= one of a, b"):
        open_run(path)
    with pytest.raises(InputError, match="holds no run 'c'; choose with run= one of a, b"):
        open_run(path, run="c")
    assert open_run(path, run="b").name == "b" and len(open_run(path, run="b").curve) == 20


def test_the_backend_of_a_notebook_is_left_alone():
    script = (
        "import matplotlib; matplotlib.use('svg'); from emergence_train import open_run;"
        "import emergence_train.analysis.drawing, emergence_train.report.page, sys;"
        "assert matplotlib.get_backend() == 'svg', matplotlib.get_backend();"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", script], env={"PYTHONPATH": ":".join(sys.path)}, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
