"""position_loss on a CPU where all logits are one chunk: between its products it is one operation (csrc/cpu/loss_rows.cpp), since
a small model's step is as long as its operations are many."""

from typing import Any

import torch
from torch import Tensor

from ..backends.library import operations
from ..backends.products import linear_apart
from ..backends.register_op import first_order, last_backward, named
from .reference import chunk_rows


def fits(hidden: Tensor, weight: Tensor) -> bool:
    """Whether all logits are one chunk. hidden: (..., D). weight: (V, D)."""
    rows = hidden.shape[:-1].numel()
    return 0 < rows <= chunk_rows(rows, weight.shape[0], hidden.device)


class AtOnce(torch.autograd.Function):
    """hidden (B, T, D), weight (V, D), targets (B, T), weights (B, T) or None -> loss, token losses (B, T), and the sums of
    PositionSums, (T,) each."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        weights: Tensor | None,
        ignore_index: int,
        z_loss: float,
        need_dx: bool,
        need_dw: bool,
    ) -> tuple[Tensor, ...]:
        hidden_ND, T = hidden.reshape(-1, hidden.shape[-1]), hidden.shape[-2]
        z_NV = linear_apart(hidden_ND, weight)
        token_loss = torch.empty_like(targets, dtype=torch.float32, memory_format=torch.contiguous_format)
        loss = z_NV.new_empty(())
        count, correct = (targets.new_empty(T, dtype=torch.int64) for _ in range(2))
        loss_sum, loss_sq_sum, entropy = (z_NV.new_empty(T, dtype=torch.float64) for _ in range(3))
        operations("cpu").position_loss.default(
            z_NV,
            weight.shape[0],
            targets.long().contiguous(),
            None if weights is None else weights.double().contiguous(),
            ignore_index,
            z_loss,
            need_dx or need_dw,
            token_loss,
            loss,
            count,
            loss_sum,
            loss_sq_sum,
            correct,
            entropy,
        )
        ctx.save_for_backward(
            (z_NV @ weight).view(hidden.shape) if need_dx else None, z_NV.t() @ hidden_ND if need_dw else None
        )
        ctx.set_materialize_grads(False)
        sums = count, loss_sum, loss_sq_sum, correct, entropy
        ctx.mark_non_differentiable(token_loss, *sums)
        return loss, token_loss, *sums

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor, *_: None) -> tuple[Tensor | None, ...]:
        gradients, factor, in_place = ctx.saved_tensors, grad.item(), last_backward()
        if factor != 1 or not in_place:
            gradients = tuple(None if g is None else g.mul_(factor) if in_place else g * factor for g in gradients)
        return *gradients, *(None,) * 6


named(AtOnce, "position_loss")
