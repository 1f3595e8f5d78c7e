"""The output head, the module that owns the vocabulary matrix."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .position_loss import PositionLoss, position_loss


class LMHead(nn.Module):
    """Hidden states to logits, or to the loss.

    The loss is computed inside forward because ZeRO-3 gathers a parameter only while the module that owns it runs. To
    tie it to an embedding, pass the embedding's Parameter (`LMHead(embedding=embed)`): both modules then share
    it.

    Args:
        features: D. vocabulary: V. Not needed with an embedding.
        embedding: an nn.Embedding (V, D) whose weight is shared.
    """

    def __init__(
        self, features: int | None = None, vocabulary: int | None = None, *, embedding: nn.Embedding | None = None
    ):
        super().__init__()
        if embedding is not None:
            self.weight = embedding.weight
        elif features and vocabulary:
            self.weight = nn.Parameter(torch.empty(vocabulary, features))
            nn.init.normal_(self.weight, std=0.02)
        else:
            raise ValueError("LMHead: give features and vocabulary, or an embedding to share")

    def forward(
        self,
        hidden: Tensor,
        targets: Tensor | None = None,
        weights: Tensor | None = None,
        *,
        ignore_index: int = -100,
        z_loss: float = 0.0,
        backend: str | None = None,
    ) -> Tensor | PositionLoss:
        """hidden (B, T, D) -> logits (B, T, V), or with targets (B, T) the PositionLoss."""
        if targets is None:
            return F.linear(hidden, self.weight)
        return position_loss(
            hidden, self.weight, targets, weights=weights, ignore_index=ignore_index, z_loss=z_loss, backend=backend
        )
