"""Runs whose id changes: one that was resumed, with or without steps trained again, and two that ran side by side."""

import numpy as np
import pytest

from emergence_train.analysis import logs
from emergence_train.analysis.logs import LogOptions

IDS = ["run_id", "job", "Name", "seed", "job_id"]


def read(tmp_path, column: str, parts: list[tuple[str, int, int]], by_step: bool = False):
    """Parts (id, first step, last step) as rows every 10 steps; the loss of a part is its own from its number on."""
    rows = [
        (name, step, 4 - 1e-3 * step + k)
        for k, (name, first, last) in enumerate(parts)
        for step in range(first, last + 1, 10)
    ]
    if by_step:
        rows.sort(key=lambda row: (row[1], -row[2]))
    (tmp_path / "x.csv").write_text(f"{column},step,loss\n" + "".join(f"{n},{s},{x:.6f}\n" for n, s, x in rows))
    return logs.read(tmp_path / "x.csv", LogOptions())


@pytest.mark.parametrize("by_step", [False, True])
@pytest.mark.parametrize("column", IDS)
def test_a_resumption_that_replays_steps_is_one_run(column, by_step, tmp_path):
    """Killed at 900, resumed from 800 under a new id: rows 800 to 900 are the later ones, in whatever order the file has them."""
    (curve,) = read(tmp_path, column, [("17", 10, 900), ("23", 810, 2000)], by_step)
    step, loss = curve.frame["step"].to_numpy(), curve.frame["loss"].to_numpy()
    assert step.tolist() == list(range(10, 2001, 10))
    assert np.allclose(loss, np.where(step > 800, 5, 4) - 1e-3 * step)
    assert any(f"{column!r} changes while the steps go on" in note for note in curve.notes)
    assert any("10 rows are of steps that were logged again" in note for note in curve.notes)


@pytest.mark.parametrize("column", IDS)
def test_runs_side_by_side_stay_two(column, tmp_path):
    for parts in (
        [("1", 10, 2000), ("2", 10, 2000)],
        [("1", 10, 2000), ("2", 10, 900)],  # killed, or not there yet
        [("1", 10, 500), ("2", 10, 2000)],
        [("1", 10, 2000), ("2", 1010, 3000)],  # half of the first is there twice
        [("1", 10, 2000), ("2", 1610, 2000)],  # the decay of a branch, which ends where the run ends
    ):
        assert [curve.run for curve in read(tmp_path, column, parts)] == ["1", "2"]


def test_a_resumption_that_was_killed_itself_is_one_run(tmp_path):
    (curve,) = read(tmp_path, "run_id", [("a", 10, 900), ("b", 810, 850), ("c", 810, 2000)])
    step, loss = curve.frame["step"].to_numpy(), curve.frame["loss"].to_numpy()
    assert np.allclose(loss, np.where(step > 800, 6, 4) - 1e-3 * step)


def test_a_pattern_and_a_column_name_a_run_together(tmp_path):
    """Two columns of losses of two models are four runs."""
    rows = [f"{model},{step},{2 + k},{3 + k}" for k, model in enumerate("ab") for step in range(10)]
    (tmp_path / "x.csv").write_text("\n".join(["model,step,train/loss,eval/loss", *rows]))
    curves = logs.read(tmp_path / "x.csv", LogOptions(columns={"loss": "*/loss"}))
    assert {curve.run: curve.frame["loss"].iloc[0] for curve in curves} == {
        "train-a": 2,
        "train-b": 3,
        "eval-a": 3,
        "eval-b": 4,
    }
    (a, b) = logs.read(tmp_path / "x.csv", LogOptions(columns={"loss": "train/loss"}))
    assert (a.run, b.run) == ("a", "b")
