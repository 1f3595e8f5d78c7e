"""Runs whose id changes: one that was resumed, with or without steps trained again, and two that ran side by side."""

import itertools

import numpy as np
import pandas as pd
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


def test_a_job_that_crashed_joins_no_two(tmp_path):
    """One row of a third job: two runs, and a note; of one that is resumed later, a row of it."""
    rows = [f"{job},{step},{4 - step / 1000 + job}" for job in (1, 2) for step in range(100, 2001, 100)]
    (tmp_path / "x.csv").write_text("\n".join(["job_id,step,loss", *rows, "3,100,9", ""]))
    curves = logs.read(tmp_path / "x.csv", LogOptions())
    assert [curve.run for curve in curves] == ["1", "2"] and "left out: 'job_id' 3, one row each" in curves[0].notes
    rows = [f"{1 + (step > 900) + (step > 1000)},{step},{4 - step / 1000}" for step in range(100, 2001, 100)]
    (tmp_path / "x.csv").write_text("\n".join(["job_id,step,loss", *rows]))
    (curve,) = logs.read(tmp_path / "x.csv", LogOptions())
    assert curve.frame["step"].tolist() == list(range(100, 2001, 100))


LADDERS = {
    "sizes": ["s,70M,200,1000,200", "m,280M,800,4000,800"],
    "tokens": ["s,,1e6,2e7,1e6", "m,,2e7,4e8,2e7"],
    "intervals": ["s,,10,100,10", "m,,100,3000,100"],
    "gap": ["s,,10,1000,10", "m,,1100,3000,10"],
    "params": ["s,70M,10,1000,10", "m,280M,1010,3000,10"],
}


def ladder(tmp_path, column: str, along: str, parts: list[str]) -> list[str]:
    rows = []
    for part in parts:
        name, params, first, last, interval = part.split(",")
        rows += [
            f"{name},{params},{step:.0f},{4 - k / 100}"
            for k, step in enumerate(np.arange(float(first), float(last) + 1, float(interval)))
        ]
    (tmp_path / "x.csv").write_text("\n".join([f"{column},params,{along},loss", *rows]))
    return [curve.run for curve in logs.read(tmp_path / "x.csv", LogOptions())]


@pytest.mark.parametrize("name", LADDERS)
def test_models_that_follow_one_another_stay_apart(name, tmp_path):
    along = "tokens" if name == "tokens" else "step"
    assert ladder(tmp_path, "name", along, LADDERS[name]) == ["m", "s"]


@pytest.mark.parametrize("column", ["model", "Model Name", "experiment"])
def test_no_resumption_changes_the_model(column, tmp_path):
    parts = ["s,,10,1000,10", "m,,1010,3000,10"]
    assert ladder(tmp_path, column, "step", parts) == ["m", "s"]
    assert ladder(tmp_path, "job", "step", parts) == ["x"]


def curve(step: float, size: float = 1.0, start: float = 0.0) -> float:
    return 2 + 7 / (1 + (step - start) / (40 * size)) ** 0.4


def every(first: int, last: int, interval: int) -> list[int]:
    return list(range(first, last + 1, interval))


POWERS = [2**k for k in range(10)]
# what it is: parts of (id, steps, loss by step)
ONE = {
    "rarer from 1000 on": [("a", every(100, 900, 100), curve), ("b", every(1000, 9000, 1000), curve)],
    "rarer, the step before again": [("a", every(100, 1000, 100), curve), ("b", every(1000, 9000, 1000), curve)],
    "much rarer": [("a", every(10, 490, 10), curve), ("b", every(500, 9000, 500), curve)],
    "powers, then even": [("a", POWERS, curve), ("b", every(1000, 9000, 1000), curve)],
    "few rows again": [("a", [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000], curve), ("b", every(600, 9000, 100), curve)],
    "powers go on": [("a", POWERS, curve), ("b", [1024, 2048, 4096], curve)],
    "two rows at the end": [("a", [1000, 2000, 4000], curve), ("b", [8000, 16000], curve)],
    "a short last part": [("a", every(100, 5000, 100), curve), ("b", [5100, 5200], curve)],
    "a short first part": [("a", [100, 200], curve), ("b", every(300, 5000, 100), curve)],
    "three jobs": [("a", POWERS, curve), ("b", every(600, 900, 100), curve), ("c", every(1000, 9000, 1000), curve)],
}
TWO = {
    "seeds": [("a", every(100, 3000, 100), curve), ("b", every(100, 3000, 100), lambda s: curve(s) + 0.01)],
    "seeds on other grids": [("a", every(10, 3000, 10), curve), ("b", every(100, 3000, 100), curve)],
    "seeds, one stopped early": [("a", every(100, 400, 100), curve), ("b", every(100, 3000, 100), curve)],
    "fine-tuned from step 0": [("a", every(0, 3000, 100), curve), ("b", every(0, 900, 100), lambda s: 2.6 - s / 5e3)],
    "fine-tuned briefly": [("a", every(100, 3000, 100), curve), ("b", every(0, 90, 10), lambda s: 2.6 - s / 5e3)],
    "fresh, logged from where the other ended": [
        ("a", every(10, 90, 10), curve),
        ("b", every(100, 3000, 100), lambda s: curve(s, 100)),
    ],
}


@pytest.mark.parametrize("name", [*ONE, *TWO])
def test_jobs_of_one_run_and_of_two(name, tmp_path):
    """Rows may lie further apart after a resumption; a run of its own begins high, or with the other."""
    parts = (ONE | TWO)[name]
    rows = [f"{job},{step},{loss(step):.6f}" for job, steps, loss in parts for step in steps]
    every_step = sorted({step for _, steps, _ in parts for step in steps})
    for column in ("job", "job_id", "run_id", "slurm_job_id"):
        (tmp_path / "x.csv").write_text("\n".join([f"{column},step,loss", *rows]) + "\n")
        curves = logs.read(tmp_path / "x.csv", LogOptions())
        assert [c.run for c in curves] == (["x"] if name in ONE else ["a", "b"])
        assert name in TWO or curves[0].frame["step"].tolist() == every_step


def decayed(step: float) -> float:
    """A branch from step 1000 with a lower rate."""
    return curve(step) - 0.1 * max(0.0, 1 - np.exp(-(step - 1000) / 300))


def noisy(scale: float, seed: int = 0, of=curve):
    """A curve whose rows scatter, otherwise at each call."""
    random = np.random.default_rng(seed)
    return lambda step: of(step) + scale * random.standard_normal()


AGAIN = {
    "half of it": [(1, every(100, 2000, 100), curve), (2, every(1100, 4000, 100), curve)],
    "nearly all": [(1, every(100, 2000, 100), curve), (2, every(200, 4000, 100), curve)],
    "not as far yet": [(1, every(100, 2000, 100), curve), (2, every(1100, 1600, 100), curve)],
    "twice": [
        (1, every(100, 2000, 100), curve),
        (2, every(1100, 1800, 100), curve),
        (3, every(1100, 4000, 100), curve),
    ],
    "on other samples": [(1, every(10, 2000, 10), noisy(0.03)), (2, every(1010, 4000, 10), noisy(0.03, 1))],
    "nearly the same": [(1, every(100, 2000, 100), noisy(1e-4)), (2, every(1100, 4000, 100), noisy(1e-4, 1))],
}
BRANCHES = {
    "a lower rate": [(1, every(100, 2000, 100), curve), (2, every(1000, 4000, 100), decayed)],
    "scattered": [(1, every(10, 2000, 10), noisy(0.03)), (2, every(1010, 4000, 10), noisy(0.03, 1, decayed))],
    "its decay to the same end": [(1, every(100, 2000, 100), curve), (2, every(1000, 2000, 100), decayed)],
}


@pytest.mark.parametrize("name", [*AGAIN, *BRANCHES])
@pytest.mark.parametrize("column", ["slurm_job_id", "job", "run_id", "seed"])
def test_a_job_that_lost_much_is_one_run(column, name, tmp_path):
    """The later rows count where they agree with those that were; an id of no job, and a branch, stay apart."""
    parts = (AGAIN | BRANCHES)[name]
    rows = [(job, step, round(loss(step), 6)) for job, steps, loss in parts for step in steps]
    (tmp_path / "x.csv").write_text(f"{column},step,loss\n" + "".join(f"{j},{s},{x}\n" for j, s, x in rows))
    latest = {step: loss for _, step, loss in rows}
    whole = LogOptions(columns={"run": "-"})
    curves = logs.read(tmp_path / "x.csv", LogOptions())
    if name in BRANCHES or column == "seed":
        assert len(curves) == len(parts)
        assert column == "seed" or any("--column run=- reads all rows as one" in note for note in curves[0].notes)
        curves = logs.read(tmp_path / "x.csv", whole)
    (joined,) = curves
    kept = [step for step in sorted(latest) if name != "not as far yet" or step <= 1600]
    assert joined.frame["step"].tolist() == kept
    assert joined.frame["loss"].tolist() == [latest[step] for step in kept]


FORMS = {
    "nanogpt": "step {s:05d}/{end:05d} (1.00%) | loss: {x:.6f} | lrm: 1.00 | dt: 9.1ms",
    "text": "step:{s}/{end} train_loss:{x:.4f} train_time:50ms",
    "megatron": " iteration {s:8d}/{end:8d} | consumed samples: {s} | lm loss: {x:.6E} | loss scale: 1.0 |",
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("ends", itertools.permutations([100, 120, 80]))
def test_runs_of_other_ends_in_one_log_are_apart(form, ends, tmp_path):
    """The third is stopped at 50, resumed at 40, and extended from its end less 20: it is one run."""
    first, second, third = ends
    parts = [(0, 0, first, first), (1, 0, second, second), (2, 0, 50, third), (2, 40, third, third)]
    lines = [
        FORMS[form].format(s=s, end=end, x=6 - k - s / 100)
        for k, begin, last, end in [*parts, (2, third - 20, third + 60, third + 60)]
        for s in range(begin, last + 1, 10)
    ]
    (tmp_path / "x.log").write_text("\n".join(lines) + "\n")
    curves = logs.read(tmp_path / "x.log", LogOptions())
    assert [curve.log.end_step for curve in curves] == [first, second, third + 60]
    for k, curve in enumerate(curves):
        assert curve.run == f"x-{k + 1}"
        assert curve.frame["step"].tolist() == list(range(0, curve.log.end_step + 1, 10))
        assert np.allclose(curve.frame["loss"], 6 - k - curve.frame["step"] / 100, atol=1e-4)


def test_each_run_of_a_log_has_its_own_batch(tmp_path):
    lines = [
        line
        for batch, end in ((1024, 100), (4096, 60))
        for line in [f"Total batch size {batch:,} => accumulation: 1"]
        + [f"step {s}/{end} | loss: {6 - s / 100} | dt: 9.1ms" for s in range(0, end + 1, 10)]
    ]
    (tmp_path / "x.log").write_text("\n".join(lines) + "\n")
    assert [curve.frame["tokens"].iloc[-1] for curve in logs.read(tmp_path / "x.log", LogOptions())] == [102400, 245760]


def test_torchtitan_s_runs_have_the_ends_of_their_settings(tmp_path):
    """Its lines name none; three runs, of which the second is longer."""
    lines = [
        line
        for k, end in enumerate((60, 100, 40))
        for line in [f"global batch size 8, accumulation 1, sequence length 128, total steps {end} (warmup 5)"]
        + [f"step: {s}  loss:  {6 - k - s / 100}  grad_norm:  0.9" for s in range(10, end + 1, 10)]
    ]
    (tmp_path / "x.log").write_text("\n".join(lines) + "\n")
    curves = logs.read(tmp_path / "x.log", LogOptions())
    assert [(curve.log.end_step, curve.frame["loss"].iloc[-1]) for curve in curves] == [(60, 5.4), (100, 4), (40, 3.6)]
    assert all(curve.frame["tokens"].iloc[0] == 10 * 8 * 128 for curve in curves)


@pytest.mark.parametrize("lengths", [(50, 100, 150), (150, 100, 50), (100, 100, 57)])
def test_epochs_of_other_lengths_are_one_run_s(lengths, tmp_path):
    """What a line names behind its step is the end of the epoch."""
    lines = [
        f"Epoch {k + 1}/3 Step {s}/{length} loss: {6 - k - s / 200:.4f}"
        for k, length in enumerate(lengths)
        for s in range(1, length + 1)
    ]
    (tmp_path / "x.log").write_text("\n".join(lines) + "\n")
    (curve,) = logs.read(tmp_path / "x.log", LogOptions())
    assert len(curve.frame) == len(lines) and curve.frame["loss"].is_monotonic_decreasing


TITAN = "global batch size {b}, accumulation 1, sequence length {l}, total steps {end} (warmup 5)"
DUMP = "  seq_length ......... {l}\n  global_batch_size ......... {b}"
SETTINGS = {
    "torchtitan": (TITAN, "step: {s}  loss:  {x}  grad_norm:  0.9"),
    "NeoX": (DUMP, " iteration {s}/ {end} | learning rate: 1.0E-04 | lm loss: {x:.6E} |"),
    "Megatron": (DUMP, " iteration {s}/ {end} | consumed samples: {n} | lm loss: {x:.6E} |"),
}


@pytest.mark.parametrize("trainer", SETTINGS)
def test_each_run_has_the_tokens_of_the_settings_above_it(trainer, tmp_path):
    """The first was resumed, and its settings stand twice."""
    settings, form = SETTINGS[trainer]
    lines = [
        line
        for b, length, begin, end in ((8, 128, 0, 50), (8, 128, 50, 100), (4, 512, 0, 60))
        for line in [settings.format(b=b, l=length, end=100 if end == 50 else end)]
        + [
            form.format(s=s, n=s * b, end=100 if end == 50 else end, x=6 - s / 200)
            for s in range(begin + 10, end + 1, 10)
        ]
    ]
    (tmp_path / "x.log").write_text("\n".join(lines) + "\n")
    curves = logs.read(tmp_path / "x.log", LogOptions())
    assert [curve.frame["tokens"].iloc[-1] for curve in curves] == [100 * 1024, 60 * 2048]


@pytest.mark.parametrize("index", [False, True])
@pytest.mark.parametrize("copies", ["beside", "behind"])
def test_rows_that_stand_twice_are_one_run_s(copies, index, tmp_path):
    """Starts of one training under new names, the first three with a row each; of the same rows once the names part nothing."""
    rows = pd.DataFrame({"run_name": [*"abc"] + ["d"] * 12, "step": range(10, 160, 10)})
    rows["loss"] = 2 + 3 * rows["step"] ** -0.3
    twice = pd.concat([rows, rows], ignore_index=True)
    twice = twice.sort_values("step", kind="stable", ignore_index=True) if copies == "beside" else twice
    twice.to_csv(tmp_path / "x.csv", index=index)
    (curve,) = logs.read(tmp_path / "x.csv", LogOptions())
    assert curve.frame["step"].tolist() == rows["step"].tolist() and np.allclose(curve.frame["loss"], rows["loss"])
    assert "15 rows stand again later, equal in every column that is read: they count once" in curve.notes


def test_runs_of_rows_that_stand_twice_stay_apart(tmp_path):
    rows = [f"{name},{s},{x}" for name in "ab" for s, x in ((10, 6), (20, 5.5), (30, 5.25 if name == "a" else 5.2))]
    (tmp_path / "x.csv").write_text("\n".join(["run_name,step,loss", *rows, *rows]) + "\n")
    curves = logs.read(tmp_path / "x.csv", LogOptions())
    assert [(curve.run, curve.frame["loss"].tolist()) for curve in curves] == [
        ("a", [6, 5.5, 5.25]),
        ("b", [6, 5.5, 5.2]),
    ]


def test_rows_without_a_step_do_not_stand_twice(tmp_path):
    rows = [line for s in range(10, 60, 10) for line in (f'{{"step": {s}, "loss": {6 - s / 100}}}', '{"gpu": 77}')]
    (tmp_path / "x.jsonl").write_text("\n".join(rows) + "\n")
    (curve,) = logs.read(tmp_path / "x.jsonl", LogOptions())
    assert len(curve.frame) == 5 and not any("stand again" in note for note in curve.notes)
