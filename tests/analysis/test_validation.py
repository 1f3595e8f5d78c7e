"""Losses of a validation between those of the training, under the same name: lines of text and rows of tables."""

import json

import pandas as pd
import pytest

import watch.run_files as run_files
from emergence_train.analysis import logs, runs
from emergence_train.analysis.logs import LogOptions
from emergence_train.analysis.logs.log import Log
from emergence_train.analysis.logs.validation import training_rows

STEPS = list(range(100, 4001, 100))
TRAIN = [(step, round(2 + 5 * step**-0.3, 4)) for step in STEPS]
HELD = [(step, round(2.4 + 5 * step**-0.3, 4)) for step in STEPS[4::5]]  # at steps of the training

LINES = {
    "[train] step: {} loss: {}": [
        "[valid] step: {} loss: {}",
        "[VAL] step: {} loss: {}",
        "[eval/c4] step: {} loss: {}",
    ],
    "step={} loss={}": ["step={} [eval] loss={}", "eval: step={}, loss={}", "[val_c4] step={} loss={}"],
    "step: {} loss: {}": ["Evaluation at step: {} loss: {}", "Held-out step: {} loss: {}", "step: {} loss: {} (val)"],
    "step {}: loss {}": ["validation: step {} loss {}", "step {}: test loss {}", "step {}: eval loss {} time 2.1s"],
    "train | step {} | loss {}": [
        "val   | step {} | loss {}",
        "test | step {} | loss {}",
        "dev set | step {} | loss {}",
    ],
    "10:03:12 INFO step: {} lr: 3e-4 loss: {}": ["10:03:12 INFO evaluating, step: {} lr: 3e-4 loss: {}"],
    "step: {} train_loss: {}": ["validate step: {} loss: {}", "eval step: {} loss: {}"],
    "split=train step={} loss={}": ["split=validation step={} loss={}", "step={} loss={} split: val"],
    "Train step {}/4000: loss = {}": ["Eval step {}/4000: loss = {}", "Validating: step {}/4000: loss = {}"],
    "step: {} eval_interval: 500 valid tokens: 4096 loss: {}": ["Eval, step: {} loss: {}"],
}


def read(path):
    (curve,) = logs.read(path, LogOptions())
    return list(zip(curve.frame["step"], curve.frame["loss"])), curve.notes


def spliced(held_step=0):
    """Rows in the order of time, a validation's `held_step` steps behind the training's: (is of a validation, step, loss)."""
    rows = [(False, *row) for row in TRAIN] + [(True, step + held_step, loss) for step, loss in HELD]
    return sorted(rows, key=lambda row: (row[1], row[0]))


@pytest.mark.parametrize("train, held", [(train, form) for train, forms in LINES.items() for form in forms])
@pytest.mark.parametrize("behind", [0, 50])
def test_a_line_of_a_validation_is_none_of_the_training(train, held, behind, tmp_path):
    lines = [(held if of_held else train).format(step, loss) for of_held, step, loss in spliced(behind)]
    (tmp_path / "x.log").write_text("\n".join(lines) + "\n")
    assert read(tmp_path / "x.log")[0] == TRAIN


@pytest.mark.parametrize(
    "line",
    [
        "step: {} val_acc: 0.3 loss: {}",
        "step {} | val loss 3.4000 | train loss {}",
        "valid tokens: 4096 | step: {} loss: {}",
        "[runs/test/train.py:10] step: {} loss: {}",
        "value 3 | step {} | loss {} | eval in 40s",
        "step: {} loss: {} val_loss: 3.4",
        "eval_interval=500 step={} loss={}",
        "step {} | loss {} | next eval step 500",
        "step {} next eval in 50 steps loss {}",
        "step {} | eval in 3m | loss {}",
        "eval: off | step: {} loss: {}",
        "step {} valid_tokens 4096 loss {}",
        "exp=eval-heavy step={} loss={}",
    ],
)
def test_a_field_of_a_validation_makes_no_line_its_own(line, tmp_path):
    """Half the lines are such, so that a line taken for a validation's would be missing."""
    forms = [line, line.replace("val loss 3.4000 | ", "").replace("val", "x").replace("test", "x")]
    text = "\n".join(forms[k % 2].format(*row) for k, row in enumerate(TRAIN))
    (tmp_path / "x.log").write_text(text + "\n")
    assert read(tmp_path / "x.log")[0] == TRAIN


COLUMNS = {
    "split": ("train", "val"),
    "phase": ("training", "evaluation"),
    "mode": (None, "test"),
    "kind": ("warm", "validation/c4"),
    "whatever": ("train_step", "eval_step"),
    "is_eval": (False, True),
    "validation": ("false", "true"),
    "is_training": (True, False),
    "do_eval": (0, 1),
}


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_a_row_of_a_validation_is_none_of_the_training(column, form, tmp_path):
    rows = [{"step": step, "loss": loss, column: COLUMNS[column][held]} for held, step, loss in spliced()]
    rows = [{name: cell for name, cell in row.items() if cell is not None} for row in rows]
    path = tmp_path / f"x.{form}"
    if form == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        lines = [f"{row['step']},{row.get(column, '')},{row['loss']}\n" for row in rows]
        path.write_text(f"step,{column},loss\n" + "".join(lines))
    read_rows, notes = read(path)
    assert read_rows == TRAIN
    assert any(f"left out: {len(HELD)} rows of a validation" in note for note in notes)
    if column != "mode":
        assert len(logs.read(path, LogOptions(columns={"run": column}))) == 2


def test_a_training_that_calls_its_loss_otherwise_counts(tmp_path):
    rows = [
        {"step": s, "loss" if held else "train_loss": x, "split": "val" if held else ""} for held, s, x in spliced()
    ]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read(tmp_path / "x.jsonl")[0] == TRAIN
    (curve,) = logs.read(tmp_path / "x.jsonl", LogOptions(columns={"loss": "loss"}))
    assert list(zip(curve.frame["step"], curve.frame["loss"])) == HELD


def test_a_validation_alone_is_the_curve(tmp_path):
    """Its tokens and rate too; and columns of other words leave nothing out."""
    (tmp_path / "x.log").write_text("".join(f"[eval] step: {s} loss: {x} tokens: {10 * s}\n" for s, x in TRAIN))
    (curve,) = logs.read(tmp_path / "x.log", LogOptions())
    assert curve.frame["tokens"].tolist() == [10 * s for s in STEPS]
    assert any("no rows of the training" in note for note in curve.notes)
    text = "".join(
        f"{s},{x},{host},{k % 2}\n" for k, (s, x) in enumerate(TRAIN) for host in [("dev-1", "gpu-2")[k % 2]]
    )
    (tmp_path / "x.csv").write_text("step,loss,host,flag\n" + text)
    assert read(tmp_path / "x.csv")[0] == TRAIN


@pytest.mark.parametrize("words", [("base", "eval_heavy"), ("train", "small_val_mix")])
def test_a_run_of_a_validations_name_stays(words, tmp_path):
    text = "".join(f"{run},{word},{s},{x}\n" for run, word in zip("ab", words) for s, x in TRAIN)
    (tmp_path / "x.csv").write_text("run,kind,step,loss\n" + text)
    curves = logs.read(tmp_path / "x.csv", LogOptions())
    assert [list(zip(curve.frame["step"], curve.frame["loss"])) for curve in curves] == [TRAIN, TRAIN]


def test_a_stage_and_rows_with_both_losses_stay(tmp_path):
    half = len(TRAIN) // 2
    stages = "".join(f"{'pretrain' if k < half else 'dev'},{s},{x}\n" for k, (s, x) in enumerate(TRAIN))
    (tmp_path / "x.csv").write_text("stage,step,loss\n" + stages)
    assert read(tmp_path / "x.csv")[0] == TRAIN
    events = [
        {"event": "eval" if k % 4 == 3 else "log", "step": s, "loss": x} | ({"val_loss": x + 1} if k % 4 == 3 else {})
        for k, (s, x) in enumerate(TRAIN)
    ]
    (tmp_path / "y.jsonl").write_text("".join(json.dumps(row) + "\n" for row in events))
    assert read(tmp_path / "y.jsonl")[0] == TRAIN


@pytest.mark.parametrize(
    "before", [b"", b"\xef\xbb\xbf", b"\n", b'{"x": 1}\n'], ids=["plain", "BOM", "blank", "another"]
)
def test_a_log_of_ours_is_known_after_a_bad_line(tmp_path, before):
    """One that other programs' logs are read as would have a run of NaN, and rows of a validation to leave out."""
    path = run_files.write(tmp_path / "r", 60, every=20) / "metrics.jsonl"
    path.write_bytes(before + path.read_bytes())
    (series,) = runs.load([path])
    assert series.loss.tolist() == [round(run_files.loss_at(step), 6) for step in range(1, 61)]


def test_rows_without_a_run_are_parted_as_those_of_one(tmp_path):
    """A column of runs that few rows have: its empty cells are no group that may be lost."""
    cells = [{"run": "r"}, *({"step": step, "loss": loss, "kind": "train"} for step, loss in TRAIN)]
    cells += [{"step": step, "loss": loss, "kind": "validation"} for step, loss in HELD]
    log = Log("r", tmp_path, pd.DataFrame(cells))
    kept = training_rows(log, {"step": "step", "loss": "loss", "run": "run"}, named=False).rows.dropna(subset="step")
    assert list(zip(kept["step"], kept["loss"])) == TRAIN
