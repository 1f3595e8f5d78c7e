"""Cross-entropy of a linear head, one loss a token, differentiable under any upstream gradient."""

import torch
from torch import Tensor

from ..checks import check_loss_inputs, require
from ..dispatch import resolve_backend
from ..reference import cross_entropy as torch_backend


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
        ignore_index: targets that take no part: loss 0, gradient 0.
        z_loss: adds z_loss * logsumexp^2 to each token's loss.
        softcap: bounds the logits (Gemma 2), None for none.
        backend: "triton", "torch" or "auto"; None reads EMERGENCE_KERNELS_BACKEND.

    Returns:
        (...) float32 (float64 for float64 inputs), nats, including the z-loss term.

    Raises:
        ValueError: shapes, dtypes, devices or targets are wrong. BackendError: the named backend cannot run.
    """
    check_loss_inputs("linear_cross_entropy", hidden, weight, targets, ignore_index)
    require(softcap is None or softcap > 0, f"linear_cross_entropy: softcap must be positive, got {softcap}")
    resolve_backend(backend, "linear_cross_entropy", hidden.device)
    loss_N = _LinearCrossEntropy.apply(
        hidden.reshape(-1, hidden.shape[-1]), weight, targets.reshape(-1), ignore_index, z_loss, softcap
    )
    return loss_N.view(targets.shape)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_ND, weight_VD, targets_N, ignore_index, z_loss, softcap):
        valid_N = targets_N != ignore_index
        safe_N = targets_N.masked_fill(~valid_N, 0)
        loss_N, lse_N = torch_backend.forward_rows(hidden_ND, weight_VD, safe_N, softcap=softcap)
        if z_loss:
            loss_N = loss_N + z_loss * lse_N.square()
        ctx.save_for_backward(hidden_ND, weight_VD, safe_N, valid_N, lse_N)
        ctx.options = z_loss, softcap
        return loss_N.masked_fill_(~valid_N, 0)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_N):
        hidden_ND, weight_VD, safe_N, valid_N, lse_N = ctx.saved_tensors
        z_loss, softcap = ctx.options
        dx_ND, dw_VD = torch_backend.backward_rows(
            hidden_ND,
            weight_VD,
            safe_N,
            lse_N,
            grad_N.masked_fill(~valid_N, 0),
            z_loss=z_loss,
            softcap=softcap,
            need_dx=ctx.needs_input_grad[0],
            need_dw=ctx.needs_input_grad[1],
        )
        return dx_ND, dw_VD, None, None, None, None
