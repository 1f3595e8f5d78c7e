"""Losses by position from transformers' Trainer: Trainer(..., callbacks=[PositionCallback("runs/mine", sequence=1024)]).

A hook on the model sees the logits and labels of every forward pass: those that gradients are taken of are the split "train",
those of Trainer's prediction steps what it evaluates on, and any other (a probe, generation) of no split. It costs a second
softmax over the vocabulary and no communication; of a model on our kernels (emergence_kernels.patch_llama) none, and the training
split has no accuracy. Checkpoints of the tables are written where Trainer evaluates or saves, and at the end of training.
"""

import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from emergence_train.callbacks.trained_tokens import TrainedTokens
from emergence_train.errors import InputError
from emergence_train.recorder.api import Recorder
from emergence_train.recorder.logits import token_losses

EVALUATED = "evaluated"  # the split of an evaluation's sums until Trainer says what was evaluated
HIDDEN = (
    "PositionCallback sees the model called without labels, or without logits in its output; leave out label smoothing, "
    "compute_loss_func and fused losses, or use emergence_train.recorder.Recorder in a loop of your own"
)


class Losses(NamedTuple):
    """Of a forward pass, as Recorder.add takes them; correct_BT where there were logits."""

    losses_BT: Tensor
    correct_BT: Tensor | None
    mask_BT: Tensor


class PositionCallback(TrainerCallback):
    """Records a Trainer's run as a run directory. A resumed training continues it.

    Args:
        path, run, sequence, vocabulary: as Recorder's. Labels with -100 are not counted, and a token's position is its place in
            the row, so that rows padded on the left shift it.
        params: non-embedding parameters; by default as the model counts them.
        split: what Trainer evaluates on. Of a dictionary of data sets each is the split of its key, but "train" eval_train.
    """

    def __init__(
        self,
        path: str | Path,
        run: str | None = None,
        *,
        sequence: int,
        params: int | None = None,
        vocabulary: str = "",
        split: str = "iid",
    ) -> None:
        self.path, self.run, self.sequence = path, run, sequence
        self.params, self.vocabulary, self.split = params, vocabulary, split
        self.recorder: Recorder | None = None
        self._hook: Any = None
        self._tokens = TrainedTokens()
        self._row = -1  # step of the last row of the curve
        # Since training started: an evaluation before is of weights that have theirs, or are untrained
        self._stepped = False
        self._added = False  # sums since the last tables
        self._last: Losses | None = None  # of the last forward pass in evaluation mode
        self._hidden = False  # a prediction step had none, since the last evaluation
        self._evaluated: set[str] = set()  # splits, since the last step

    # ------------------------------------------------------------------------------------------------ Trainer's events

    def on_train_begin(self, args: Any, state: Any, control: Any, *, model: nn.Module, **kwargs: Any) -> None:
        params = self.params
        if params is None:
            params = int(model.num_parameters(exclude_embeddings=True))  # type: ignore[operator]
        self.recorder = Recorder(
            self.path,
            self.run,
            params=params,
            sequence=self.sequence,
            vocabulary=self.vocabulary,
            total_steps=state.max_steps if state.max_steps > 0 else None,
            step=state.global_step,
        )
        self._tokens = TrainedTokens(self.recorder.tokens)
        self._row, self._stepped, self._added = state.global_step, False, False
        self._hook = model.register_forward_hook(self._seen, with_kwargs=True)

    def on_log(self, args: Any, state: Any, control: Any, *, logs: dict[str, Any], **kwargs: Any) -> None:
        if self.recorder is not None and "loss" in logs and state.global_step > self._row:
            lr = logs.get("learning_rate", _rate(kwargs))
            self.recorder.log(state.global_step, self._tokens.estimate, logs["loss"], lr)
            self._row = state.global_step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._stepped = self._added = True
        self._sum_tokens(control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._sum_tokens(control)

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.recorder is not None and self._stepped:
            self._hidden |= self._last is None
            if self._last is not None:
                self._add(self._last, EVALUATED)
            self._last = None

    def on_evaluate(
        self, args: Any, state: Any, control: Any, *, metrics: dict[str, float] | None = None, **kwargs: Any
    ) -> None:
        if self.recorder is None or not self._stepped:
            return
        if self._hidden:
            raise InputError(HIDDEN)
        split = self._split_of(metrics or {})
        if split in self._evaluated:
            warnings.warn(
                f"{self.path}: step {state.global_step} is evaluated twice as the split {split}, and the first is recorded; "
                f"evaluate(other, metric_key_prefix='eval_NAME') is the split NAME",
                stacklevel=2,
            )
        self.recorder.move(EVALUATED, None if split in self._evaluated else split)
        self._added |= split not in self._evaluated
        self._evaluated.add(split)
        self._write(state.global_step, _rate(kwargs))  # before Trainer saves: it may be killed while it does

    def on_predict(self, args: Any, state: Any, control: Any, metrics: Any, **kwargs: Any) -> None:
        self._drop_evaluated()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._write(state.global_step, _rate(kwargs))  # the epoch's evaluation may still come, and adds its split

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._evaluated = set()
        self._drop_evaluated()  # of an evaluation_loop that a script has called itself

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._write(state.global_step, _rate(kwargs))
        if self.recorder is not None:
            self.recorder.close()
            self._hook.remove()
            self.recorder = None

    # --------------------------------------------------------------------------------------------------------- private

    def _seen(self, model: nn.Module, inputs: tuple, kwargs: dict[str, Any], output: Any) -> None:
        if self.recorder is None:
            return
        if not model.training:
            self._last = _losses(model, kwargs, output) if self._stepped else None
        elif torch.is_grad_enabled():
            losses = _losses(model, kwargs, output)
            if losses is None:
                raise InputError(HIDDEN)
            self._add(losses, "train")
            mask_BT: Tensor | None = kwargs.get("attention_mask")  # 0 where padded
            flat = mask_BT is not None and mask_BT.ndim == 2
            self._tokens.add(mask_BT.sum() if flat else kwargs["labels"].numel())  # type: ignore[union-attr]

    def _add(self, losses: Losses, split: str) -> None:
        assert self.recorder is not None
        self.recorder.add(losses.losses_BT, split=split, correct_BT=losses.correct_BT, mask_BT=losses.mask_BT)

    def _drop_evaluated(self) -> None:
        """Forget the sums that no evaluation has named."""
        self._hidden = False
        if self.recorder is not None:
            self.recorder.move(EVALUATED, None)

    def _split_of(self, metrics: dict[str, float]) -> str:
        """The split that Trainer has evaluated on, by the prefix of its metrics."""
        prefix = next((name.removesuffix("_runtime") for name in metrics if name.endswith("_runtime")), "eval")
        name = self.split if prefix == "eval" else prefix.removeprefix("eval_")
        return "eval_train" if name == "train" else name

    def _sum_tokens(self, control: Any) -> None:
        """Before Trainer logs, where all ranks are: a script's own log may be of one alone."""
        if self.recorder is not None and control.should_log:
            self._tokens.all_reduce_sum()

    def _write(self, step: int, lr: float | None) -> None:
        if self.recorder is not None and self._added:
            self._drop_evaluated()
            self.recorder.checkpoint(step, self._tokens.all_reduce_sum(), lr)
            self._added = False


def _losses(model: nn.Module, kwargs: dict[str, Any], output: Any) -> Losses | None:
    """Of a forward pass by its labels; None where it had none, or shows no logits."""
    labels_BT: Tensor | None = kwargs.get("labels")
    logits_BTV = output.get("logits") if hasattr(output, "get") else getattr(output, "logits", None)
    # of emergence_kernels.patch_llama, whose training makes no logits
    fused: Any = getattr(model, "last_loss", None)
    if labels_BT is None or (logits_BTV is None and fused is None):
        return None
    mask_BT = labels_BT[:, 1:] >= 0
    if logits_BTV is None:
        return Losses(fused.token_loss[:, :-1], None, mask_BT)
    return Losses(*token_losses(logits_BTV[:, :-1], labels_BT[:, 1:]), mask_BT)


def _rate(kwargs: dict[str, Any]) -> float | None:
    """Of the optimizer among an event's arguments."""
    optimizer = kwargs.get("optimizer")
    return optimizer.param_groups[0]["lr"] if optimizer is not None else None
