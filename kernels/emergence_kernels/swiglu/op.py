"""SwiGLU's activation, between the two projections of a gated feed-forward layer."""

import torch
from torch import Tensor

from ..backends.checks import check_float, require
from ..backends.dispatch import resolve_backend, what_takes
from .reference import swiglu as swiglu_torch


def swiglu(gate_up: Tensor, *, backend: str | None = None) -> Tensor:
    """silu(gate) * up of a projection that holds both (Shazeer, arXiv 2002.05202).

    Computed in float32 (float64 for float64) and rounded once. Backward recomputes silu(gate), so that nothing but the
    input is kept, and writes both gradients into one tensor of the input's shape.

    Args:
        gate_up: (..., 2F), the gate's F features first.
        backend: "triton", "cuda", "cpu", "torch" or "auto"; None reads EMERGENCE_KERNELS_BACKEND.

    Returns:
        (..., F).

    Raises:
        ValueError: the shape or dtype does not fit. BackendError: the named backend cannot run.
    """
    check_float("swiglu", gate_up=gate_up)
    require(
        gate_up.dim() >= 1 and gate_up.shape[-1] > 0 and gate_up.shape[-1] % 2 == 0,
        f"swiglu: gate_up must be (..., 2 * features), got shape {tuple(gate_up.shape)}",
    )
    backend = resolve_backend(backend, "swiglu", gate_up.device, what_takes(gate_up))
    if backend == "torch":
        return swiglu_torch(gate_up)
    return (_compiled if torch.compiler.is_compiling() else _Eager.apply)(gate_up, backend)


def _forward(gate_up: Tensor, backend: str) -> Tensor:
    if backend == "triton":
        from .triton import forward

        return forward(gate_up)
    from .compiled import forward

    return forward(gate_up, backend=backend)


def _gradient(grad: Tensor, gate_up: Tensor, backend: str) -> Tensor:
    if backend == "triton":
        from .triton import backward

        return backward(grad, gate_up)
    from .compiled import backward

    return backward(grad, gate_up, backend=backend)


class _Eager(torch.autograd.Function):
    """Calling a custom op costs tens of microseconds more than this."""

    @staticmethod
    def forward(ctx, gate_up, backend):
        ctx.save_for_backward(gate_up)
        ctx.backend = backend
        return _forward(gate_up, backend)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return _gradient(grad, *ctx.saved_tensors, ctx.backend), None


@torch.library.custom_op("emergence_kernels::swiglu", mutates_args=())
def _compiled(gate_up: Tensor, backend: str) -> Tensor:
    return _forward(gate_up, backend)


@_compiled.register_fake
def _(gate_up, backend):
    return gate_up.new_empty((*gate_up.shape[:-1], gate_up.shape[-1] // 2))


@torch.library.custom_op("emergence_kernels::swiglu_backward", mutates_args=())
def _compiled_backward(grad: Tensor, gate_up: Tensor, backend: str) -> Tensor:
    return _gradient(grad, gate_up, backend)


@_compiled_backward.register_fake
def _(grad, gate_up, backend):
    return gate_up.new_empty(gate_up.shape)


def _save(ctx, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(inputs[0])
    ctx.backend = inputs[1]


_compiled.register_autograd(
    lambda ctx, grad: (_compiled_backward(grad, *ctx.saved_tensors, ctx.backend), None), setup_context=_save
)
