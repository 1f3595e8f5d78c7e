"""The training loss: a weighted mean over tokens, with statistics by position from the same sweep."""

from typing import NamedTuple

import torch
from torch import Tensor

from ..backends.checks import autocast, check_loss_inputs, check_weights, require, without_autocast
from ..backends.dispatch import HAS_TRITON, dtype_limits, resolve_backend, slow_products
from ..backends.ranking import fastest
from ..backends.register_op import Op, last_backward, register_op
from ..backends.tracing import profiled, traced
from . import cpu, reference
from .compiled import rows_stay
from .options import LossInputs, RowOptions
from .rows import rows_of


class PositionSums(NamedTuple):
    """Raw sums over the batch at each position, (T,) each: they add across micro-batches and ranks."""

    count: Tensor  # int64, tokens that were not ignored
    loss_sum: Tensor  # float64, nats
    loss_sq_sum: Tensor  # float64, nats^2
    correct: Tensor  # int64, the target had the largest logit
    entropy_sum: Tensor  # float64, nats, entropy of the predicted distribution


class PositionLoss(NamedTuple):
    """Result of position_loss; a tuple, so that hooks on outputs (DeepSpeed's) see the loss."""

    loss: Tensor  # scalar, differentiable
    token_loss: Tensor  # (B, T) float32, detached, unweighted, without the z-loss term, 0 where ignored
    positions: PositionSums


@profiled
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
    """sum w * (l + z_loss * lse^2) / sum w over the tokens that are not ignored, l the cross-entropy of hidden @ weight^T.

    The weights are known before the forward pass, so the gradients are computed in it, chunk by chunk of logits
    (6 N D V floating-point operations in all); backward only scales them. Without gradients (torch.no_grad, or inputs
    that need none) only the statistics are computed.

    Args:
        hidden: (B, T, D), or (N, D): one sequence of N positions.
        weight: (V, D), same dtype and device.
        targets: (B, T), or (N,), int64 or int32, each in [0, V) or ignore_index. Out of range raises on a CPU; on a GPU it
            gives an infinite loss, and raises (with a device sync) under EMERGENCE_KERNELS_DEBUG=1.
        weights: None (all 1), (T,) or (B, T), constants, not negative (checked as targets are).
        ignore_index: ignored targets.
        z_loss: coefficient of the squared log-sum-exp in the loss (Chowdhery et al. 2022, section 5).
        backend: "triton", "cuda", "cpu", "torch" or "auto"; None reads EMERGENCE_KERNELS_BACKEND.

    Returns:
        PositionLoss(loss, token_loss, positions). If all tokens are ignored, or all weights are 0, the loss is 0 and
        has zero gradients. Only .loss is differentiable, once.

    Raises:
        ValueError: shapes, dtypes, devices, targets or weights are wrong. BackendError: the backend cannot run.
    """
    hidden, weight = autocast(hidden, weight)
    shape = tuple(hidden.shape)
    require(
        len(shape) in (2, 3),
        lambda: f"position_loss: hidden must be ([batch,] seq, features), got shape {shape}",
    )
    check_loss_inputs("position_loss", hidden, weight, targets, ignore_index)
    B, T, D = (1, *shape) if len(shape) == 2 else shape
    if weights is not None:
        check_weights(weights, targets.reshape(B, T))
        weights = weights.expand(B, T)
    grad = torch.is_grad_enabled()
    need_dx, need_dw = grad and hidden.requires_grad, grad and weight.requires_grad
    measured = fastest("position_loss", hidden.device, hidden.dtype, (hidden.shape[-1], weight.shape[0]))
    if not measured and (need_dx or need_dw) and rows_stay(hidden.device, weight.shape[0]):
        measured = ["cuda"]
    backend = resolve_backend(
        backend, "position_loss", hidden.device, dtype_limits(hidden), slow_products(hidden), measured
    )
    if backend == "cpu" and not traced() and cpu.fits(hidden, weight):
        loss, token_loss, *sums = cpu.AtOnce.apply(
            hidden, weight, targets, weights, ignore_index, z_loss, need_dx, need_dw
        )
        return PositionLoss(loss, token_loss, PositionSums(*sums))
    loss, *rows = _position_loss(
        hidden.reshape(-1, D),
        weight,
        targets.reshape(-1),
        None if weights is None else weights.reshape(-1),
        ignore_index,
        z_loss,
        need_dx,
        need_dw,
        backend,
    )
    token_loss_BT, valid_BT, correct_BT, entropy_BT = (row.detach().view(B, T) for row in rows[:4])
    return PositionLoss(
        loss, token_loss_BT.view(targets.shape), _sums(token_loss_BT, valid_BT, correct_BT, entropy_BT, backend)
    )


def _sums(
    token_loss_BT: Tensor, valid_BT: Tensor, correct_BT: Tensor, entropy_BT: Tensor, backend: str
) -> PositionSums:
    if backend in ("cuda", "cpu") and not traced():  # Inductor fuses what follows by itself
        from .compiled import position_sums

        return PositionSums(*position_sums(token_loss_BT, valid_BT, correct_BT, entropy_BT, backend=backend))
    wide_BT = token_loss_BT.double()
    return PositionSums(
        valid_BT.sum(0), wide_BT.sum(0), wide_BT.square().sum(0), correct_BT.sum(0), entropy_BT.double().sum(0)
    )


def _forward(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    weights_N: Tensor | None,
    ignore_index: int,
    z_loss: float,
    need_dx: bool,
    need_dw: bool,
    backend: str,
) -> tuple[Tensor, ...]:
    """-> loss, token_loss, valid, correct, entropy, grad_scale, dX, dW: gradients of loss * grad_scale, empty if not needed.

    dW is float32 where summed over several chunks: backward scales and rounds it in one pass.
    """
    dtype = reference.compute_dtype(hidden_ND.dtype)
    valid_N = targets_N != ignore_index
    share_N = valid_N.to(torch.float64)
    if weights_N is not None:
        share_N = share_N * weights_N
    share_N /= share_N.sum().clamp_min_(torch.finfo(torch.float64).tiny)  # all 0 stay so
    # 1 / (number of tokens) underflows in float16: its gradients are scaled by a power of two until backward.
    grad_scale, scale_N = torch.ones((), dtype=dtype, device=hidden_ND.device), share_N.to(dtype)
    if hidden_ND.dtype == torch.float16 and share_N.numel():
        largest = share_N.max()
        grad_scale = torch.exp2(-torch.ceil(torch.log2(torch.where(largest > 0, largest, 1)))).to(dtype)
        scale_N = (share_N * grad_scale).to(dtype)
    with without_autocast(hidden_ND.device.type):
        options = RowOptions(z_loss=z_loss, need_dx=need_dx, need_dw=need_dw, backend=backend)
        inputs = LossInputs(hidden_ND, weight_VD, targets_N, valid_N)
        rows, dx_ND, dw_VD = rows_of(backend).fused_rows(inputs, scale_N, options)
    penalised_N = rows.loss + z_loss * rows.lse.square() if z_loss else rows.loss
    loss = torch.dot(share_N, penalised_N.double()).to(dtype)
    empty = hidden_ND.new_empty(0)
    return (
        loss,
        rows.loss,
        valid_N,
        rows.correct,
        rows.entropy,
        grad_scale,
        empty if dx_ND is None else dx_ND,
        empty.clone() if dw_VD is None else dw_VD,
    )


def _scaled(saved: Tensor, factor: Tensor, dtype: torch.dtype, backend: str, last: bool = False) -> Tensor:
    """saved * factor, multiplied in float32 and rounded once.

    Out of place, since saved tensors are needed for another backward pass over a retained graph; in place if this is the last.
    """
    last = last and saved.dtype == dtype
    if backend == "triton" or (backend == "cuda" and saved.is_cuda and HAS_TRITON):
        from .triton_scale import scale

        return scale(saved.contiguous(), factor, dtype, in_place=last)
    if saved.device.type == "cpu":  # multiplies by a scalar tensor in its own precision
        if not last:
            return (saved * factor).to(dtype)
        return saved if factor.item() == 1 else saved.mul_(factor)
    return (saved.to(factor.dtype) * factor).to(dtype)


def _save(ctx, inputs: tuple, outputs: tuple[Tensor, ...]) -> None:
    grad_scale, dx_ND, dw_VD = outputs[5:]
    ctx.save_for_backward(grad_scale, dx_ND, dw_VD)
    ctx.needed, ctx.backend = inputs[6:8], inputs[8]
    ctx.dtype = dx_ND.dtype


def _backward(ctx, scaled, grad: Tensor, *_) -> tuple[Tensor | None, ...]:
    grad_scale, dx_ND, dw_VD = ctx.saved_tensors
    factor = grad.to(grad_scale.dtype) / grad_scale
    return tuple(
        scaled(saved, factor, ctx.dtype, ctx.backend) if needed else None
        for saved, needed in zip((dx_ND, dw_VD), ctx.needed)
    )


def _scaled_in_eager_mode(saved: Tensor, factor: Tensor, dtype: torch.dtype, backend: str) -> Tensor:
    return _scaled(saved, factor, dtype, backend, last_backward())


def _forward_in_graph(hidden: Tensor, weight: Tensor, *rest) -> tuple[Tensor, ...]:
    *others, dw_VD = _forward(hidden, weight, *rest)
    need_dw = rest[5]
    return *others, dw_VD.to(reference.gradient_dtype(weight.dtype)) if need_dw else dw_VD


def _fake(hidden, weight, targets, weights, ignore_index, z_loss, need_dx, need_dw, backend):
    N = targets.shape[0]
    dtype = reference.compute_dtype(hidden.dtype)
    dw_dtype = reference.gradient_dtype(weight.dtype) if need_dw else weight.dtype
    return (
        hidden.new_empty((), dtype=dtype),
        hidden.new_empty(N, dtype=dtype),
        hidden.new_empty(N, dtype=torch.bool),
        hidden.new_empty(N, dtype=torch.bool),
        hidden.new_empty(N, dtype=dtype),
        hidden.new_empty((), dtype=dtype),
        hidden.new_empty(hidden.shape if need_dx else 0),
        weight.new_empty(weight.shape if need_dw else 0, dtype=dw_dtype),
    )


_position_loss = register_op(
    Op(
        "position_loss(Tensor hidden, Tensor weight, Tensor targets, Tensor? weights, SymInt ignore_index, float z_loss,"
        " bool need_dx, bool need_dw, str backend)"
        " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
        _forward_in_graph,
        _fake,
    ),
    Op(
        "scale(Tensor saved, Tensor factor, ScalarType dtype, str backend) -> Tensor",
        _scaled,
        lambda saved, factor, dtype, backend: saved.new_empty(saved.shape, dtype=dtype),
    ),
    _save,
    _backward,
    returned=5,
    eager_forward=_forward,
    eager_gradient=_scaled_in_eager_mode,
)
