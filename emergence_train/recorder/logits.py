"""Losses by token of a model's logits."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from emergence_train.errors import InputError


def token_losses(logits_BTV: Tensor, targets_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of each token, and whether the target was the most likely one; one sequence's float32 logits at a time.

    Args:
        logits_BTV: of a batch's sequences, their positions and the vocabulary, in any floating-point type.
        targets_BT: the token that each position predicts. Those below 0 (such as -100) have loss 0: mask them.

    Returns:
        (losses in nats, float32; correct, bool), both [B, T], without gradient.
    """
    with torch.no_grad():
        losses, correct = [], []
        for logits_TV, targets_T in zip(logits_BTV, targets_BT, strict=True):
            ignored = targets_T < 0
            known_T = targets_T.masked_fill(ignored, 0)
            losses.append(F.cross_entropy(logits_TV.float(), known_T, reduction="none").masked_fill(ignored, 0.0))
            correct.append((logits_TV.argmax(-1) == known_T) & ~ignored)
        return torch.stack(losses), torch.stack(correct)


def logits_of(output: Any) -> Tensor:
    """A model's logits [B, T, V], which it returns or has as `.logits`. Raises InputError for anything else."""
    logits = getattr(output, "logits", output)
    if not isinstance(logits, Tensor) or logits.ndim != 3:
        raise InputError(
            f"the model returned {type(logits).__name__}, not logits [B, T, V] or an object with .logits; wrap it in a function "
            f"that returns them"
        )
    return logits
