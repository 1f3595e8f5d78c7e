"""What the page leaves folded, cuts or colours together so that many runs, and spikes, stay readable."""

import re

import numpy as np
import pandas as pd
import pytest

from emergence_train.analysis.figures import Figure, Trace
from emergence_train.recorder.metrics import Metrics
from emergence_train.report import first_look
from emergence_train.report.collect import Run
from emergence_train.report.conclusions import _trouble
from emergence_train.report.page import colouring
from emergence_train.report.parts import count, folded, table

X = np.array([1.0, 2.0, 3.0])


def figures(number):
    return [Figure(f"figure {k}", "x", "y", (Trace(X, X + k, "a"),)) for k in range(number)]


def test_only_a_few_figures_are_open():
    text = folded(figures(9), "runs")
    open_ones, _, rest = text.partition("<details>")
    assert open_ones.count("<figure") == 6 and rest.count("<figure") == 3 and "<summary>3 more runs</summary>" in rest
    assert "<details>" not in folded(figures(6), "runs")


def test_names_break_behind_underscores_alone():
    text = table(["task"], [['answer_bits_per_byte <a href="#a_b">x</a> &amp;'], ["a/b"]], "t")
    assert 'answer_<wbr>bits_<wbr>per_<wbr>byte <a href="#a_b">x</a> &amp;' in text and "a/<wbr>b" in text
    assert [count(n, "checkpoint") for n in (0, 1, 2)] == ["0 checkpoints", "1 checkpoint", "2 checkpoints"]


def test_many_runs_are_coloured_by_what_has_few_values():
    runs = {f"r{k}": {"lr": str(k % 3), "seed": str(k % 4), "width": str(k % 5), "id": str(k)} for k in range(20)}
    assert colouring(runs) == "width"  # not seed, and not what is of one run alone
    assert colouring(dict(list(runs.items())[:8])) == "" == colouring({})


@pytest.mark.parametrize("spike", [0.0, 300.0])
def test_a_spike_does_not_flatten_the_losses(spike):
    loss = np.linspace(6, 3, 200)
    loss[150] += spike
    limits, cut = first_look._without_spikes([Trace(np.arange(200.0), loss, "a", low=loss - 0.1, high=loss + 0.1)])
    if not spike:
        assert limits is None and cut == 0
        return
    assert limits[0] < loss.min() - 0.1 and 6 < limits[1] < 9 and cut == pytest.approx(loss.max() + 0.1)


def run(loss, tmp_path, rows=()):
    steps = np.arange(1, len(loss) + 1)
    metrics = Metrics(tmp_path, {"run": "r"})
    for row in rows:
        metrics.add(row)
    curve = pd.DataFrame({"step": steps, "tokens": steps * 10, "loss": loss, "tokens_per_second": 1.0})
    empty = pd.DataFrame({"step": [], "tokens": [], "split": [], "loss": []})
    return Run("r", tmp_path, 1, {"run": "r"}, {}, empty, empty, curve, metrics)


def test_trouble_in_training_is_named(tmp_path):
    rng = np.random.default_rng(0)
    fine = 3 + 20 / np.arange(10, 510) + rng.normal(0, 0.2, 500)
    assert first_trouble(fine, tmp_path) == ""
    rising = fine + np.maximum(np.arange(500) - 400, 0) * 0.02
    lowest = pd.Series(rising).rolling(64).mean()
    above = float(lowest.iloc[-1] - lowest.min())
    assert f"ended {above:.2f} nats above its lowest" in first_trouble(rising, tmp_path)
    broken = fine.copy()
    broken[[299, 300]] = np.nan
    assert "has no number at 2 steps, first at 300" in first_trouble(broken, tmp_path)
    events = [{"kind": "skipped", "step": 3}, {"kind": "skipped", "step": 4}, {"kind": "rewind", "step": 5}]
    assert "It had 2 skipped batches and 1 rewind." in first_trouble(fine, tmp_path, events)


def first_trouble(loss, tmp_path, rows=()):
    return re.sub("<.*?>", "", _trouble(run(loss, tmp_path, rows)))
