"""Cross-entropy of a linear head, one loss per token, differentiable under any upstream gradient."""

import math

import torch
from torch import Tensor

from ..backends.checks import autocast, check_loss_inputs, require, without_autocast
from ..backends.dispatch import dtype_limits, resolve_backend, slow_products
from ..backends.ranking import fastest
from ..backends.register_op import Op, register_op
from ..backends.tracing import profiled
from . import reference
from .options import LossInputs, RowOptions
from .rows import rows_of


@profiled
def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    ignore_index: int = -100,
    z_loss: float = 0.0,
    softcap: float | None = None,
    backend: str | None = None,
) -> Tensor:
    """-log softmax(softcap * tanh(hidden @ weight^T / softcap))[target] of every token, without the (N, V) logits.

    The backward pass recomputes the logits chunk by chunk (8 N D V floating-point operations in all).

    Args:
        hidden: (..., D).
        weight: (V, D), same dtype and device.
        targets: (...) int64 or int32, each in [0, V) or ignore_index. Out of range raises on a CPU; on a GPU it gives
            an infinite loss, and raises (with a device sync) under EMERGENCE_KERNELS_DEBUG=1.
        ignore_index: ignored targets: loss 0, gradient 0.
        z_loss: adds z_loss * logsumexp^2 to each token's loss.
        softcap: bounds the logits (Gemma 2), None for none.
        backend: "triton", "cuda", "cpu", "torch" or "auto"; None reads EMERGENCE_KERNELS_BACKEND.

    Returns:
        (...) float32 (float64 for float64 inputs), nats, including the z-loss term.

    Raises:
        ValueError: shapes, dtypes, devices or targets are wrong. BackendError: the named backend cannot run.
    """
    hidden, weight = autocast(hidden, weight)
    check_loss_inputs("linear_cross_entropy", hidden, weight, targets, ignore_index)
    require(
        softcap is None or 0 < softcap < math.inf,
        lambda: f"linear_cross_entropy: softcap must be positive and finite, got {softcap}; None is without",
    )
    measured = fastest("linear_cross_entropy", hidden.device, hidden.dtype, (hidden.shape[-1], weight.shape[0]))
    backend = resolve_backend(
        backend, "linear_cross_entropy", hidden.device, dtype_limits(hidden), slow_products(hidden), measured
    )
    loss_N, *_ = _linear_cross_entropy(
        hidden.reshape(-1, hidden.shape[-1]), weight, targets.reshape(-1), ignore_index, z_loss, softcap, backend
    )
    return loss_N.view(targets.shape)


def _forward(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    ignore_index: int,
    z_loss: float,
    softcap: float | None,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """-> loss, and top and log_total, whose sum is the log-sum-exp (all 0 where ignored)."""
    inputs = LossInputs(hidden_ND, weight_VD, targets_N, targets_N != ignore_index)
    with without_autocast(hidden_ND.device.type):
        options = RowOptions(softcap=softcap, backend=backend)
        loss_N, top_N, log_total_N = rows_of(backend).forward_rows(inputs, options)
    if z_loss:
        loss_N = loss_N + z_loss * (top_N + log_total_N).square()
    return loss_N, top_N, log_total_N


def _gradients(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    top_N: Tensor,
    log_total_N: Tensor,
    grad_N: Tensor,
    ignore_index: int,
    z_loss: float,
    softcap: float | None,
    need_dx: bool,
    need_dw: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """dX and dW; empty where not needed."""
    inputs = LossInputs(hidden_ND, weight_VD, targets_N, targets_N != ignore_index)
    grad_N = grad_N.masked_fill(~inputs.valid_N, 0)
    half = hidden_ND.dtype == torch.float16 and grad_N.numel() > 0
    # 1 / (number of tokens) times p underflows in float16: gradients are scaled so that the largest is about 1
    if half:
        size = torch.exp2(torch.ceil(torch.log2(grad_N.abs().max())))
        size = torch.where(size > 0, size, 1.0)
        grad_N = grad_N / size
    with without_autocast(hidden_ND.device.type):
        options = RowOptions(z_loss, softcap, need_dx, need_dw, backend=backend)
        dx_ND, dw_VD = rows_of(backend).backward_rows(inputs, top_N, log_total_N, grad_N, options)
    if half:
        dx_ND = None if dx_ND is None else (dx_ND.float() * size).to(hidden_ND.dtype)
        dw_VD = None if dw_VD is None else dw_VD * size
    dx_ND = hidden_ND.new_empty(0) if dx_ND is None else dx_ND
    return dx_ND, weight_VD.new_empty(0) if dw_VD is None else dw_VD.to(weight_VD.dtype)


def _save(ctx, inputs: tuple, outputs: tuple[Tensor, Tensor, Tensor]) -> None:
    hidden_ND, weight_VD, targets_N, *ctx.options = inputs
    ctx.save_for_backward(hidden_ND, weight_VD, targets_N, *outputs[1:])


def _backward(ctx, gradients, grad_N: Tensor, *_) -> tuple[Tensor | None, ...]:
    need_dx, need_dw = ctx.needs_input_grad[:2]
    ignore_index, z_loss, softcap, backend = ctx.options
    dx_ND, dw_VD = gradients(*ctx.saved_tensors, grad_N, ignore_index, z_loss, softcap, need_dx, need_dw, backend)
    return dx_ND if need_dx else None, dw_VD if need_dw else None


def _fake(hidden, weight, targets, *_):
    dtype = reference.compute_dtype(hidden.dtype)
    return tuple(hidden.new_empty(targets.shape, dtype=dtype) for _ in range(3))


def _fake_gradients(hidden, weight, targets, top, log_total, grad, ignore_index, z_loss, softcap, need_dx, need_dw, _):
    return hidden.new_empty(hidden.shape if need_dx else 0), weight.new_empty(weight.shape if need_dw else 0)


_linear_cross_entropy = register_op(
    Op(
        "linear_cross_entropy(Tensor hidden, Tensor weight, Tensor targets, SymInt ignore_index, float z_loss,"
        " float? softcap, str backend) -> (Tensor, Tensor, Tensor)",
        _forward,
        _fake,
    ),
    Op(
        "linear_cross_entropy_backward(Tensor hidden, Tensor weight, Tensor targets, Tensor top, Tensor log_total,"
        " Tensor grad, SymInt ignore_index, float z_loss, float? softcap, bool need_dx, bool need_dw, str backend)"
        " -> (Tensor, Tensor)",
        _gradients,
        _fake_gradients,
    ),
    _save,
    _backward,
)
