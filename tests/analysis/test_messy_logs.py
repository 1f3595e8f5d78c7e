"""Logs as people make them by hand or with tools that we have not heard of. The losses are known."""

import json
import math

import pytest

from emergence_train.analysis import logs
from emergence_train.analysis.logs import LogOptions
from emergence_train.analysis.scores import ScoreOptions, with_scores
from emergence_train.errors import InputError

STEPS = list(range(100, 3001, 100))
LOSS = {step: round(2 + 3 * step**-0.3, 4) for step in STEPS}


def lines(form) -> str:
    return "".join(form(step, LOSS[step]) + "\n" for step in STEPS)


MESSY = {
    "bar.log": lines(
        lambda s, x: f"\rTraining:  {s // 30}%|##   | {s}/3000 [00:10<01:00, 9.1it/s, loss={x:.4f}, lr=0.001]"
    ),
    "steps.log": lines(
        lambda s, x: f"Steps:  {s // 30}%|##   | {s}/3000 [00:10<01:00, 9.1it/s, lr=0.001, step_loss={x}]"
    ),
    "rows.json": json.dumps([{"step": s, "train": {"loss": LOSS[s]}, "lr": 1e-3} for s in STEPS]),
    "columns.json": json.dumps({"step": STEPS, "loss": list(LOSS.values())}),
    "pandas.json": json.dumps({"step": dict(enumerate(STEPS)), "loss": dict(enumerate(LOSS.values()))}),
    "thousands.csv": "Step,Train Loss\n" + lines(lambda s, x: f"{s / 1000}k,{x}"),
    "units.csv": "timestamp;iteration;loss (nats)\n" + lines(lambda s, x: f"2026-11-01;{s};{x}".replace(".", ",")),
    "bits.csv": "step,loss [bits]\n" + lines(lambda s, x: f"{s},{x / math.log(2):.9f}"),
    "logger.log": lines(
        lambda s, x: f"2026-11-01 10:00:00 | INFO | t:log:123 - epoch=0 global_step={s} train/loss={x} lr=1e-3"
    ),
    "python.log": lines(lambda s, x: str({"step": s, "train": {"loss": x}, "lr": 1e-3})),
    "prefix.log": lines(lambda s, x: "[rank0] 10:00:00 INFO " + json.dumps({"step": s, "loss": x})),
    "yaml.log": lines(lambda s, x: f"- step: {s}\n  loss: {x}"),
    "fairseq.log": lines(
        lambda s, x: (
            f'| INFO | train_inner | {{"update": 0.1, "loss": "{x / math.log(2):.6f}", "ppl": "{math.exp(x):.2f}", '
            f'"num_updates": "{s}"}}'
        )
    ),
    "twice.csv": "step,loss\n" + lines(lambda s, x: f"{s},{x}").replace("1500,", "step,loss\n1500,"),
    "long.csv": "Run ID,Metric,Step,Value\n" + lines(lambda s, x: f"a,loss,{s},{x}\na,lr,{s},0.001"),
}


@pytest.mark.parametrize("name", MESSY)
def test_a_messy_log_is_read(name, tmp_path):
    (tmp_path / name).write_text(MESSY[name], newline="")
    (curve,) = logs.read(tmp_path / name, LogOptions())
    assert curve.frame["step"].tolist() == STEPS
    assert curve.frame["loss"].tolist() == pytest.approx(list(LOSS.values()), abs=2e-6)


REFUSED = {
    # a counter of batches begins anew in each epoch: read as steps, one epoch would be left
    "epochs.csv": ("epoch,batch,loss\n" + lines(lambda s, x: f"{s // 1000},{s % 1000},{x}"), "recognised as step"),
    "bar.log": (
        lines(lambda s, x: f"Epoch 1: 5%|#| {64 * s}/192000 [00:10<01:00, 160samples/s, loss={x}]"),
        "without a step",
    ),
    "resumed.log": (
        lines(lambda s, x: f"Epoch 2/3: 5%|#| {s}/3000 [00:10<01:00, 1.6it/s, loss={x}]"),
        "without a step",
    ),
    "lengths.log": (
        lines(lambda s, x: f"Epoch {s // 1001}: 5%|#| {(s - 1) % 1000 + 1}/{1000 - s // 2001} [00:10<01:00, loss={x}]"),
        "without a step",
    ),
    "times.log": (lines(lambda s, x: f"step {s} ce: {x} | train 12.5 | val 3.3"), "not a log that is known"),
    "parts.log": (lines(lambda s, x: f"step {s} | data 0.012 | train 0.533 | opt 0.1"), "not a log that is known"),
    "date.log": (lines(lambda s, x: f"epoch 1 (11/28 10:00) loss {x}"), "without a step"),
    "epoch.log": (lines(lambda s, x: f"Epoch:  5%|#| {s}/3000 [00:10<01:00, loss={x}]"), "without a step"),
    "unit.log": (lines(lambda s, x: f" 5%|#| {s}/3000 [00:10<01:00, 1.19epoch/s, loss={x}]"), "without a step"),
    "negative.csv": ("step,loss\n" + lines(lambda s, x: f"{s},{-x}"), "'loss' is negative, as a log-likelihood is"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_be_misread_is_refused(name, tmp_path):
    content, message = REFUSED[name]
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message):
        logs.read(tmp_path / name, LogOptions())


def test_scores_with_their_errors_are_read(tmp_path):
    head = "model,step,params,tokens,loss,task,acc\n"
    (tmp_path / "x.csv").write_text(head + "m,10,70M,10K,3,piqa,0.51 ± 0.01\nm,20,70M,20K,2,piqa,0.62+-0.01\n")
    (frame,), _ = with_scores([tmp_path / "x.csv"], ScoreOptions())
    assert frame.frame["value"].tolist() == [0.51, 0.62] and frame.frame["tokens"].tolist() == [10_000, 20_000]
    (tmp_path / "x.csv").write_text(head + "m,10,70M,10K,3,piqa,good\n")
    with pytest.raises(InputError, match="none of its scores is a number; name their column"):
        with_scores([tmp_path / "x.csv"], ScoreOptions())
