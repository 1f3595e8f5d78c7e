"""PositionCallback for Lightning: sums equal to those of the losses that the steps return, and a run resumed."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

from emergence_train.errors import InputError
from emergence_train.recorder import tables, token_losses
from support import metrics, run_python

lightning = pytest.importorskip("lightning.pytorch")

SEQUENCE, VOCABULARY = 6, 11


class Module(lightning.LightningModule):
    def __init__(self, hide=False, padding=None):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.hide, self.seen = nn.Embedding(VOCABULARY, VOCABULARY), hide, []
        self.padding = padding

    def training_step(self, batch, index):
        logits = self.table(batch[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        if self.hide:
            return loss
        losses, correct = token_losses(logits, batch[:, 1:])
        self.seen.append(losses)
        result = {"loss": loss, "token_losses": losses, "correct": correct}
        return result if self.padding is None else result | {"mask": batch[:, 1:] != self.padding}

    def validation_step(self, batch, index, dataloader_idx=0):
        losses, correct = token_losses(self.table(batch[:, :-1]), batch[:, 1:])
        return {"token_losses": losses, "correct": correct}

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.5)


def fit(folder, steps, module, resume=None, size=40, split="iid", loaders=1, callbacks=(), rows=1, **options):
    from emergence_train.callbacks.lightning import PositionCallback

    generator = torch.Generator().manual_seed(1)
    texts = torch.randint(0, VOCABULARY, (size, SEQUENCE + 1), generator=generator)
    trainer = lightning.Trainer(
        max_steps=steps,
        accelerator="cpu",
        accumulate_grad_batches=2,
        val_check_interval=min(8, size // 2),
        log_every_n_steps=rows,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[PositionCallback(folder / "mine", params=10, sequence=SEQUENCE, split=split), *callbacks],
        **options,
    )
    held_out = [DataLoader(texts[: 4 + 2 * k], 2) for k in range(loaders)]
    trainer.fit(module, DataLoader(texts, 2), held_out, ckpt_path=resume, weights_only=resume and False)
    return trainer, texts


@pytest.mark.filterwarnings("ignore")
def test_a_lightning_run_is_recorded_and_resumed(tmp_path):
    module = Module()
    trainer, rows = fit(tmp_path, 4, module)
    frame = tables.read(tables.POSITIONS, tmp_path / "mine")
    train = frame[(frame["step"] == 4) & (frame["split"] == "train")]
    expected = torch.cat(module.seen).double().sum(0)
    np.testing.assert_allclose(train["loss_sum"], expected, rtol=1e-6)
    assert (train["count"] == 16).all() and train["tokens"].unique() == [16 * SEQUENCE]
    losses, correct = token_losses(module.table(rows[:4, :-1]), rows[:4, 1:])
    iid = frame[(frame["step"] == 4) & (frame["split"] == "iid")]
    np.testing.assert_allclose(iid["loss_sum"], losses.double().sum(0), rtol=1e-6)
    np.testing.assert_array_equal(iid["correct"], correct.sum(0))
    means = [torch.cat(module.seen[k : k + 2]).mean().item() for k in range(0, 8, 2)]
    assert [row["loss"] for row in metrics(tmp_path / "mine")] == pytest.approx(means, rel=1e-5)

    trainer.save_checkpoint(tmp_path / "last.ckpt")
    fit(tmp_path, 8, Module(), tmp_path / "last.ckpt")
    assert [(row["step"], row["tokens"]) for row in metrics(tmp_path / "mine")] == [(k, 24 * k) for k in range(1, 9)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("saved", [3, 4, 6])  # validated at 4 and 8
def test_a_run_saved_between_validations_loses_no_sums(saved, tmp_path):
    from lightning.pytorch.callbacks import ModelCheckpoint

    saving = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=saved, save_top_k=-1)
    fit(tmp_path, 7, Module(), callbacks=[saving])
    fit(tmp_path, 8, Module(), tmp_path / f"step={saved}.ckpt")
    frame = tables.read(tables.POSITIONS, tmp_path / "mine")
    counts = frame[frame["split"] == "train"].groupby("step")["count"].first().to_dict()
    assert counts == {4: 16, 8: 16} and frame["tokens"].unique().tolist() == [16 * SEQUENCE, 32 * SEQUENCE]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("rows", [1, 4])
def test_a_killed_run_resumes_between_validations(rows, tmp_path):
    """Saved at 6, killed at 7, validated at 4 and 8: each step's losses are in the tables once, and its row in the curve."""
    from lightning.pytorch.callbacks import ModelCheckpoint

    class Kill(lightning.Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 7 and not (tmp_path / "killed").exists():
                shutil.copytree(tmp_path / "whole", tmp_path / "killed")  # what is on the disk then

    saving = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=6, save_top_k=-1)
    before, after = Module(), Module()
    fit(tmp_path / "whole", 8, before, callbacks=[saving, Kill()], rows=rows)
    fit(tmp_path / "killed", 8, after, tmp_path / "step=6.ckpt", rows=rows)
    frame = tables.read(tables.POSITIONS, tmp_path / "killed" / "mine")
    train = frame[(frame["step"] == 8) & (frame["split"] == "train")]
    expected = torch.cat([*before.seen[8:12], *after.seen]).double().sum(0)  # two micro-batches a step
    np.testing.assert_allclose(train["loss_sum"], expected, rtol=1e-6)
    assert (train["count"] == 16).all() and train["tokens"].unique() == [32 * SEQUENCE]
    steps = range(rows, 9, rows)
    curve = metrics(tmp_path / "killed" / "mine")
    assert [(row["step"], row["tokens"]) for row in curve] == [(k, 4 * k * SEQUENCE) for k in steps]


@pytest.mark.filterwarnings("ignore")
def test_each_data_loader_is_a_split(tmp_path):
    fit(tmp_path, 4, Module(), split=["iid", "books"], loaders=2)
    frame = tables.read(tables.POSITIONS, tmp_path / "mine")
    counts = frame[frame["step"] == 4].groupby("split")["count"].first().to_dict()
    assert counts == {"train": 16, "iid": 4, "books": 6}
    with pytest.raises(InputError, match="2 data loaders of validation and 1 splits"):
        fit(tmp_path / "other", 4, module := Module(), loaders=2)
    assert not module.seen, "before the first step"
    for split in ("train", ["iid", "iid"]):
        with pytest.raises(InputError, match="give each a name of its own, other than train"):
            fit(tmp_path / "other", 4, Module(), split=split)


@pytest.mark.filterwarnings("ignore")
def test_an_epochs_last_step_is_logged_whole(tmp_path):
    """Of three micro-batches an epoch the last is a step of its own, and Lightning halves its loss like the others'."""
    module = Module()
    fit(tmp_path, 4, module, size=6)
    seen = [losses.mean().item() for losses in module.seen]
    means = [np.mean(seen[0:2]), seen[2], np.mean(seen[3:5]), seen[5]]
    assert [row["loss"] for row in metrics(tmp_path / "mine")] == pytest.approx(means, rel=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_a_step_that_returns_no_token_losses_is_named(tmp_path):
    with pytest.raises(InputError, match="training_step returns no 'token_losses'"):
        fit(tmp_path, 1, Module(hide=True))


@pytest.mark.filterwarnings("ignore")
def test_what_the_mask_leaves_out_is_no_token(tmp_path):
    """Tokens are the predictions that count, of the positions' own sums."""
    fit(tmp_path, 4, Module(padding=3))
    frame = tables.read(tables.POSITIONS, tmp_path / "mine")
    train = frame[(frame["step"] == 4) & (frame["split"] == "train")]
    tokens = train["count"].sum()
    assert 0 < tokens < 16 * SEQUENCE and train["tokens"].unique() == [tokens]
    assert metrics(tmp_path / "mine")[-1]["tokens"] == tokens


@pytest.mark.slow
def test_the_curve_is_the_mean_of_the_ranks(tmp_path):
    """Two ranks, each with its own rows: in the curve as in the tables."""
    two = run_python("tests/callbacks/test_lightning.py", str(tmp_path), processes=2)
    assert two.returncode == 0, two.stderr
    losses_RK = np.stack([np.load(tmp_path / f"losses-{rank}.npy") for rank in range(2)])  # of each micro-batch
    assert np.abs(losses_RK[0] - losses_RK[1]).min() > 1e-3
    expected = losses_RK.reshape(2, 4, 2).mean((0, 2))
    rows = metrics(tmp_path / "mine")
    assert [row["loss"] for row in rows] == pytest.approx(expected, rel=1e-6)
    assert [row["tokens"] for row in rows] == [8 * SEQUENCE * step for step in range(1, 5)]
    train = (frame := tables.read(tables.POSITIONS, tmp_path / "mine"))[frame["split"] == "train"]
    assert train["loss_sum"].sum() / train["count"].sum() == pytest.approx(expected.mean(), rel=1e-6)


if __name__ == "__main__":  # a rank
    module = Module()
    running, _ = fit(Path(sys.argv[1]), 4, module, devices=2, strategy="ddp")
    np.save(Path(sys.argv[1]) / f"losses-{running.global_rank}", [losses.mean().item() for losses in module.seen])
