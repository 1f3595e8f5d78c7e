"""TensorBoard's event files: the order of writing, tensors, and tags that are logged by samples. The curve is known."""

import struct

import numpy as np
import pytest

from emergence_train.analysis import logs
from emergence_train.analysis.logs import LogOptions
from emergence_train.analysis.logs.tensorboard import _event_files
from emergence_train.errors import InputError

EVERY = range(10, 710, 10)


def loss_at(step):
    return 2.6 + 7.9 / (1 + np.asarray(step) / 40) ** 0.55


def write(folder, steps, left_from=None, purge_step=None):
    """Loss and rate by torch's SummaryWriter; from step `left_from` on the loss is 0.5 higher, in a branch that is left later."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder), purge_step=purge_step) as writer:
        for step in steps:
            writer.add_scalar("train/loss", loss_at(step) + (0.5 if left_from and step >= left_from else 0.0), step)
            writer.add_scalar("train/lr", 1e-3 / step, step)
            writer.add_scalar("throughput vs samples", 7000.0, 256 * step)


@pytest.mark.parametrize("again", [range(410, 460, 10), range(405, 460, 10), range(405, 1000, 10)])
def test_branch_that_was_left_does_not_count(tmp_path, again):
    """A run resumed from 400 in the same directory: not yet as far as it was, between the rows it had, beyond them."""
    pytest.importorskip("tensorboard")
    write(tmp_path, EVERY, left_from=401)
    write(tmp_path, again)
    (curve,) = logs.read(tmp_path, LogOptions())
    kept = [*(step for step in EVERY if step < again[0]), *again]
    assert curve.frame["step"].tolist() == kept
    np.testing.assert_allclose(curve.frame["loss"], loss_at(kept), rtol=1e-6)
    np.testing.assert_allclose(curve.frame["lr"], 1e-3 / np.array(kept), rtol=1e-6)
    assert f"{len(EVERY) + len(again) - len(kept)} rows are of steps that were logged again" in curve.notes[-1]


def test_purged_steps_do_not_count(tmp_path):
    """The writer said so, with another interval: step 410 of the branch that was left lies before the first row after it."""
    pytest.importorskip("tensorboard")
    write(tmp_path, EVERY, left_from=401)
    write(tmp_path, range(420, 800, 20), purge_step=401)
    (curve,) = logs.read(tmp_path, LogOptions())
    assert curve.frame["step"].tolist() == [*range(10, 410, 10), *range(420, 800, 20)]
    np.testing.assert_allclose(curve.frame["loss"], loss_at(curve.frame["step"]), rtol=1e-6)


def test_event_files_are_in_the_order_of_writing(tmp_path):
    names = [
        f"events.out.tfevents.{end}"
        for end in ("1700000001.host7.31.9", "1700000001.host7.31.10", "1700000002.host1.4.0")
    ]
    for name in reversed(names):
        (tmp_path / name).touch()
    assert [file.name for file in _event_files(tmp_path)] == names


@pytest.mark.parametrize(
    ("kind", "form"), [("DT_FLOAT", "<f"), ("DT_DOUBLE", "<d"), ("DT_HALF", "<e"), ("DT_INT64", "<q")]
)
def test_scalars_that_are_tensors_are_read(tmp_path, kind, form):
    """As TensorFlow 2 writes them, in tensor_content; beside a text and a histogram, which are none."""
    pytest.importorskip("tensorboard")
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.summary.writer.event_file_writer import EventFileWriter
    from tensorboard.util.tensor_util import make_tensor_proto

    losses = {step: struct.unpack(form, struct.pack(form, round(float(loss_at(step)) * 16)))[0] for step in EVERY}
    writer = EventFileWriter(str(tmp_path))
    for step, loss in losses.items():
        scalar = TensorProto(dtype=kind, tensor_content=struct.pack(form, loss))
        others = [Summary.Value(tag="loss", tensor=make_tensor_proto(other)) for other in ("a", [1.0])]
        values = [Summary.Value(tag="loss", tensor=scalar), *others]
        writer.add_event(Event(step=step, summary=Summary(value=values)))
    writer.close()
    (curve,) = logs.read(tmp_path, LogOptions())
    assert dict(zip(curve.frame["step"], curve.frame["loss"])) == losses


@pytest.mark.parametrize("name", ["Train/Samples/train_loss", "lm loss vs samples", "loss_vs_tokens"])
@pytest.mark.parametrize("step", ["step", "_step"])
def test_loss_by_samples_asks_for_their_tokens(tmp_path, name, step):
    """What the message asks for makes of samples their tokens: 2,048 each; of tokens themselves."""
    path = tmp_path / "log.csv"
    path.write_text("\n".join([f"{step},{name}", *(f"{256 * k},{loss_at(k)}" for k in EVERY)]) + "\n")
    counted, each = ("tokens", 1) if "tokens" in name else ("samples", 2048)
    columns = {"loss": name}
    with pytest.raises(InputError, match=f"logged by {counted}, and '{step}' counts them; give --column step={step} "):
        logs.read(path, LogOptions(columns=columns, tokens_per_step=524288))
    (curve,) = logs.read(path, LogOptions(columns={**columns, "step": step}, tokens_per_step=each))
    assert curve.frame["tokens"].tolist() == [256 * k * each for k in EVERY]


def test_loss_by_samples_beside_other_steps_is_read(tmp_path):
    """A trainer's own steps beside the logger's, and a loss of which samples are a part of the name only."""
    for head in ("global_step,train/samples/loss", "step,train/loss_of_samples", "step,eval/samples/loss"):
        path = tmp_path / "log.csv"
        path.write_text("\n".join([head, *(f"{k},{loss_at(k)}" for k in EVERY)]) + "\n")
        (curve,) = logs.read(path, LogOptions(columns={"loss": head.split(",")[1]}))
        assert curve.frame["step"].tolist() == [*EVERY]
