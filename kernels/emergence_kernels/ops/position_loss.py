"""The training loss: a weighted mean over tokens, with the statistics of every position from the same sweep."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..checks import check_loss_inputs, check_weights, require
from ..dispatch import resolve_backend
from ..reference import cross_entropy as torch_backend


class PositionSums(NamedTuple):
    """Raw sums over the batch at each position, (T,) each: they add up across micro-batches and ranks."""

    count: Tensor  # int64, tokens that were not ignored
    loss_sum: Tensor  # float64, nats
    loss_sq_sum: Tensor  # float64, nats^2
    correct: Tensor  # int64, the target had the largest logit
    entropy_sum: Tensor  # float64, nats, entropy of the predicted distribution


class PositionLoss(NamedTuple):
    """A tuple, so that hooks that walk outputs (DeepSpeed's) find the loss."""

    loss: Tensor  # scalar, differentiable
    token_loss: Tensor  # (B, T) float32, detached, unweighted, without the z-loss term, 0 where ignored
    positions: PositionSums


def position_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    weights: Tensor | None = None,
    ignore_index: int = -100,
    z_loss: float = 0.0,
    backend: str | None = None,
) -> PositionLoss:
    """sum w * (l + z_loss * lse^2) / sum w over the tokens that count, l the cross-entropy of hidden @ weight^T.

    The weights are known before the forward pass, so the gradients are made in it, while a chunk of logits is at hand
    (6 N D V floating-point operations in all); backward only scales them. Without gradients (torch.no_grad, or inputs
    that need none) only the statistics are computed.

    Args:
        hidden: (B, T, D).
        weight: (V, D), same dtype and device.
        targets: (B, T) int64 or int32, each in [0, V) or ignore_index. Out of range raises on a CPU; on a GPU it gives
            an infinite loss, and raises (with a device sync) under EMERGENCE_KERNELS_DEBUG=1.
        weights: None (all 1), (T,) or (B, T), constants, not negative (checked as targets are).
        ignore_index: targets that take no part.
        z_loss: coefficient of the squared log-sum-exp in the loss (Chowdhery et al. 2022, section 5).
        backend: "triton", "torch" or "auto"; None reads EMERGENCE_KERNELS_BACKEND.

    Returns:
        PositionLoss(loss, token_loss, positions). If no token counts, or all weights are 0, the loss is 0 and still
        connected to the graph (its gradients are 0). Only .loss is differentiable, once.

    Raises:
        ValueError: shapes, dtypes, devices, targets or weights are wrong. BackendError: the backend cannot run.
    """
    require(hidden.dim() == 3, f"position_loss: hidden must be (batch, seq, features), got shape {tuple(hidden.shape)}")
    check_loss_inputs("position_loss", hidden, weight, targets, ignore_index)
    if weights is not None:
        check_weights("position_loss", weights, targets)
        weights = weights.expand(targets.shape).reshape(-1)
    resolve_backend(backend, "position_loss", hidden.device)
    B, T, D = hidden.shape
    grad = torch.is_grad_enabled()
    loss, *rows = _PositionLoss.apply(
        hidden.reshape(-1, D),
        weight,
        targets.reshape(-1),
        weights,
        ignore_index,
        z_loss,
        grad and hidden.requires_grad,
        grad and weight.requires_grad,
    )
    token_loss_BT, valid_BT, correct_BT, entropy_BT = (row.view(B, T) for row in rows)
    wide_BT = token_loss_BT.double()
    positions = PositionSums(
        valid_BT.sum(0), wide_BT.sum(0), wide_BT.square().sum(0), correct_BT.sum(0), entropy_BT.double().sum(0)
    )
    return PositionLoss(loss, token_loss_BT, positions)


def _forward(hidden_ND, weight_VD, targets_N, weights_N, ignore_index, z_loss, need_dx, need_dw):
    """-> loss, (token_loss, valid, correct, entropy) [N], dX and dW times `raised`, raised."""
    N = targets_N.shape[0]
    dtype = torch_backend.compute_dtype(hidden_ND.dtype)
    valid_N = targets_N != ignore_index
    share_N = valid_N.to(torch.float64)
    if weights_N is not None:
        share_N = share_N * weights_N
    total = share_N.sum()
    share_N = (share_N / torch.where(total > 0, total, 1)).to(dtype)
    # float16 has no room for 1 / (number of tokens): its gradients are kept raised by a power of two until backward.
    raised = 2.0 ** math.ceil(math.log2(N + 1)) if hidden_ND.dtype == torch.float16 else 1.0

    keep = None
    if hidden_ND.device.type == "cpu" and not bool(valid_N.all()):
        keep = valid_N.nonzero().squeeze(1)  # rows packed: an ignored row costs nothing
    x_ND = hidden_ND if keep is None else hidden_ND[keep]
    safe_N = targets_N.masked_fill(~valid_N, 0) if keep is None else targets_N[keep]
    scale_N = share_N if keep is None else share_N[keep]
    rows, dx_ND, dw_VD = torch_backend.fused_rows(
        x_ND, weight_VD, safe_N, scale_N * raised, z_loss=z_loss, need_dx=need_dx, need_dw=need_dw
    )
    penalised_N = rows.loss + z_loss * rows.lse.square() if z_loss else rows.loss
    loss = torch.dot(scale_N.double(), penalised_N.double()).to(dtype)

    def spread(row):
        if keep is None:
            return row.masked_fill_(~valid_N, 0)
        return torch.zeros(N, *row.shape[1:], dtype=row.dtype, device=row.device).index_copy_(0, keep, row)

    token = [spread(row) for row in (rows.loss, rows.correct, rows.entropy)]
    if keep is not None and dx_ND is not None:
        dx_ND = spread(dx_ND)
    return loss, token[0], valid_N, token[1], token[2], dx_ND, dw_VD, raised


class _PositionLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *inputs):
        *outputs, dx_ND, dw_VD, raised = _forward(*inputs)
        ctx.save_for_backward(dx_ND, dw_VD)
        ctx.raised = raised
        ctx.mark_non_differentiable(*outputs[1:])
        return tuple(outputs)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad, *_):
        # Out of place: the saved gradients must survive for a second backward over a retained graph.
        dx_ND, dw_VD = (scaled(saved, grad, ctx.raised) for saved in ctx.saved_tensors)
        return dx_ND, dw_VD, None, None, None, None, None, None


def scaled(saved: Tensor | None, grad: Tensor, raised: float) -> Tensor | None:
    if saved is None:
        return None
    if saved.dtype == torch.float16:  # grad / raised itself may lie below float16's range
        return (saved.float() * (grad.float() / raised)).to(saved.dtype)
    return saved * grad.to(saved.dtype)
