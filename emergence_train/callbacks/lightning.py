"""Losses by position from Lightning: Trainer(callbacks=[PositionCallback("runs/mine", params=..., sequence=1024)]).

The module's training_step and validation_step return a dictionary that has "token_losses" [B, T] beside "loss", and "correct"
and "mask" if they like: recorder.token_losses gives the first two from logits and targets. Tables are written after every
validation and at the end of training. Lightning's checkpoints carry what was added since.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback

from emergence_train.callbacks.trained_tokens import TrainedTokens
from emergence_train.errors import InputError
from emergence_train.recorder.api import Recorder


class PositionCallback(Callback):
    """Records a Lightning run as a run directory; it travels in Lightning's checkpoints, so that a resumed run continues it.

    Args:
        path, run, params, sequence, vocabulary: as Recorder's.
        split: what is validated on; of several data loaders a name each, in their order.
    """

    def __init__(
        self,
        path: str | Path,
        run: str | None = None,
        *,
        params: int,
        sequence: int,
        vocabulary: str = "",
        split: str | Sequence[str] = "iid",
    ) -> None:
        self.options = {"run": run, "params": params, "sequence": sequence, "vocabulary": vocabulary}
        self.path, self.splits = path, [split] if isinstance(split, str) else list(split)
        if "train" in self.splits or len(set(self.splits)) < len(self.splits):
            raise InputError(f"PositionCallback: split={split!r}; give each a name of its own, other than train")
        self.recorder: Recorder | None = None
        self._state: dict[str, Any] | None = None  # of the recorder, from the checkpoint that training resumes from
        self._tokens = TrainedTokens()
        self._written = 0  # step of the last tables
        self._step = 0  # the last one
        self._losses: list[Any] = []  # of the micro-batches since then

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._check_named(trainer)
        steps = trainer.estimated_stepping_batches  # infinite, or -1, where neither steps nor epochs end it
        self.recorder = Recorder(
            self.path,
            **self.options,  # type: ignore[arg-type]
            total_steps=int(steps) if 0 < steps < math.inf else None,
            step=trainer.global_step,
        )
        self._written = self._step = trainer.global_step
        if self._state is not None:
            self.recorder.load_state_dict(self._state)
            self._state = None

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        losses_BT = self._add(outputs, "train")
        mask_BT = outputs.get("mask")
        self._tokens.add(losses_BT.numel() if mask_BT is None else torch.as_tensor(mask_BT).sum())
        # Lightning has divided it by that many, also in an epoch's last step, which may have fewer.
        self._losses.append(outputs["loss"].detach() * trainer.accumulate_grad_batches)
        if self.recorder is not None and trainer.global_step > self._step:
            if trainer.global_step % trainer.log_every_n_steps == 0:
                own = sum(self._losses) / len(self._losses)
                tokens, mean = self._tokens.all_reduce_with_loss(own)
                self.recorder.log(trainer.global_step, tokens, mean, _rate(trainer))
            self._step, self._losses = trainer.global_step, []

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if self.recorder is not None and not trainer.sanity_checking:
            self._check_named(trainer)  # some are known from here on only
            self._add(outputs, self.splits[dataloader_idx])

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if not trainer.sanity_checking:
            self._write(trainer)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._write(trainer)
        if self.recorder is not None:
            self.recorder.close()
            self.recorder = None

    def state_dict(self) -> dict[str, Any]:
        tokens = self._tokens.all_reduce_sum()
        return {"tokens": tokens, "recorder": self.recorder and self.recorder.state_dict(self._step)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._tokens, self._state = TrainedTokens(state_dict["tokens"]), state_dict.get("recorder")

    def _check_named(self, trainer: Any) -> None:
        loaders = len(trainer.num_val_batches)
        if loaders > len(self.splits):
            raise InputError(
                f"PositionCallback: {loaders} data loaders of validation and {len(self.splits)} splits; give a name for each, "
                f'such as split=["iid", "books"]'
            )

    def _add(self, outputs: Any, split: str) -> Any:
        if not isinstance(outputs, dict) or "token_losses" not in outputs:
            step = "training_step" if split == "train" else "validation_step"
            raise InputError(
                f"PositionCallback: {step} returns no 'token_losses'; return {{'loss': loss, 'token_losses': losses_BT}}, see "
                f"emergence_train.recorder.token_losses"
            )
        losses_BT = outputs["token_losses"]
        if self.recorder is not None:
            self.recorder.add(losses_BT, split=split, correct_BT=outputs.get("correct"), mask_BT=outputs.get("mask"))
        return losses_BT

    def _write(self, trainer: Any) -> None:
        if self.recorder is not None and trainer.global_step > self._written:
            self.recorder.checkpoint(trainer.global_step, self._tokens.all_reduce_sum(), _rate(trainer))
            self._written = trainer.global_step


def _rate(trainer: Any) -> float | None:
    return trainer.optimizers[0].param_groups[0]["lr"] if trainer.optimizers else None
