"""The same known curve as trackers, tutorials and launchers of several ranks write it."""

import json
from types import SimpleNamespace

import pandas as pd
import pytest

from emergence_train.analysis import logs
from emergence_train.analysis.logs import LogOptions
from emergence_train.analysis.logs.wandb_offline import _row
from emergence_train.errors import InputError

STEPS = list(range(100, 3001, 100))
LOSSES = [round(2 + 3 * step**-0.3, 3) for step in STEPS]
ROWS = [*zip(STEPS, LOSSES)]


def text(form) -> str:
    return "".join(f"{form(step, loss)}\n" for step, loss in ROWS)


def in_epoch(step: int, base: int) -> str:
    """Step 100 of 1000 in one of three epochs."""
    return f"Epoch [{(step - 1) // 1000 + base}/3], Step [{(step - 1) % 1000 + 1}/1000]"


TEXTS = {
    "colours.log": text(
        lambda s, x: f"\x1b[32m10:00\x1b[0m | step \x1b[36m{s}\x1b[0m/3000 | loss \x1b[1;33m{x}\x1b[0m"
    ),
    "ranks.log": text(lambda s, x: f"[rank1]: step {s} loss {x + 1}\n[rank0]: step {s} loss {x}"),
    "torchrun.log": text(lambda s, x: f"[default1]:step={s} loss={x + 1:.3f}\n[default0]:step={s} loss={x:.3e}"),
    "last_rank.log": "rank 0: step 1 of the warm-up\n" + text(lambda s, x: f"rank 3: step: {s} loss: {x}"),
    "thousands.log": text(lambda s, x: f"step {s / 1000:.1f}k/10k | loss {x}"),
    "before.log": text(
        lambda s, x: f"{s / 1000:.1f}k/10k steps | {s / 1000:.1f}B tokens | loss={x:.3e} | 1.2k tokens/s"
    ),
    "tutorial.log": text(lambda s, x: f"{in_epoch(s, 1)}, Loss: {x}"),
    "from_zero.log": text(lambda s, x: f"{in_epoch(s, 0)}, Loss: {x}"),
    "pytorch.log": text(
        lambda s, x: f"| epoch   {s // 1001 + 1} | {(s - 1) % 1000 + 1:4d}/ 1000 batches | lr 5.00 | loss {x}"
    ),
    "mmengine.log": text(lambda s, x: f"2026/01/01 - mmengine - INFO - Iter(train) [{s:6d}/3000]  lr: 0.1  loss: {x}"),
    "in_epochs.log": text(
        lambda s, x: f"INFO - Epoch(train)  [{s // 1001 + 1}][{(s - 1) % 1000 + 1:4d}/1000]  lr: 0.1  loss: {x}"
    ),
    "lingua.jsonl": text(
        lambda s, x: json.dumps({"global_step": s, "acc_step": 0, "optim": {"lr": 1}, "loss": {"out": x}})
    ),
    "padded.log": text(
        lambda s, x: f"Epoch {(s - 1) // 1000} | Step {(s - 1) % 1000 + 1:8d}/1000 | Loss: {x} | LR: 0.1"
    ),
    "padded_wide.log": text(
        lambda s, x: f"epoch: {(s - 1) // 1000 + 1:6d}/3 |     Batches [{(s - 1) % 1000 + 1:6d}/1000] loss: {x}"
    ),
    "log.txt": text(lambda s, x: f"{s} val {x + 1:.4f}\n{s} hella 0.2413\n{s} train {x}") + "3100 trai",
    "minimind.log": text(
        lambda s, x: (
            f"Epoch:[{(s - 1) // 1000 + 1}/3]({(s - 1) % 1000 + 1}/1000), loss: {x}, aux_loss: 0.0000, lr: 0.0005"
        )
    ),
    "minimind_old.log": text(
        lambda s, x: (
            f"Epoch:[{(s - 1) // 1000 + 1}/3]({(s - 1) % 1000 + 1}/1000) loss:{x} lr:0.0005 epoch_Time:12.0min:"
        )
    ),
    "bars.log": "".join(
        f"\rEpoch {s // 1001}:  5%|# | {(s - 1) % 1000 + 1}/1000 [00:10<01:00, 1.6it/s, loss={x}, v_num=0]"
        for s, x in ROWS
    ),
    "bars_of.log": text(
        lambda s, x: (
            f"epoch {s // 1001 + 1}/3 [train]:  5%|# | {(s - 1) % 1000 + 1}/1000 [00:10<01:00, 1.6s/it, loss={x}]"
        )
    ),
    "bars_said.log": text(
        lambda s, x: (
            f"Epoch {s // 1001 + 1} loss {x} lr 3.0e-04:  5%|# | {(s - 1) % 1000 + 1}/1000 [00:10<01:00, 1.6it/s]"
        )
    ),
    "bar_said.log": text(lambda s, x: f"loss {x} lr 3.0e-04:   0%|# | {s}/3000 [00:10<10:00,  1.6it/s]"),
    "bare.log": text(
        lambda s, x: f"iter {s:6d} | train {x:.3f} | val {x + 1:.3f} | lr 1.7e-04 | 66.73 GB | {s / 1000}B tok"
    ),
    "bare_pairs.log": text(lambda s, x: f"step {s:5d} | train {x:.3f} val {x + 1:.3f}"),
    "counted_on.log": text(lambda s, x: f"Epoch {(s - 1) // 1000}, iteration {s}/3000 loss: {x}"),
    "cut.log": text(lambda s, x: f"step: {s}, loss: {x}") + "step: 3100, lo",
    "table.txt": "step,loss\n" + text(lambda s, x: f"{s},{x}"),
    "run-a-tag-train_loss.csv": "Wall time,Step,Value\n" + text(lambda s, x: f"1.7e9,{s},{x}"),
    "series.csv": ",step,value,timestamp\n" + text(lambda s, x: f"{s},{s}.0,{x},2026-01-01"),
    "comet.csv": "metricName,metricValue,step\n" + text(lambda s, x: f"loss,{x},{s}\nlr,0.1,{s}"),
}


EPOCHS = (
    "tutorial.log",
    "from_zero.log",
    "pytorch.log",
    "in_epochs.log",
    "padded.log",
    "padded_wide.log",
    "minimind.log",
)
EPOCHS += ("minimind_old.log", "bars.log", "bars_of.log", "bars_said.log")


@pytest.mark.parametrize("name", TEXTS)
def test_a_known_curve_is_read(name, tmp_path):
    (tmp_path / name).write_text(TEXTS[name])
    (curve,) = logs.read(tmp_path / name, LogOptions())
    assert curve.frame["step"].tolist() == STEPS and curve.frame["loss"].tolist() == LOSSES
    assert (name in EPOCHS) == any("counted through" in note for note in curve.notes)
    assert ("ranks" in name or "torchrun" in name) == any("those of rank 0 count" in note for note in curve.notes)
    if name == "before.log":
        assert curve.frame["tokens"].tolist() == [10**6 * s for s in STEPS] and curve.log.end_step == 10_000


@pytest.mark.parametrize("width", [1, 4, 9])
@pytest.mark.parametrize("end", [650, 651])
def test_padded_steps_of_epochs_are_one_run(end, width, tmp_path):
    """Steps of one digit have the most blanks before them: all three epochs count, with and without their last row."""
    rows = [(epoch, step, 2 + (epoch * 651 + step + 5) ** -0.4) for epoch in range(3) for step in range(0, end, 10)]
    lines = [f"Epoch {e} | Step {s:{width}d}/651 | Loss: {x:.4f} | LR: 0.1" for e, s, x in rows]
    (tmp_path / "x.log").write_text("\n".join(lines) + "\n")
    (curve,) = logs.read(tmp_path / "x.log", LogOptions())
    assert curve.frame["step"].tolist() == [epoch * 651 + step for epoch, step, _ in rows]
    assert [note for note in curve.notes if "counted through" in note] == [
        "steps are counted in each epoch: they are counted through"
    ]


SAMPLES = {
    "mnist.log": "Train Epoch: {e} [{n}/64000 ({p:.0f}%)]\tLoss: {x:.6f}",  # pytorch/examples
    "padded.log": "2022-01-01 INFO Train Epoch: {e} [{n:>8}/64000 ({p:.0f}%)] Data (t): 0.1 LR: 0.1 Loss: {x} (7)",  # open_clip
    "keyed.log": "Train Epoch: {e} [{n}/64000 ({p:3.0f}%)]   loss={x:.4f}",
}


@pytest.mark.parametrize("name", SAMPLES)
def test_samples_of_an_epoch_are_no_steps(name, tmp_path):
    """In batches of 64, to which each sample gives 512 tokens: what the message asks for counts these."""
    rows = [(s // 1001 + 1, (s - 1) % 1000 + 1, x) for s, x in ROWS]
    lines = [SAMPLES[name].format(e=epoch, n=64 * k, p=k / 10, x=x) for epoch, k, x in rows]
    (tmp_path / name).write_text("\n".join(lines) + "\n")
    with pytest.raises(InputError, match=r"--column step=sample --tokens-per-step N with the tokens of what it counts"):
        logs.read(tmp_path / name, LogOptions(tokens_per_step=32768))
    (curve,) = logs.read(tmp_path / name, LogOptions(tokens_per_step=512, columns={"step": "sample"}))
    assert curve.frame["tokens"].tolist() == [32768 * s for s in STEPS] and curve.frame["loss"].tolist() == LOSSES
    assert any(note.startswith("'sample' counts samples: the steps here are those") for note in curve.notes)


def test_bars_of_a_validation_part_no_epochs(tmp_path):
    """An epoch's last bar alone is left in a file, and a validation's with its own length behind it."""
    bar = "Epoch {e}/5: 100%|##| 935/935 [01:10<00:00, 13it/s, loss={x}]\n"
    other = "Validation: 100%|##| 19/19 [00:01<00:00, 19it/s, val_loss=9.5]\n"
    (tmp_path / "x.log").write_text("".join(bar.format(e=e, x=LOSSES[e]) + other for e in range(1, 6)))
    (curve,) = logs.read(tmp_path / "x.log", LogOptions())
    assert curve.frame["step"].tolist() == [935 * e for e in range(1, 6)] and curve.log.end_step == 935 * 5
    assert curve.frame["loss"].tolist() == LOSSES[1:6]


OWN_STEPS = [
    "epoch 1 (3/8) step {s} loss {x}",
    "epoch 1 (11/28 10:00) step {s} loss {x}",
    "epoch: 0, (8/8 ranks ok), iter: {s}, loss: {x}",
    "epoch 1, ({k}/30 shards) step {s} loss {x}",
    "epoch 1 step {s} loss {x} chunk: 10%|#| 3/10 [00:10<01:00, 1.6it/s]",
    "Epoch:[1/3]({k}/1000) step:{s} loss:{x}",
    "Epoch 1 (3/8) | {s}/3000 steps | loss: {x}",
    "epoch 1 (3/8) [batch={s}/3000] loss: {x}",
    "Epoch 1: 5%|#| {k}/1000 [00:10<01:00, 1.6it/s, loss={x}, step={s}]",
    "Epoch 1: 5%|#| {k}/1000 [00:10<01:00, 1.6it/s, update={s}, loss={x}]",
    "Train epoch: 3%|#| {s}/3000 [00:10<01:00, 1.6it/s, loss={x}]",
    "Training 3 epochs: 3%|#| {s}/3000 [00:10<01:00, 1.6it/s, loss={x}]",
    "Training (1000 steps/epoch): 3%|#| {s}/3000 [00:10<01:00, 1.6it/s, loss={x}]",
]


@pytest.mark.parametrize("form", OWN_STEPS)
def test_the_own_step_of_a_line_counts(form, tmp_path):
    """Whatever else its epoch counts beside it: shards, micro-batches, ranks."""
    (tmp_path / "x.log").write_text(text(lambda s, x: form.format(s=s, x=x, k=s // 100)))
    (curve,) = logs.read(tmp_path / "x.log", LogOptions())
    assert [*zip(curve.frame["step"], curve.frame["loss"])] == ROWS


@pytest.mark.parametrize(
    "form",
    [
        "{training}\n{validation}",
        "{validation}\n{training}",
    ],
)
def test_a_validation_is_counted_through_with_its_run(form, tmp_path):
    forms = {
        "training": "Epoch {e} | Step {k}/1000 | Loss: {x}",
        "validation": "Validation | Epoch {e} | Step {k}/1000 | Loss: 9",
    }
    both = form.format(**forms)
    (tmp_path / "x.log").write_text(text(lambda s, x: both.format(e=(s - 1) // 1000, k=(s - 1) % 1000 + 1, x=x)))
    (curve,) = logs.read(tmp_path / "x.log", LogOptions())
    assert [*zip(curve.frame["step"], curve.frame["loss"])] == ROWS and curve.log.end_step is None
    parted = logs.read(tmp_path / "x.log", LogOptions(columns={"run": "split"}))
    assert {curve.run: curve.frame["step"].tolist() for curve in parted} == {
        "train": STEPS,
        "validation": STEPS,
    }


def test_the_planned_end_is_the_training_s(tmp_path):
    (tmp_path / "x.log").write_text(text(lambda s, x: f"step {s}/6000 | loss {x}\nval step 20/20 loss {x + 1:.3f}"))
    (curve,) = logs.read(tmp_path / "x.log", LogOptions())
    assert curve.log.end_step == 6000 and curve.frame["step"].tolist() == STEPS


@pytest.mark.parametrize(
    "form",
    [
        "step {s} | train 9.87 | val 9.99\nstep {s} | loss {x} | lr 0.1",
        "step {s} time: data 0.1, train 0.5\n    loss: {x}\n    lr: 0.1",
        "step {s} | train 12.5 | val 0.2\n  loss: {x}",
    ],
)
def test_a_bare_number_beside_losses_is_none(form, tmp_path):
    """An evaluation of both splits between the steps' own losses, or times above them."""
    (tmp_path / "x.log").write_text(text(lambda s, x: form.format(s=s, x=x)))
    (curve,) = logs.read(tmp_path / "x.log", LogOptions())
    assert curve.frame["loss"].tolist() == LOSSES and not any("without a name" in note for note in curve.notes)


def test_tokens_are_enough_for_a_line(tmp_path):
    (tmp_path / "x.log").write_text(
        text(lambda s, x: f"tokens seen: {s / 1000:.3f}B tokens, train loss = {x}, ppl = 9")
    )
    (curve,) = logs.read(tmp_path / "x.log", LogOptions(tokens_per_step=1_000_000))
    assert curve.frame["step"].tolist() == STEPS and curve.frame["loss"].tolist() == LOSSES


def test_losses_without_steps_are_refused_with_a_remedy(tmp_path):
    """Lines, and columns that are a run each: what is done as the message says is read."""
    (tmp_path / "x.log").write_text(text(lambda s, x: f"INFO - Epoch {s // 1000} - Batch loss: {x}"))
    with pytest.raises(
        InputError, match="lines without a step, as 'INFO - Epoch 0 - Batch loss: .*write it before each"
    ):
        logs.read(tmp_path / "x.log", LogOptions())
    (tmp_path / "x.log").write_text(text(lambda s, x: f"step {s} loss {x}"))
    (curve,) = logs.read(tmp_path / "x.log", LogOptions())
    assert curve.frame["loss"].tolist() == LOSSES
    (tmp_path / "x.csv").write_text("size_50,size_100\n" + text(lambda s, x: f"{x},{x + 1}"))
    with pytest.raises(InputError, match="; where none counts steps, add a column step that does"):
        logs.read(tmp_path / "x.csv", LogOptions(columns={"loss": "size_*"}))
    (tmp_path / "x.csv").write_text("step,size_50,size_100\n" + text(lambda s, x: f"{s},{x},{x + 1}"))
    first, second = logs.read(tmp_path / "x.csv", LogOptions(columns={"loss": "size_*"}))
    assert (first.run, second.run) == ("50", "100") and first.frame["loss"].tolist() == LOSSES


def test_a_tag_of_no_loss_is_none(tmp_path):
    (tmp_path / "run-a-tag-train_lr.csv").write_text(TEXTS["run-a-tag-train_loss.csv"])
    with pytest.raises(InputError, match="no column was recognised as loss"):
        logs.read(tmp_path / "run-a-tag-train_lr.csv", LogOptions())


def test_an_index_of_pandas_is_a_column(tmp_path):
    pd.DataFrame({"loss": LOSSES}, pd.Index(STEPS, name="step")).to_parquet(tmp_path / "x.parquet")
    (curve,) = logs.read(tmp_path / "x.parquet", LogOptions())
    assert curve.frame["step"].tolist() == STEPS and curve.frame["loss"].tolist() == LOSSES


@pytest.mark.parametrize("of", ["mlruns", "mlruns/0", "mlruns/0/5f"])
def test_the_store_of_mlflow_is_read(of, tmp_path):
    """As mlflow 2.17 writes it; the last value of a step counts, and so does no line that is cut off."""
    run = tmp_path / "mlruns" / "0" / "5f"
    (run / "metrics" / "train").mkdir(parents=True)
    (run / "meta.yaml").write_text("artifact_uri: file:///x\nrun_id: 5f\nrun_name: mine\nstatus: 3\n")
    (run / "metrics" / "train" / "loss").write_text("17 9.9 100\n" + text(lambda s, x: f"17 {x} {s}") + "17 2.")
    (run / "metrics" / "lr").write_text("17 0.001 100\n17 0.001 3000\n")
    (curve,) = logs.read(tmp_path / of, LogOptions())
    assert curve.run == "mine" and set(curve.frame["lr"]) == {0.001}
    assert curve.frame["step"].tolist() == STEPS and curve.frame["loss"].tolist() == LOSSES
    for file in (run / "metrics" / "train" / "loss", run / "metrics" / "lr"):
        file.unlink()
    with pytest.raises(InputError, match="its runs have no metrics; name a run that has logged a loss"):
        logs.read(tmp_path / of, LogOptions())


def test_objects_in_a_history_are_nested_keys():
    """wandb 0.17 writes {"train": {"loss": 1}} as one item, 0.31 as the key train/loss."""
    item = SimpleNamespace(
        key="train", nested_key=[], value_json=json.dumps({"loss": 1.5, "media": [1], "a": {"b": 2}})
    )
    new = SimpleNamespace(key="", nested_key=["train", "lr"], value_json="0.1")
    assert _row([item, new]) == {"train/loss": 1.5, "train/a/b": 2, "train/lr": 0.1}


def test_tokens_in_a_group_are_tokens_if_they_rise(tmp_path):
    rows = text(lambda s, x: f"{s},{x},{1000 * s},4096,7")
    (tmp_path / "x.csv").write_text("step,loss,perf/tokens_seen,perf/batch_tokens,data/max_tokens\n" + rows)
    (curve,) = logs.read(tmp_path / "x.csv", LogOptions())
    assert curve.frame["tokens"].tolist() == [1000 * s for s in STEPS]
    (tmp_path / "x.csv").write_text("step,loss,perf/tokens\n" + text(lambda s, x: f"{s},{x},4096"))
    (curve,) = logs.read(tmp_path / "x.csv", LogOptions())
    assert set(curve.frame["tokens"]) == {0}


@pytest.mark.timeout(60)
def test_a_long_line_of_pairs_takes_no_time(tmp_path):
    """2 MB of losses and steps, a pair after another; hours where each loss looks through all before it."""
    curve = "".join(f"step {10 * k} train loss {5 - 0.01 * k:.2f} aux loss 0.5\n" for k in range(1, 40))
    path = tmp_path / "run.log"
    path.write_text(curve + "step 400 " + "train loss 4.6 step 400 ab=1, " * 70_000 + "\n")
    (curve,) = logs.read(path, LogOptions(tokens_per_step=1000))
    assert curve.frame["step"].tolist() == [10 * k for k in range(1, 41)] and curve.frame["loss"].iloc[-1] == 4.6
