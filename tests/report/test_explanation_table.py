"""The table of explanations and what smaller sizes keep: the result's numbers, names escaped, nothing where none was measured."""

import re

import pytest

from emergence_train.analysis.emergence.result import Explanation, Kept, SizeKept, TaskKept
from emergence_train.analysis.results import Interval
from emergence_train.report import explanation_table
from emergence_train.report.collect import ReportData, collect
from report.test_page import write_evaluations, write_run

KEY = {"family": "", "task": "<b>jump", "metric": "acc"}


def kept(value: float, verdict: str) -> Kept:
    return Kept(Interval(value, value - 0.1, value + 0.1), verdict)


def test_survival_has_both_shares_of_each_size():
    sizes = (
        SizeKept(params=1000, runs=1, at_equal_tokens=kept(0.2, "lost"), at_equal_loss=kept(0.95, "kept")),
        SizeKept(params=30_000, runs=1, at_equal_tokens=kept(0.5, "open"), at_equal_loss=kept(1.0, "kept")),
    )
    about = KEY | {"largest": 9_000_000, "tokens": 80_000, "loss": 3.25, "sizes": sizes}
    text = explanation_table.survival((TaskKept(**about, interval_of="items"),), {})
    assert "&lt;b&gt;jump" in text and "<b>jump" not in text
    _, *rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall("<tr>(.*?)</tr>", text)]
    assert [row[1:] for row in rows] == [
        ["1k of 9M", "20% [10%, 30%] (lost)", "80k", "95% [85%, 105%] (kept)", "3.25"],
        ["30k of 9M", "50% [40%, 60%] (open)", "80k", "100% [90%, 110%] (kept)", "3.25"],
    ]
    assert text.count("One run a size: the intervals are of items alone") == 1
    assert "One run a size" not in explanation_table.survival((TaskKept(**about, interval_of="items and runs"),), {})
    some = explanation_table.survival((TaskKept(**about, interval_of="items and runs of some sizes"),), {})
    assert "Sizes of one run are taken to differ by luck as the others do" in some and "One run a size" not in some


def test_an_unknown_share_is_shown_as_unknown():
    unknown = Kept(Interval(None, None, None), "open", "no rows")
    sizes = (SizeKept(params=1000, runs=1, at_equal_tokens=kept(0.2, "lost"), at_equal_loss=unknown),)
    task = TaskKept(**KEY, largest=9_000_000, tokens=80_000, loss=3.25, interval_of="items and runs", sizes=sizes)
    assert "<td>unknown</td>" in explanation_table.survival((task,), {})


def test_survival_of_continuous_metrics_alone_is_nothing():
    brier = TaskKept(**KEY | {"metric": "brier"}, largest=9, tokens=8, loss=3.0, interval_of="items", sizes=())
    assert explanation_table.survival((brier,), {}) == "" == explanation_table.survival((), {})


@pytest.fixture(scope="module")
def ladder(tmp_path_factory) -> ReportData:
    root = tmp_path_factory.mktemp("ladder")
    runs = [write_run(root, "small", 1000, positions=8, seed=1), write_run(root, "large", 4000, positions=8, seed=2)]
    for seed, (run, params) in enumerate(zip(runs, (1000, 4000)), 1):
        write_evaluations(run, params, seed)
    return collect(runs)


def test_table_has_the_results_numbers(ladder):
    entries = ladder.emergence.result.explanations
    assert [entry.explanation for entry in entries] == ["loss", "tokens", "compute"]
    ((anchor, _, body),) = explanation_table.sections(ladder)
    rows = re.findall(r'<tr><th scope="row">(.*?)</th><td>(.*?)</td><td>(.*?)</td><td>(.*?)</td></tr>', body)
    assert anchor == "explanations" and len(rows) == len(entries)
    for (task, words, evidence, cell), entry in zip(rows, entries):
        assert task == "jump &lt;i&gt;, acc" and words == explanation_table.NAMES[entry.explanation]
        assert cell == f"{entry.explained.value:.2f}: {explanation_table.VERDICTS[entry.verdict]}"
        assert evidence.startswith("one curve for 2 runs of 2 sizes")
    assert "<i>," not in body


@pytest.mark.parametrize(
    ("share", "verdict", "cell"),
    [
        (None, "does-not", "does not explain it"),
        (Interval(0.12, -0.14, 0.4), "does-not", "0.12 [-0.14, 0.40]: does not explain it"),
        (Interval(0.9, -31.0, 1.0), "open", "0.90 [&lt; -1, 1.00]: cannot tell"),
        (Interval(0.6, 0.4, 0.9), "open", "0.60 [0.40, 0.90]: cannot tell"),
    ],
)
def test_share_is_shown_with_its_interval(share, verdict, cell):
    entry = Explanation(**KEY, explanation="steps", explained=share, verdict=verdict, evidence="e")
    assert explanation_table.shown(entry) == cell


def test_nothing_is_shown_where_nothing_was_measured(tmp_path):
    """A run without tasks has no section of explanations, and no table without rows."""
    assert explanation_table.sections(collect([write_run(tmp_path, "bare", positions=8)])) == []
