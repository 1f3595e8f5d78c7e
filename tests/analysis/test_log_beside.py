"""What stands beside a loss in a log: its perplexity, the micro-batches of its step, and the planned end."""

import json
import math
import pprint

import numpy as np
import pytest

from emergence_train.analysis import logs
from emergence_train.analysis.logs import LogOptions
from emergence_train.errors import InputError

STEPS = np.arange(10, 210, 10)
LOSSES = 2 + 3 * STEPS**-0.3
SMOOTHED = [1.15 * loss / math.log(2) + 0.3 for loss in LOSSES]
BITS = [loss / math.log(2) for loss in LOSSES]
PERPLEXITIES = [math.exp(loss) for loss in LOSSES]


def read(folder, lines, name="run.log", **options):
    (folder / name).write_text("\n".join(lines) + "\n")
    (curve,) = logs.read(folder / name, LogOptions(**options))
    return curve, " ".join(curve.notes)


def lines_of(form):
    return [form.format(*row) for row in zip(STEPS, SMOOTHED, BITS, PERPLEXITIES, LOSSES)]


@pytest.mark.parametrize(
    ("form", "name"),
    [
        ("| epoch 001: {0} / 1891 loss={1:.4f}, nll_loss={2:.4f}, ppl={3:.2f}, num_updates={0}, lr=1e-5", "a.log"),
        ("step {0} nll_loss {2:.4f} loss {1:.4f} ppl {3:.2f}", "b.log"),
        ("step: {0} perplexity: {3:.2f} train/ce_loss: {4:.4f} train/loss: {1:.4f}", "c.log"),
        (
            '{{"train_loss": "{1:.4f}", "train_nll_loss": "{2:.4f}", "train_ppl": "{3:.2f}", "train_num_updates": "{0}"}}',
            "d.jsonl",
        ),
    ],
)
def test_the_loss_of_the_perplexity_is_taken(form, name, tmp_path):
    curve, notes = read(
        tmp_path, lines_of(form), name, columns={"step": "train_num_updates"} if name == "d.jsonl" else {}
    )
    np.testing.assert_allclose(curve.frame["loss"], LOSSES, rtol=1e-3)
    assert "is the loss of the perplexity beside it" in notes


@pytest.mark.parametrize("beside", ["avg_loss={2:.4f}", "ema_loss={2:.4f}", "val_loss={2:.4f}", "loss2={1:.4f}"])
def test_a_mean_of_the_perplexity_is_not_taken(beside, tmp_path):
    curve, _ = read(tmp_path, lines_of("step={0} loss={1:.4f} ppl={3:.2f} " + beside))
    np.testing.assert_allclose(curve.frame["loss"], SMOOTHED, rtol=1e-3)


def test_a_loss_that_is_named_stays(tmp_path):
    curve, notes = read(
        tmp_path, lines_of("step={0} loss={1:.4f} nll_loss={2:.4f} ppl={3:.2f}"), columns={"loss": "loss"}
    )
    np.testing.assert_allclose(curve.frame["loss"], SMOOTHED, rtol=1e-3)
    assert "beside it" not in notes


@pytest.mark.parametrize(
    "form",
    [
        "iter {0} | step {1}: loss {2:.4f}, iter time: 263.85 ms",
        "iter {0} step {1} | loss train: {2:.4f}, val: n/a | iter time: 263.85 ms",
        "step {1} iter {0}: loss {2:.4f}",
        "micro-step {0}, step {1}: loss {2:.4f}",
        '{{"iter": {0}, "step": {1}, "loss": {2:.4f}}}',
        '{{"loss": {2:.4f}, "micro_step": {0}, "global_step": {1}}}',
    ],
)
def test_steps_are_the_mean_of_micro_batches(form, tmp_path):
    losses = 3 + np.random.default_rng(3).random((20, 4)).round(4)
    lines = [form.format(4 * k + j + 1, k + 1, losses[k, j]) for k in range(20) for j in range(4)]
    curve, notes = read(tmp_path, lines, "run.jsonl" if form[0] == "{" else "run.log", tokens_per_step=100)
    assert curve.frame["step"].tolist() == list(range(1, 21)) and curve.frame["tokens"].iloc[-1] == 2000
    np.testing.assert_allclose(curve.frame["loss"], losses.mean(axis=1), atol=1e-9)
    assert "their mean is the step's loss" in notes and "resumed" not in notes


@pytest.mark.parametrize("form", ["train_steps: 9000, step: {0}, loss: {4}", "train_iters: 9000 iter: {0} loss: {4}"])
def test_a_planned_number_is_no_step(form, tmp_path):
    curve, _ = read(tmp_path, lines_of(form))
    assert curve.frame["step"].tolist() == STEPS.tolist()


def test_an_iteration_beside_a_time_is_the_step(tmp_path):
    curve, _ = read(tmp_path, [f"iter {k}: loss {5 - k / 100:.4f}, step {251 - k % 3} ms" for k in range(1, 30)])
    assert curve.frame["step"].tolist() == list(range(1, 30))


def test_a_resumed_step_is_no_micro_batch(tmp_path):
    rows = [(k, k, 5.0) for k in range(1, 11)] + [(k, k, 4.0) for k in range(10, 20)]
    curve, notes = read(
        tmp_path, [json.dumps({"iter": i, "step": k, "loss": loss}) for i, k, loss in rows], "run.jsonl"
    )
    assert curve.frame["loss"][9] == 4.0 and "logged again" in notes


@pytest.mark.parametrize("column", ["iter", "batch"])
def test_a_step_of_a_checkpoint_again_is_no_micro_batch(column, tmp_path):
    """A run that goes on at the step of its last row, and whose counter of batches goes on too."""
    rows = [(k, k, 5.0) for k in range(1, 11)] + [(k, k + 1, 4.0) for k in range(10, 20)]
    lines = [json.dumps({column: i, "step": k, "loss": loss}) for i, k, loss in [(j, k, loss) for k, j, loss in rows]]
    curve, notes = read(tmp_path, lines, "run.jsonl")
    assert curve.frame["loss"][9] == 4.0 and "logged again" in notes and "micro" not in notes


def test_batch_sizes_of_runs_are_no_micro_batches(tmp_path):
    lines = [json.dumps({"step": int(k), "batch": size, "loss": 400 / size}) for k in STEPS for size in (32, 64)]
    with pytest.raises(InputError, match="rows of equal steps differ by 'batch'"):
        read(tmp_path, lines, "run.jsonl")


def test_a_perplexity_of_a_mean_takes_no_loss(tmp_path):
    """That of the last steps' loss, about which the step's own scatters."""
    own = LOSSES * (1 + 0.05 * np.where(np.arange(20) % 2, 1, -1))
    rows = [{"step": int(k), "loss": a, "loss_100": b, "ppl": math.exp(b)} for k, a, b in zip(STEPS, own, LOSSES)]
    curve, notes = read(tmp_path, map(json.dumps, rows), "run.jsonl")
    np.testing.assert_allclose(curve.frame["loss"], own)
    assert "beside it" not in notes


@pytest.mark.parametrize(
    ("step", "end"),
    [
        ("current_steps", "total_steps"),
        ("step", "config/max_steps"),
        ("iter", "max_iters"),
        ("global_step", "max_train_steps"),
    ],
)
def test_a_constant_column_says_the_planned_end(step, end, tmp_path):
    rows = [{step: int(k), end: 8660, "loss": loss} for k, loss in zip(STEPS, LOSSES)]
    curve, notes = read(tmp_path, map(json.dumps, rows), "run.jsonl")
    assert curve.log.end_step == 8660 and f"planned end: step 8,660 from '{end}'" in notes.replace(".", "/")


@pytest.mark.parametrize(
    ("step", "end", "values"),
    [
        ("step", "total_steps", [150] * 20),
        ("step", "total_steps", range(300, 320)),
        ("step", "max_iters", [900] * 20),
        ("step", "max_steps", [2**63 - 1] * 20),
        ("step", "max_steps", [-1] * 20),
    ],
)
def test_another_column_says_no_planned_end(step, end, values, tmp_path):
    rows = [{step: int(k), end: last, "loss": loss} for k, loss, last in zip(STEPS, LOSSES, values)]
    assert read(tmp_path, map(json.dumps, rows), "run.jsonl")[0].log.end_step is None


@pytest.mark.parametrize("before", ["", "2025-10-15 11:33:41 | INFO | train "])
def test_an_epoch_between_bars_is_read(before, tmp_path):
    """fairseq's; the losses of its validation have the same names."""
    form = (
        before
        + "| epoch {0:03d} | loss {1:.4f} | nll_loss {2:.4f} | ppl {3:.2f} | wps 16185 | num_updates {0} | lr 1.5e-05"
    )
    lines = [
        line
        for k in range(20)
        for line in (
            lines_of(form)[k],
            f"| epoch {k:03d} | valid on 'valid' subset | loss 9.1 | nll_loss 9 | ppl 512 | num_updates {STEPS[k]}",
        )
    ]
    curve, _ = read(tmp_path, lines)
    np.testing.assert_allclose(curve.frame["loss"], LOSSES, rtol=1e-3)
    assert curve.frame["step"].tolist() == STEPS.tolist() and set(curve.frame["lr"]) == {1.5e-5}


def test_an_update_of_litgpt_counts_before_its_micro_batches(tmp_path):
    """The line marked as the step has the mean of its iterations, and the next ones are of the update behind it."""
    form = "Epoch 1 | iter {0} step {1} | loss train: {2}, val: n/a | iter time: 512.23 ms{3} remaining time: 1:02:03"
    lines = [form.format(4 * k + j, k, k + j / 10, " (step)" if j == 0 else "") for k in range(1, 21) for j in range(4)]
    curve, _ = read(tmp_path, lines)
    assert curve.frame["loss"].tolist() == list(range(1, 21))


def test_tokens_that_nobody_counted_are_none(tmp_path):
    rows = [{"current_steps": int(k), "loss": loss, "total_tokens": 0} for k, loss in zip(STEPS, LOSSES)]
    assert "tokens from" not in read(tmp_path, map(json.dumps, rows), "run.jsonl")[1]


@pytest.mark.parametrize("rows", [2, 1010])
def test_a_loss_that_is_0_throughout_is_refused(rows, tmp_path):
    lines = ["step,loss,ce", *(f"{k},0.0,{5 - k / 2000}" for k in range(1, rows + 1))]
    with pytest.raises(InputError, match=r"'loss' is 0 in each of its \d+ rows.* name a loss with --column loss=NAME$"):
        read(tmp_path, lines, "run.csv")
    assert read(tmp_path, lines, "run.csv", columns={"loss": "ce"})[0].frame["loss"].iloc[-1] == 5 - rows / 2000


@pytest.mark.parametrize(("key", "end"), [("global_step/max_steps", 1000), ("global_step", 1000), ("iteration", 1000)])
def test_a_step_of_planned_ones_in_json_is_read(key, end, tmp_path):
    """ms-swift's logging.jsonl."""
    rows = [
        {"loss": loss, "learning_rate": 1e-4, key: f"{k}/1000", "percentage": "1%"} for k, loss in zip(STEPS, LOSSES)
    ]
    curve, _ = read(tmp_path, map(json.dumps, rows), "logging.jsonl")
    assert curve.frame["step"].tolist() == STEPS.tolist() and curve.log.end_step == end


def test_fields_alone_in_their_lines_are_the_steps(tmp_path):
    """fms-fsdp's."""
    form = (
        "step: {0}\nloss: {4}\nLR: 0.0003\ntokens seen: {0}000\ngradient norm: 1.2\noverall token per gpu per sec: 4001"
    )
    curve, _ = read(tmp_path, ["--> running with 8 ranks", *lines_of(form), "done: 1"])
    assert curve.frame["step"].tolist() == STEPS.tolist() and curve.frame["tokens"].iloc[-1] == 200_000
    np.testing.assert_allclose(curve.frame["loss"], LOSSES)
    assert set(curve.frame["lr"]) == {3e-4}


def test_a_printed_dictionary_of_several_lines_is_a_row(tmp_path):
    """EasyLM's; the last field of it is the step."""
    rows = [
        {"accuracy": 0.2, "gradient_norm": 1.23, "learning_rate": 3e-4, "loss": float(loss), "param_norm": 12.0}
        for loss in LOSSES
    ]
    text = [f"\n{pprint.pformat(row | {'step': int(k)})}\n" for k, row in zip(STEPS, rows)]
    curve, _ = read(tmp_path, text)
    assert curve.frame["step"].tolist() == STEPS.tolist() and set(curve.frame["lr"]) == {3e-4}
    np.testing.assert_allclose(curve.frame["loss"], LOSSES)


def test_the_settings_of_torchtitan_give_tokens_and_end(tmp_path):
    plan = (
        "[rank0]:[titan] 2026-05-19 21:04:05,276 - root - INFO - Trainer is initialized with local batch size 160, "
        "global batch size 1280, gradient accumulation steps 1, sequence length 128, total steps 500 (warmup 600)"
    )
    lines = lines_of(
        "[rank0]:[titan] 2026-05-19 21:04:19,390 - root - INFO - step: {0}  loss: {4:.5f}  tps: 1,398  mfu: 5.23%"
    )
    curve, _ = read(tmp_path, [plan, *lines])
    assert curve.frame["tokens"].tolist() == (STEPS * 1280 * 128).tolist() and curve.log.end_step == 500


@pytest.mark.parametrize("rows", [2, 20])
def test_the_command_of_torchtitan_is_no_step(rows, tmp_path):
    """Its number of steps is that of the last row, at which a run would be at its end and the next begin."""
    head = [
        f"+ torchrun -m torchtitan.train --training.steps={STEPS[rows - 1]} --training.seq_len=128 --loss.num_chunks=6",
        "[titan] - INFO - Trainer is initialized with local batch size 8, global batch size 64, gradient accumulation steps 1, "
        f"sequence length 128, total steps {STEPS[rows - 1]} (warmup 600)",
    ]
    curve, _ = read(tmp_path, head + lines_of("[titan] - INFO - step: {0}  loss: {4:.5f}  tps: 1,398")[:rows])
    assert curve.frame["step"].tolist() == STEPS[:rows].tolist()
    assert curve.frame["tokens"].iloc[0] == 10 * 64 * 128


def test_a_step_of_planned_ones_in_a_printed_dictionary_is_read(tmp_path):
    """ms-swift's console, behind its bar."""
    form = "Train:  1%|1 | {0}/1000 [00:42<00:06, 3.14s/it]{{'loss': {4}, 'lr': 1e-4, 'global_step/max_steps': '{0}/1000'}}"
    for before in (form, form.partition("]")[2]):
        curve, _ = read(tmp_path, lines_of(before))
        assert curve.frame["step"].tolist() == STEPS.tolist() and curve.log.end_step == 1000
        np.testing.assert_allclose(curve.frame["loss"], LOSSES)
