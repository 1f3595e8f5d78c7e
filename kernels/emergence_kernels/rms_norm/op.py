"""RMSNorm with an optional fused residual addition."""

import torch
from torch import Tensor

from ..backends.checks import check_float, require
from ..backends.dispatch import resolve_backend, what_takes
from ..backends.ranking import fastest
from .reference import rms_norm as rms_norm_torch

MAX_FEATURES = 8192  # of the Triton and CUDA kernels, which keep a row in registers
MAX_FEATURES_SINGLY = 4096  # of the CUDA kernels, where rows do not divide into packs of 16 bytes


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
    if torch.is_autocast_enabled(x.device.type):
        weight = weight.to(x.dtype)
    check_float("rms_norm", x=x, weight=weight, residual=residual)
    require(x.dim() >= 1 and x.shape[-1] > 0, f"rms_norm: x must be (..., features), got shape {tuple(x.shape)}")
    require(
        weight.shape == x.shape[-1:],
        f"rms_norm: weight has shape {tuple(weight.shape)}, expected ({x.shape[-1]},) to match x",
    )
    if residual is not None:
        require(
            residual.shape == x.shape,
            f"rms_norm: residual has shape {tuple(residual.shape)} but x has {tuple(x.shape)}",
        )
    limits = what_takes(x)
    D = x.shape[-1]
    if D > MAX_FEATURES:
        limits["triton"] = limits["cuda"] = f"{D} features are more than {MAX_FEATURES}"
    elif D > MAX_FEATURES_SINGLY and D * x.element_size() % 16:
        limits["cuda"] = f"{D} features are more than {MAX_FEATURES_SINGLY} and no multiple of {16 // x.element_size()}"
    measured = fastest("rms_norm", x.device, x.dtype, (D,))
    backend = resolve_backend(backend, "rms_norm", x.device, limits, measured=measured)
    if backend == "torch":
        y, new_residual = rms_norm_torch(x, weight, eps, residual)
    else:
        run = _compiled if torch.compiler.is_compiling() else _Eager.apply
        y, new_residual, _ = run(x, weight, eps, residual, backend)
    return y if residual is None else (y, new_residual)


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


def _backward(ctx, dy: Tensor, d_residual: Tensor, gradients) -> tuple[Tensor | None, ...]:
    dx, dw = gradients(dy, d_residual if ctx.with_residual else None, *ctx.saved_tensors, ctx.backend)
    return dx, dw, None, dx if ctx.with_residual else None, None


class _Eager(torch.autograd.Function):
    """Calling a custom op costs tens of microseconds more than this."""

    @staticmethod
    def forward(ctx, *inputs):
        outputs = _forward(*inputs)
        _save(ctx, inputs, outputs)
        ctx.mark_non_differentiable(outputs[2])
        ctx.set_materialize_grads(False)  # zeros for rstd, or for a sum that nobody used, would be a launch each
        return outputs

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy, d_residual, _):
        dy = torch.zeros_like(d_residual) if dy is None else dy
        return _backward(ctx, dy, d_residual, _gradients)


@torch.library.custom_op("emergence_kernels::rms_norm", mutates_args=())
def _compiled(
    x: Tensor, weight: Tensor, eps: float, residual: Tensor | None, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    return _forward(x, weight, eps, residual, backend)


@_compiled.register_fake
def _(x, weight, eps, residual, backend):
    rows = x.shape[:-1].numel()
    new_residual = x.new_empty(0 if residual is None else x.shape)
    return x.new_empty(x.shape), new_residual, x.new_empty(rows, dtype=torch.float32)


@torch.library.custom_op("emergence_kernels::rms_norm_backward", mutates_args=())
def _compiled_backward(
    dy: Tensor, d_residual: Tensor | None, x: Tensor, weight: Tensor, rstd: Tensor, backend: str
) -> tuple[Tensor, Tensor]:
    return _gradients(dy, d_residual, x, weight, rstd, backend)


@_compiled_backward.register_fake
def _(dy, d_residual, x, weight, rstd, backend):
    return x.new_empty(x.shape), weight.new_empty(weight.shape)


_compiled.register_autograd(
    lambda ctx, dy, d_residual, _: _backward(ctx, dy, d_residual, _compiled_backward),
    setup_context=lambda ctx, inputs, output: _save(ctx, inputs, output),
)
