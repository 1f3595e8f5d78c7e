"""SwiGLU's activation, between the two projections of a gated feed-forward layer."""

from torch import Tensor

from ..backends.checks import check_float, require
from ..backends.dispatch import dtype_limits, resolve_backend
from ..backends.register_op import Op, register_op
from .reference import gradient as swiglu_gradient_torch
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
        lambda: f"swiglu: gate_up must be (..., 2 * features), got shape {tuple(gate_up.shape)}",
    )
    backend = resolve_backend(backend, "swiglu", gate_up.device, dtype_limits(gate_up))
    if backend == "torch":
        return swiglu_torch(gate_up)
    return _swiglu(gate_up, backend)


def activated(gate_up: Tensor, backend: str) -> Tensor:
    """swiglu by a backend that was resolved, without autograd."""
    if backend == "torch":
        return swiglu_torch(gate_up)
    if backend == "triton":
        from .triton import forward

        return forward(gate_up)
    from .compiled import forward

    return forward(gate_up, backend=backend)


def activation_gradient(grad: Tensor, gate_up: Tensor, backend: str, *, last: bool = False) -> Tensor:
    """Of gate and up, likewise. last: gate_up is of adjacent features and not read again, and may be overwritten."""
    if backend == "torch":
        return swiglu_gradient_torch(grad, gate_up)
    if backend == "triton":
        from .triton import backward

        return backward(grad, gate_up)
    from .compiled import backward

    # on a CPU another buffer is another pass over memory
    return backward(grad, gate_up, backend=backend, in_place=last and backend == "cpu")


def _save(ctx, inputs: tuple, output: Tensor) -> None:
    gate_up, ctx.backend = inputs
    ctx.save_for_backward(gate_up)


def _backward(ctx, gradient, grad: Tensor) -> tuple[Tensor]:
    return (gradient(grad, *ctx.saved_tensors, ctx.backend),)


_swiglu = register_op(
    Op(
        "swiglu(Tensor gate_up, str backend) -> Tensor",
        activated,
        lambda gate_up, backend: gate_up.new_empty((*gate_up.shape[:-1], gate_up.shape[-1] // 2)),
    ),
    Op(
        "swiglu_backward(Tensor grad, Tensor gate_up, str backend) -> Tensor",
        activation_gradient,
        lambda grad, gate_up, backend: gate_up.new_empty(gate_up.shape),
    ),
    _save,
    _backward,
)
