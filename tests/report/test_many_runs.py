"""What the page leaves folded, cuts or colours together so that many runs, and spikes, stay readable."""

import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy.stats import ttest_ind

from emergence_train.analysis.figures import Figure, Trace
from emergence_train.recorder.metrics import Metrics
from emergence_train.report import conclusions, first_look, per_byte, seeds
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


@pytest.mark.parametrize(
    ("lead", "words"), [(0.02, "no more than seeds alone make"), (0.5, "more than seeds alone make")]
)
def test_a_lead_is_held_against_the_spread_of_seeds(tmp_path, lead, words):
    """Two sizes of three seeds, SD 0.05 in each: a lead of 0.02 says nothing, one of 0.5 does."""
    runs = [with_loss(tmp_path, *values) for values in spread_runs(lead)]
    assert seeds.deviation(runs) == (pytest.approx(0.05), 4)
    text = re.sub("<.*?>", "", conclusions._best(runs))
    assert f"That is {words}: runs that differ by nothing else have an SD of 0.050" in text
    first, second = ([run.means["loss"][0] for run in runs if run.params == size] for size in (1, 2))
    p = float(ttest_ind(first, second, equal_var=False).pvalue)
    assert p < 0.05 and f"apart by more than seeds explain (Welch's t, p = {p:.2g})" in seeds.best(runs)


@pytest.mark.parametrize(("others", "quantile"), [(3, 4.302653), (4, 3.182446), (5, 2.776445)])
@pytest.mark.parametrize(("times", "much"), [(0.99, "no more"), (1.01, "more")])
def test_few_seeds_need_a_larger_lead(tmp_path, others, quantile, times, much):
    """Runs of one group and a lower one of another size, about the limit by a printed table of Student's t (97.5%)."""
    values = 3 + 0.05 * np.arange(others)
    deviation = float(np.sqrt(((values - values.mean()) ** 2).sum() / (others - 1)))
    lower = 3 - times * quantile * np.sqrt(2) * deviation
    runs = [with_loss(tmp_path, "1", seed, value) for seed, value in enumerate(values)]
    text = conclusions._best([*runs, with_loss(tmp_path, "2", 0, lower)])
    assert f"That is {much} than seeds alone make" in text


def test_seeds_are_held_against_no_lead_of_a_seed_of_two_seeds_or_of_copies(tmp_path):
    """One degree of freedom says next to nothing; the best and the next of one group differ by what their seeds make."""
    losses = [("1", 1, 3.0), ("1", 2, 3.1), ("2", 1, 2.0), ("1", 3, 3.2), ("2", 2, 2.5)]
    runs = [with_loss(tmp_path, *values) for values in losses]
    assert seeds.deviation(runs[:3]) is None and "seeds alone make" not in conclusions._best(runs[:3])
    assert seeds.deviation(runs[:4]) == (pytest.approx(0.1), 2)
    assert "That is more than seeds alone make" in conclusions._best(runs[:4])
    assert "seeds alone make" not in conclusions._best(runs) and "seed alone" in conclusions._best(runs)
    copies = [replace(run, means=run.means.assign(loss=3.0)) for run in runs[:2] + runs[3:4]]
    assert seeds.deviation(copies) is None and "seeds alone make" not in conclusions._best([*copies, runs[2]])


def spread_runs(lead):
    """(size, seed, loss): two sizes of three seeds, and one run of another size below all of them by `lead`."""
    seeded = [(size, seed, 2.75 + 0.2 * int(size) + 0.05 * seed) for size in ("1", "2") for seed in (1, 2, 3)]
    return [*seeded, ("3", 1, 3.0 - lead)]


def with_loss(tmp_path, size, seed, loss):
    directory = tmp_path / f"{size}-{seed}"
    directory.mkdir()
    (directory / "config.yaml").write_text(yaml.safe_dump({"model": {"width": size}, "seed": seed}))
    means = pd.DataFrame({"step": [1], "tokens": [10], "split": ["iid"], "loss": [loss]})
    empty = pd.DataFrame({"step": [], "tokens": [], "split": [], "loss": []})
    header = {"run": directory.name, "vocabulary": "v"}
    return Run(directory.name, directory, int(size), header, {}, means, empty, empty, Metrics(directory, header))


def test_runs_of_two_tokenizers_compare_per_byte(tmp_path):
    runs = [with_loss(tmp_path, "1", seed, 3.0) for seed in (1, 2)]
    assert per_byte.ranked([[runs[0]], [runs[1]]]) == ""
    for run, values in zip(runs, ([2.9, 1.5], [2.9, 1.25])):
        (run.directory / "evaluations").mkdir()
        frame = pd.DataFrame({"step": [1, 2], "bits_per_byte": values})
        frame.to_parquet(run.directory / "evaluations" / "step-1.parquet")
    text = per_byte.ranked([[runs[0]], [runs[1]]])
    assert "<b>1-2</b> 1.250, <b>1-1</b> 1.500 bits per byte" in text
