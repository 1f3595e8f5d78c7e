"""Logs of other frameworks as curves. Each sample is written as its framework documents or prints it; the losses are known."""

import argparse
import json
import re

import numpy as np
import pandas as pd
import pytest

from emergence_train.analysis import logs
from emergence_train.analysis.logs import FORMATS, LogOptions, format_of
from emergence_train.cli_arguments import add_log_options
from emergence_train.errors import InputError

STEPS = np.arange(10, 210, 10)
LOSSES = np.round(2 + 3 * STEPS**-0.3, 6)
RATES = np.linspace(1e-3, 1e-4, len(STEPS))
ROWS = list(zip(STEPS.tolist(), LOSSES.tolist(), RATES.tolist()))


def text(path, lines):
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def plain(folder):
    return text(folder / "plain.csv", ["step,loss", *(f"{step},{loss}" for step, loss, _ in ROWS)])


def chart(folder):
    """W&B, "Export as CSV" of a panel: the x axis, then value, minimum and maximum of each run; empty where it has no point."""
    names = [f'"{run} - train/loss{end}"' for run in ("base", "big-1 - lr 3") for end in ("", "__MIN", "__MAX")]
    rows = [",".join(f'"{v}"' for v in (step, loss, 0, 9, loss - 1, 0, 9)) for step, loss, _ in ROWS]
    return text(folder / "wandb_export.csv", [",".join(['"Step"', *names]), *rows, '"500","","","","1.0","1.0","1.0"'])


def chart_by_steps_of_the_trainer(folder):
    """The same with another x axis: W&B then exports its own _step too."""
    head = '"train/global_step","a - _step","a - _step__MIN","a - _step__MAX","a - train/loss","a - train/loss__MIN"'
    return text(folder / "c.csv", [head, *(f"{step},{step + 7},1,2,{loss},0" for step, loss, _ in ROWS)])


def history_csv(folder):
    """run.history().to_csv(): rows of evaluations have no training loss."""
    rows = [f"{k},{step},1.5,{loss},{rate}," for k, (step, loss, rate) in enumerate(ROWS)]
    return text(folder / "h.csv", [",_step,_runtime,train/loss,train/lr,val/loss", *rows, "99,999,2.5,,,3.3"])


def history_jsonl(folder):
    rows = [{"_step": s, "_timestamp": 1.0, "train/loss": x, "train/lr": r} for s, x, r in ROWS]
    return text(folder / "h.jsonl", [*map(json.dumps, rows), json.dumps({"_step": 999, "val/loss": 3.3})])


def nested_jsonl(folder):
    """Tokens are logged, the learning rate stands in rows of its own, the last line is cut off."""
    rows = [{"iter": s, "tokens": 2048 * s, "train": {"loss": x}} for s, x, _ in ROWS]
    rates = [{"iter": s, "optim": {"lr": r}} for s, _, r in ROWS]
    (folder / "n.jsonl").write_text("\n".join([*map(json.dumps, [*rows, *rates]), '{"iter": 210, "tra']))
    return folder / "n.jsonl"


def trainer(folder):
    """trainer_state.json as transformers' own TrainerState writes it, in the place where the Trainer puts it."""
    state = pytest.importorskip("transformers").TrainerState(max_steps=400, global_step=200)
    state.log_history = [
        *({"loss": x, "grad_norm": 1.0, "learning_rate": r, "epoch": 0.1, "step": s} for s, x, r in ROWS),
        {"eval_loss": 3.3, "eval_runtime": 1.0, "epoch": 1.0, "step": 200},
        {"train_runtime": 9.0, "train_loss": 4.4, "epoch": 1.0, "step": 200},
    ]
    place = folder / "my-run" / "checkpoint-200"
    place.mkdir(parents=True)
    state.save_to_json(str(place / "trainer_state.json"))
    return folder / "my-run"


def nanogpt(folder):
    """nanoGPT's train.py: the evaluation prints a training loss of its own at the same steps."""
    lines = ["tokens per iteration will be: 491,520", "number of parameters: 123.59M"]
    for step, loss, _ in ROWS:
        lines += [f"step {step}: train loss 9.9999, val loss 9.8888", "saving checkpoint to out"]
        lines.append(f"iter {step}: loss {loss}, time 251.13ms, mfu 17.25%")
    return text(folder / "train.log", lines)


def llm_c(folder):
    return text(
        folder / "main.log",
        [
            f"step {step:4d}/19560 | loss {loss} (+nanz)| norm 0.3140 (+0.12z)| lr {rate:.8e} | 302.10 ms | 49.5% bf16 MFU | "
            "171126 tok/s"
            for step, loss, rate in ROWS
        ]
        + ["val loss 3.298511"],
    )


def megatron(folder):
    """training_log of Megatron-LM, after its dump of the arguments."""
    lines = [
        "  seq_length ...................................... 2048",
        "  train_iters ..................................... 400",
    ]
    lines += [
        f" [2026-01-01 00:00:00] iteration {step:8d}/     400 | consumed samples: {step * 16:12d} | elapsed time per iteration "
        f"(ms): 210.3 | learning rate: {rate:.6E} | global batch size:    16 | lm loss: {loss:.6E} | loss scale: 1.0 | "
        f"grad norm: 0.391 | number of skipped iterations:   0 | number of nan iterations:   0 |"
        for step, loss, rate in ROWS
    ]
    tail = " validation loss at iteration 200 | lm loss value: 3.3E+00 | lm loss PPL: 2.7E+01 | "
    return text(folder / "slurm-7.out", [*lines, tail])


# sample: (format, runs, whether the learning rate is in it, tokens a step, planned last step)
SAMPLES = {
    plain: ("csv", ["plain"], False, 0, None),
    chart: ("wandb", ["base", "big-1 - lr 3"], False, 0, None),
    chart_by_steps_of_the_trainer: ("wandb", ["a"], False, 0, None),
    history_csv: ("wandb", ["h"], True, 0, None),
    history_jsonl: ("jsonl", ["h"], True, 0, None),
    nested_jsonl: ("jsonl", ["n"], True, 2048, None),
    trainer: ("hf", ["my-run"], True, 0, 400),
    nanogpt: ("nanogpt", ["train"], False, 491520, None),
    llm_c: ("nanogpt", ["main"], True, 0, 19560),
    megatron: ("megatron", ["slurm-7"], True, 16 * 2048, 400),
}


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.__name__)
def test_log_of_each_format_is_read(sample, tmp_path):
    path = sample(tmp_path)
    name, runs, rated, per_step, end = SAMPLES[sample]
    assert format_of(path) == name
    curves = logs.read(path, LogOptions())
    assert [curve.run for curve in curves] == runs
    frame = curves[0].frame
    assert frame["step"].tolist() == STEPS.tolist()
    assert frame["loss"].tolist() == LOSSES.tolist()
    assert frame["tokens"].tolist() == (STEPS * per_step).tolist()
    np.testing.assert_allclose(frame["lr"], RATES if rated else np.full(len(STEPS), np.nan), rtol=1e-5)
    assert curves[0].log.end_step == end
    if len(curves) > 1:
        assert curves[1].frame["loss"].tolist() == [*(LOSSES - 1).tolist(), 1.0]


def test_event_files_of_tensorboard_are_read(tmp_path):
    """Written by torch's SummaryWriter; a resumed run has two files, whose steps overlap."""
    pytest.importorskip("tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    for run, part in (("a", ROWS[:12]), ("a", ROWS[10:]), ("b", ROWS)):
        with SummaryWriter(str(tmp_path / run)) as writer:
            for step, loss, rate in part:
                writer.add_scalar("train/loss", loss, step)
                writer.add_scalar("train/lr", rate, step)
                writer.add_scalar("eval/loss", 9, step)
    assert format_of(tmp_path) == "tensorboard"
    curves = logs.read(tmp_path, LogOptions())
    assert [curve.run for curve in curves] == ["a", "b"]
    for curve in curves:
        assert curve.frame["step"].tolist() == STEPS.tolist()
        np.testing.assert_allclose(curve.frame["loss"], LOSSES, rtol=1e-6)
        np.testing.assert_allclose(curve.frame["lr"], RATES, rtol=1e-6)


def test_options_fill_in_what_a_log_leaves_out(tmp_path):
    options = LogOptions(run="mine", params=60, tokens_per_step=512, columns={"loss": "val/loss"})
    path = text(tmp_path / "x.csv", ["iteration,loss,val/loss", "1,9,3", '"1,000",9,2'])
    (curve,) = logs.read(path, options)
    assert (curve.run, curve.params) == ("mine", 60)
    assert curve.frame[["step", "tokens", "loss"]].to_numpy().tolist() == [[1, 512, 3], [1000, 512000, 2]]
    assert "loss from 'val/loss'" in curve.notes[0]


def test_run_names_the_one_of_several_to_take(tmp_path):
    (curve,) = logs.read(chart(tmp_path), LogOptions(run="base"))
    assert curve.run == "base"
    with pytest.raises(InputError, match=r"no run 'bass' \(it has base, big-1 - lr 3\)"):
        logs.read(chart(tmp_path), LogOptions(run="bass"))


def test_what_cannot_be_used_is_left_out_and_counted(tmp_path):
    rows = [f"{step},{loss}" for step, loss, _ in ROWS]
    path = text(tmp_path / "x.csv", ["step,loss", *rows, "205,NaN", "200,1.5", "300,"])
    (curve,) = logs.read(path, LogOptions())
    assert curve.frame["step"].tolist() == STEPS.tolist() and curve.frame["loss"].iloc[-1] == 1.5
    assert "1 of 22 rows have no finite step and loss, the first is row 21" in curve.notes[1]
    assert "1 rows are of steps that were logged again later" in curve.notes[2]
    with pytest.raises(InputError, match="4 of 6 rows have no finite step and loss, the first is row 3"):
        logs.read(
            text(tmp_path / "y.csv", ["step,loss", "1,2", "2,2", *(f"{k},nan" for k in range(3, 7))]), LogOptions()
        )


def test_rows_of_a_branch_that_was_taken_back_are_left_out(tmp_path):
    """Resumed from step 20 with other steps logged: 25 and 35 of the first try are no rows of the run."""
    path = tmp_path / "log.csv"
    steps = [10, 20, 25, 35, 22, 32, 42, 52, 62, 72, 82]
    path.write_text("step,loss\n" + "".join(f"{step},{5 - step / 100}\n" for step in steps))
    (curve,) = logs.read(path, LogOptions())
    assert curve.frame["step"].tolist() == [10, 20, 22, 32, 42, 52, 62, 72, 82]
    assert any("2 rows are of steps that were logged again later" in note for note in curve.notes)


def test_a_log_with_its_newest_row_first_loses_none(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("step,loss\n" + "".join(f"{step},{5 - step / 100}\n" for step in range(90, 0, -10)))
    (curve,) = logs.read(path, LogOptions())
    assert curve.frame["step"].tolist() == list(range(10, 100, 10))


def test_all_that_is_missing_is_in_one_message(tmp_path):
    path = text(tmp_path / "x.csv", ["epoch,accuracy", "1,20"])
    with pytest.raises(
        InputError, match=r"step or loss \(it has epoch, accuracy\); give --column step=NAME --column loss"
    ):
        logs.read(path, LogOptions())


def test_json_lines_that_pandas_wrote_have_null_for_absent(tmp_path):
    frame = pd.DataFrame({"step": [1, 2, 3], "loss": [3.0, np.nan, 2.0], "val": [np.nan, 1.0, np.nan]})
    frame.to_json(tmp_path / "x.jsonl", orient="records", lines=True)
    (curve,) = logs.read(tmp_path / "x.jsonl", LogOptions())
    assert curve.frame["step"].tolist() == [1, 3] and len(curve.notes) == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.txt", "hello\n", "not a log that is known; give --format"),
        ("x.jsonl", '{"step": 1}\n[1]\n{"step": 2}\n', "row 2 is not a JSON object; remove that line"),
        ("x.jsonl", '{"step": 1}\n{"st\n{"step": 2}\n', "row 2 is not JSON"),
        ("x.csv", "step,loss\n", "has no rows"),
        ("x.csv", "step,loss\n1,\n", "no column was recognised as loss"),
        ("x.csv", '"Relative Time (Process)","a - loss"\n1,2\n', "export the chart with Step or tokens as x axis"),
        ("trainer_state.json", '{"log_history": [{"eval_accuracy": 1, "step": 1}]}', "set logging_steps"),
    ],
    ids=["unknown", "array", "broken", "empty", "no loss", "time", "no training loss"],
)
def test_what_is_no_log_is_refused_with_its_remedy(name, content, message, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        logs.read(tmp_path / name, LogOptions())
    assert name in str(caught.value)


def test_a_named_format_is_not_guessed(tmp_path):
    path = nanogpt(tmp_path).rename(tmp_path / "train.csv")
    assert logs.read(path, LogOptions(format="nanogpt"))[0].frame["loss"].tolist() == LOSSES.tolist()
    with pytest.raises(InputError, match="no line of an iteration"):
        logs.read(path, LogOptions(format="megatron"))


def test_every_format_says_what_it_reads():
    assert set(FORMATS) == {
        "tensorboard",
        "mlflow",
        "hf",
        "wandb",
        "jsonl",
        "megatron",
        "nanogpt",
        "text",
        "lightning",
        "csv",
    }
    assert all(entry.description for entry in FORMATS.values())


def test_the_commands_name_every_format():
    parser = argparse.ArgumentParser()
    add_log_options(parser)
    assert set(FORMATS) <= set(re.findall(r"\w+", parser.format_help()))


@pytest.mark.parametrize("name", FORMATS)
def test_a_directory_without_such_a_log(name, tmp_path):
    (tmp_path / "notes.txt").write_text("nothing\n")
    with pytest.raises(InputError, match=f"a directory without a log of {name}; name a file of it"):
        logs.read(tmp_path, LogOptions(format=name))


def test_steps_that_begin_anew_have_a_remedy(tmp_path):
    """Two stages of one run: the first is lost, which only its user can tell from a run that was begun again."""
    steps = [*range(20, 500, 20), *range(20, 800, 20)]
    path = text(tmp_path / "x.csv", ["step,loss", *(f"{step},{5 - k / 50}" for k, step in enumerate(steps))])
    (curve,) = logs.read(path, LogOptions())
    assert len(curve.frame) == 39 and "all its steps with --column step=NAME" in curve.notes[-1]
    whole = [f"{step},{20 * (k + 1)},{5 - k / 50}" for k, step in enumerate(steps)]
    path = text(tmp_path / "x.csv", ["step,whole,loss", *whole])
    (curve,) = logs.read(path, LogOptions(columns={"step": "whole"}))
    assert len(curve.frame) == len(steps) and "column step=NAME" not in curve.notes[-1]
