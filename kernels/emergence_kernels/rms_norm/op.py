"""RMSNorm with an optional fused residual addition."""

import math
from typing import overload

import torch
from torch import Tensor

from ..backends.checks import autocasts, check_float, require, without_autocast
from ..backends.dispatch import dtype_limits, resolve_backend
from ..backends.ranking import fastest
from ..backends.register_op import Op, register_op
from .reference import rms_norm as rms_norm_torch

MAX_FEATURES = 8192  # of the Triton and CUDA kernels, which keep a row in registers
MAX_FEATURES_SINGLY = 4096  # of the CUDA kernels, where rows do not divide into packs of 16 bytes


@overload
def rms_norm(
    x: Tensor, weight: Tensor, eps: float = 1e-6, residual: None = None, *, backend: str | None = None
) -> Tensor: ...
@overload
def rms_norm(
    x: Tensor, weight: Tensor, eps: float = 1e-6, *, residual: Tensor, backend: str | None = None
) -> tuple[Tensor, Tensor]: ...
def rms_norm(
    x: Tensor, weight: Tensor, eps: float = 1e-6, residual: Tensor | None = None, *, backend: str | None = None
) -> Tensor | tuple[Tensor, Tensor]:
    """Root-mean-square normalisation over the last dimension (Zhang and Sennrich, arXiv 1910.07467).

    Casting follows Llama: the mean square and x / rms are float32, the result is cast to x's dtype and then multiplied
    by weight. float64 inputs are computed in float64.

    Args:
        x: (..., D).
        weight: (D,), same dtype and device as x.
        eps: added to the mean square.
        residual: (..., D) or None. If given, x + residual (rounded to x's dtype) is what is normalised.
        backend: "triton", "cuda", "cpu", "torch" or "auto"; None reads EMERGENCE_KERNELS_BACKEND.

    Returns:
        y (..., D); with a residual (y, x + residual).

    Raises:
        ValueError: shapes, dtypes or devices do not match. BackendError: the named backend cannot run.
    """
    if autocasts(x.device.type):
        if residual is not None:
            x = x.to(torch.promote_types(x.dtype, residual.dtype))
            residual = residual.to(x.dtype)
        weight = weight.to(x.dtype)
    check_float("rms_norm", x=x, weight=weight, residual=residual)
    require(
        x.dim() >= 1 and x.shape[-1] > 0,
        lambda: f"rms_norm: x must be (..., features), got shape {tuple(x.shape)}",
    )
    require(
        weight.shape == x.shape[-1:],
        lambda: f"rms_norm: weight has shape {tuple(weight.shape)}, expected ({x.shape[-1]},) to match x",
    )
    if residual is not None:
        require(
            residual.shape == x.shape,
            lambda: f"rms_norm: residual has shape {tuple(residual.shape)} but x has {tuple(x.shape)}",
        )
    limits = dtype_limits(x)
    D = x.shape[-1]
    if D > MAX_FEATURES:
        limits["triton"] = limits["cuda"] = f"{D} features are more than {MAX_FEATURES}"
    elif D > MAX_FEATURES_SINGLY and D * x.element_size() % 16:
        limits["cuda"] = f"{D} features are more than {MAX_FEATURES_SINGLY} and no multiple of {16 // x.element_size()}"
    measured = fastest("rms_norm", x.device, x.dtype, (D,))
    backend = resolve_backend(backend, "rms_norm", x.device, limits, measured=measured)
    if backend == "torch":
        with without_autocast(x.device.type):  # its sum of squares is a product
            y, new_residual = rms_norm_torch(x, weight, eps, residual)
    else:
        y, new_residual, _ = _rms_norm(x, weight, eps, residual, backend)
    return y if residual is None else (y, new_residual)  # type: ignore[return-value]  # it is there with residual


def _forward(
    x: Tensor, weight: Tensor, eps: float, residual: Tensor | None, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    if backend == "triton":
        from .triton import forward

        return forward(x, weight, eps, residual)
    from .compiled import forward

    return forward(x, weight, eps, residual, backend=backend)


def _gradients(
    dy: Tensor, d_residual: Tensor | None, x: Tensor, weight: Tensor, rstd: Tensor, backend: str
) -> tuple[Tensor, Tensor]:
    if backend == "triton":
        from .triton import backward

        return backward(dy, d_residual, x, weight, rstd)
    from .compiled import backward

    return backward(dy, d_residual, x, weight, rstd, backend=backend)


def _save(ctx, inputs: tuple, outputs: tuple[Tensor, Tensor, Tensor]) -> None:
    x, weight, _, residual, ctx.backend = inputs
    ctx.with_residual = residual is not None
    ctx.save_for_backward(outputs[1] if ctx.with_residual else x, weight, outputs[2])


def _backward(ctx, gradients, dy: Tensor | None, d_residual: Tensor | None, _) -> tuple[Tensor | None, ...]:
    if dy is None:
        assert d_residual is not None  # autograd comes with one of the two
        dy = torch.zeros_like(d_residual)
    dx, dw = gradients(dy, d_residual if ctx.with_residual else None, *ctx.saved_tensors, ctx.backend)
    return dx, dw, None, dx if ctx.with_residual else None


def _fake(x, weight, eps, residual, backend):
    new_residual = x.new_empty(0 if residual is None else x.shape)
    return x.new_empty(x.shape), new_residual, x.new_empty(math.prod(x.shape[:-1]), dtype=torch.float32)


_rms_norm = register_op(
    Op(
        "rms_norm(Tensor x, Tensor weight, float eps, Tensor? residual, str backend) -> (Tensor, Tensor, Tensor)",
        _forward,
        _fake,
    ),
    Op(
        "rms_norm_backward(Tensor dy, Tensor? d_residual, Tensor x, Tensor weight, Tensor rstd, str backend)"
        " -> (Tensor, Tensor)",
        _gradients,
        lambda dy, d_residual, x, weight, rstd, backend: (x.new_empty(x.shape), weight.new_empty(weight.shape)),
    ),
    _save,
    _backward,
    differentiable=2,
)
