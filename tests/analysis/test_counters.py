"""Counters that begin anew where a run was resumed or an epoch begins; the truth is a plain run's own count."""

import json

import numpy as np
import pytest

from emergence_train.analysis import logs
from emergence_train.analysis.logs import LogOptions
from emergence_train.analysis.logs.counters import counted_on, through_epochs

STEPS = np.arange(100, 6001, 100)
BATCH = 1000


def loss(step):
    return round(2 + 5 * float(step) ** -0.3, 4)


def resumed(*parts, first=100):
    """Rows (count, step) of parts (first step, last step), each counted from `first`."""
    return [(step - begin + first, step) for begin, end in parts for step in range(begin, end + 1, 100)]


PARTS = {
    "at the end": [(100, 4000), (4100, 6000)],
    "from a checkpoint": [(100, 4000), (3600, 6000)],
    "twice": [(100, 2000), (1600, 4000), (3600, 6000)],
    "killed again before it came as far": [(100, 4000), (3600, 3800), (3600, 6000)],
    "far back": [(100, 4000), (1100, 6000)],
}


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("anew", ["step", "tokens"])
@pytest.mark.parametrize("first", [0, 100])
def test_a_counter_goes_on_where_the_other_had_come(name, anew, first, tmp_path):
    """Every step of the run is there once, and of steps trained again the later rows count."""
    rows, latest = [], {}
    for part, (begin, end) in enumerate(PARTS[name]):
        for step in range(begin, end + 1, 100):
            count = step - begin + first if part else step
            row = {"step": count if anew == "step" else step, "tokens": BATCH * (step if anew == "step" else count)}
            rows.append(row | {"loss": loss(step) + part / 100})
            latest[step] = rows[-1]["loss"]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (curve,) = logs.read(tmp_path / "x.jsonl", LogOptions())
    assert curve.frame["step"].tolist() == STEPS.tolist()
    assert curve.frame["tokens"].tolist() == (BATCH * STEPS).tolist()
    assert curve.frame["loss"].tolist() == [latest[step] for step in STEPS]
    assert any("begin anew at row" in note for note in curve.notes)


def test_counters_that_fall_together_are_left(tmp_path):
    """A run taken back to its checkpoint; another run behind it; and the newest row first."""
    back = np.r_[100:4001:100, 3600:6001:100].astype(float)
    assert counted_on(back, BATCH * back)[1] == []
    two = np.r_[100:4001:100, 100:6001:100].astype(float)
    assert counted_on(two, BATCH * two)[1] == []
    assert counted_on(back[::-1], BATCH * back[::-1])[1] == []


LENGTH = 1000
FORMS = {
    "x.csv": ("epoch,step,loss\n", "{e},{s},{x}"),
    "y.csv": ("loss,trainer/epoch,global_step\n", "{x},{e}.0,{s}"),
    "x.jsonl": ("", '{{"epoch": {e}, "step": {s}, "loss": {x}}}'),
    "x.log": ("", "epoch {e} step {s} loss {x}"),
    "y.log": ("", "Epoch: {e} | step: {s} | loss: {x}"),
    "z.log": ("", "[epoch {e}] iter {s}: loss {x}, time 1ms"),
}


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("base, first", [(0, 0), (1, 100), (0, 50)])
def test_steps_of_each_epoch_are_counted_through(name, base, first, tmp_path):
    header, form = FORMS[name]
    steps = [step for step in range(3 * LENGTH) if (step - first) % LENGTH % 100 == 0]
    if first == 100:
        steps = [step + 100 for step in range(0, 3 * LENGTH, 100)]
    epochs = [(step - (first == 100)) // LENGTH for step in steps]
    rows = [form.format(e=e + base, s=s - e * LENGTH, x=loss(s + 1)) for e, s in zip(epochs, steps)]
    (tmp_path / name).write_text(header + "\n".join(rows) + "\n")
    (curve,) = logs.read(tmp_path / name, LogOptions())
    assert curve.frame["step"].tolist() == steps
    assert curve.frame["loss"].tolist() == [loss(s + 1) for s in steps]
    assert any("counted through, 1,000 an epoch" in note for note in curve.notes)


def test_steps_of_the_run_beside_an_epoch_stay():
    step = np.r_[100:2001:100, 1600:3001:100].astype(float)  # taken back once
    assert through_epochs(step, np.floor(step / 1000)) is None
    assert through_epochs(step, step / 1000) is None
    assert through_epochs(step[::-1], np.floor(step / 1000)[::-1]) is None


def test_a_run_taken_back_within_its_epochs_is_counted_through():
    run = np.r_[100:1801:100, 1400:2900:100].astype(float)
    counted, length = through_epochs(run % 1000, np.floor(run / 1000))
    assert counted.tolist() == run.tolist() and length == 1000


def test_an_epochs_last_row_logged_twice_is_the_runs_own():
    step = np.array([0, 500, 1000, 1000, 1500, 2000, 2000, 2500.0])
    assert through_epochs(step, np.array([0, 0, 0, 1, 1, 1, 2, 2.0])) is None
