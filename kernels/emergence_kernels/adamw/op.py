"""AdamW's update in one pass: weights and moments in place, their copy in 16 bits, and the gradient zeroed for the next step."""

import torch
from torch import Tensor

from ..backends.dispatch import resolve_backend
from .reference import adamw_step as adamw_step_torch
from .reference import corrections_of


def adamw_step(
    weights: Tensor,
    gradient: Tensor,
    first: Tensor,
    second: Tensor,
    step: Tensor,
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    grad_scale: Tensor,
    applied: Tensor,
    copy: Tensor | None = None,
    backend: str | None = None,
) -> None:
    """Update the weights by AdamW (arXiv 1711.05101) and zero the gradient, without synchronisation with the host.

    With g = gradient / grad_scale and t = step + 1:

        m <- b1 m + (1 - b1) g        v <- b2 v + (1 - b2) g^2
        w <- w - lr (weight_decay w + (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps))

    Args:
        weights, gradient, first, second: w, g, m and v, (N,) float32, contiguous; changed in place.
        step: scalar float32 on the device, the updates so far; t afterwards.
        lr, betas, eps, weight_decay: the rate, (b1, b2), and the two terms so named above.
        grad_scale: scalar float32 on the device, such as a clip factor.
        applied: scalar bool on the device. Where it is False weights, moments and step stay as they are, whatever the gradient
            holds; it is zeroed all the same.
        copy: (N,), which the new weights are written to in its dtype, or None.
        backend: "triton", "torch" or "auto"; None reads EMERGENCE_KERNELS_BACKEND.

    Raises:
        ValueError: a shape, dtype or layout does not fit. BackendError: the named backend cannot run.
    """
    tensors = {"weights": weights, "gradient": gradient, "first": first, "second": second}
    for name, tensor in (tensors if copy is None else tensors | {"copy": copy}).items():
        if tensor.dim() != 1 or tensor.shape != weights.shape or not tensor.is_contiguous():
            raise ValueError(
                f"adamw_step: {name} must be contiguous of shape ({weights.numel()},), got {tuple(tensor.shape)}"
            )
    scalars = {"step": step, "grad_scale": grad_scale, "applied": applied}
    for name, tensor in scalars.items():
        if tensor.dim() or tensor.device != weights.device:
            got = f"shape {tuple(tensor.shape)} on {tensor.device}"
            raise ValueError(f"adamw_step: {name} must be a scalar on {weights.device}, got {got}")
    for name, tensor in (tensors | {"step": step, "grad_scale": grad_scale}).items():
        if tensor.dtype != weights.dtype:
            raise ValueError(f"adamw_step: {name} must have the weights' dtype {weights.dtype}, got {tensor.dtype}")
    reason = None if weights.dtype == torch.float32 else f"it supports float32 only, not {weights.dtype}"
    chosen = resolve_backend(backend, "adamw_step", weights.device, {"triton": reason})
    step.add_(applied.to(step.dtype))
    given = (weights, gradient, first, second, corrections_of(step, betas), grad_scale, applied, copy)
    if chosen == "triton":
        from .triton import adamw_step as update
    else:
        update = adamw_step_torch
    update(*given, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
