"""Runs that share a name are told apart by their directories, in every view alike."""

import json
from pathlib import Path

import numpy as np
import pytest

from emergence_train.analysis.emergence import simulate
from emergence_train.analysis.emergence import table as emergence_table
from emergence_train.analysis.runs import load
from emergence_train.errors import InputError
from emergence_train.recorder import tables
from emergence_train.recorder.naming import display_names, names_of


@pytest.mark.parametrize(
    ("runs", "shown"),
    [
        ([("a", "runs/a"), ("b", "runs/b")], ["a", "b"]),
        ([("a", "runs/a"), ("a", "runs/a_old")], ["a", "a_old"]),
        ([("a", "x/a"), ("a", "y/a")], ["x/a", "y/a"]),
        ([("a", "runs/a"), ("a", "runs/a_old"), ("a_old", "runs/b")], ["a", "runs/a_old", "b"]),
        ([("a", "x/a"), ("a", "y/a"), ("b", "x/b")], ["x/a", "y/a", "b"]),
        ([("a", "f.csv"), ("b", "f.csv"), ("a", "g.csv")], ["f.csv", "b", "g.csv"]),
        ([("a", "f"), ("a", "f")], None),
        ([], []),
    ],
    ids=["apart", "moved", "two places", "taken", "third", "file", "twice", "none"],
)
def test_display_names(runs, shown):
    names = display_names([(name, Path(path)) for name, path in runs])
    if shown is None:
        assert len(set(names)) == 1  # one run given twice: for the caller to refuse
    else:
        assert names == shown
        assert len(set(names)) == len(runs)
        backwards = display_names([(name, Path(path)) for name, path in reversed(runs)])
        assert backwards[::-1] == names  # whatever their order


def run_at(directory, lr=1e-3, name="a", shift=0.0):
    """A run directory with a training curve and one evaluation."""
    directory.mkdir()
    lines: list[dict] = [{"kind": "run", "run": name, "params": 10}]
    for step in range(1, 60):
        row = {"kind": "train", "step": step, "tokens": 64 * step, "lr": lr, "loss": 2 + step**-0.5 + shift}
        lines.append(row)
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    frame = simulate.table("emergent", np.random.default_rng(1), sizes=1, checkpoints=8)[0].assign(run=name)
    tables.write(tables.EVALUATIONS, frame, directory / "evaluations" / "step-1.parquet", vocabulary="v")
    return directory


def test_two_run_directories_of_one_name_are_told_apart(tmp_path):
    """A run moved aside and trained again with another rate: not one run that the tables hold twice."""
    old, new = run_at(tmp_path / "a_old"), run_at(tmp_path / "a", lr=2e-3, shift=1.0)
    assert names_of([new, old]) == {new: "a", old: "a_old"}
    by_name = {series.run: series for series in load([new, old])}
    assert set(by_name) == {"a", "a_old"}
    assert by_name["a"].loss[0] == 4.0 and by_name["a_old"].loss[0] == 3.0
    assert by_name["a"].plan.peak == 2e-3 and by_name["a_old"].plan.peak == 1e-3
    tasks, *_ = emergence_table.load([new, old])
    assert {run for task in tasks for run in task.frame["run"]} == {"a", "a_old"}
    assert [series.run for series in load(old)] == ["a"]


def test_one_run_given_twice_is_refused(tmp_path):
    run = run_at(tmp_path / "a")
    with pytest.raises(InputError, match="given twice"):
        load([run, run])


def test_logs_of_one_file_name_are_told_apart(tmp_path):
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "log.csv").write_text("step,loss\n" + "".join(f"{k},{2 + k**-0.5}\n" for k in range(1, 30)))
    assert [series.run for series in load([tmp_path / "x" / "log.csv", tmp_path / "y" / "log.csv"])] == [
        "x/log.csv",
        "y/log.csv",
    ]
