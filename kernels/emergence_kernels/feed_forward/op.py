"""The gated feed-forward layer as one operation, so that SwiGLU can be computed where the products' sums leave registers.

Composed, SwiGLU reads what a product has just written: with F hidden features, 3 F numbers a token move forward and 5 F backward,
at the limit of memory, while the tensor cores wait. In csrc/cuda/feed_forward/ the product of the gate-up projection ends with
the activation, and that of the down projection's input gradient with its derivative: 3 F are written forward (2 F are kept for
backward anyway), 2 F are read and 2 F written backward, beside products that go on.

Shapes: N tokens, K features, F hidden features.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..backends.accumulating import check_main_grad, weight_gradient
from ..backends.checks import autocast, check_float, require
from ..backends.dispatch import dtype_limits, resolve_backend
from ..backends.products import linear_apart
from ..backends.register_op import first_order, last_backward
from ..backends.tracing import profiled, traced
from ..swiglu.op import activated, activation_gradient, swiglu
from . import compiled

MainGrads = tuple[Tensor, Tensor]


@profiled
def feed_forward(
    x: Tensor,
    gate_up_weight: Tensor,
    down_weight: Tensor,
    *,
    main_grads: MainGrads | None = None,
    backend: str | None = None,
) -> Tensor:
    """down(silu(gate x) * up x) without biases (Shazeer, arXiv 2002.05202).

    Gate, up and their product are rounded to x's dtype, as by three operations; sums are float32.

    Args:
        x: (..., K). gate_up_weight: (2F, K), the gate's rows first. down_weight: (K, F).
        main_grads: float32, of the weights' shapes: the weights' gradients are added to them, and the weights have none. Not in
            compiled graphs.
        backend: of swiglu between PyTorch's products: "triton", "cuda", "cpu", "torch" or "auto". "cuda" in 16 bits on Hopper,
            which "auto" takes there: SwiGLU in the products. None reads EMERGENCE_KERNELS_BACKEND.

    Returns:
        (..., K).

    Raises:
        ValueError: shapes or dtypes do not fit. BackendError: the named backend cannot run.
    """
    x, gate_up_weight, down_weight = autocast(x, gate_up_weight, down_weight)
    check_float("feed_forward", x=x, gate_up_weight=gate_up_weight, down_weight=down_weight)
    require(
        gate_up_weight.dim() == 2
        and down_weight.dim() == 2
        and gate_up_weight.shape == (2 * down_weight.shape[1], down_weight.shape[0]),
        lambda: (
            f"feed_forward: gate_up_weight has shape {tuple(gate_up_weight.shape)} and down_weight {tuple(down_weight.shape)}, "
            "expected (2 hidden, features) and (features, hidden)"
        ),
    )
    require(
        x.dim() >= 1 and x.shape[-1] == gate_up_weight.shape[1],
        lambda: (
            f"feed_forward: x has shape {tuple(x.shape)}, expected (..., {gate_up_weight.shape[1]}) to match gate_up_weight"
        ),
    )
    require(main_grads is None or len(main_grads) == 2, "feed_forward: main_grads are two, of both weights")
    for main_grad, weight in zip(main_grads or (), (gate_up_weight, down_weight)):
        check_main_grad("feed_forward", main_grad, weight)
    compiling = traced()  # a graph has the three parts
    fuses = (
        not compiling
        and x.device.type == "cuda"
        and compiled.unsupported_reason(x, gate_up_weight, down_weight) is None
    )
    chosen = resolve_backend(backend, "feed_forward", x.device, dtype_limits(x), measured=("cuda",) if fuses else ())
    if compiling:
        require(main_grads is None, "feed_forward: main_grads are not supported in compiled graphs")
        return F.linear(swiglu(F.linear(x, gate_up_weight), backend=chosen), down_weight)
    return _FeedForward.apply(x, gate_up_weight, down_weight, main_grads, chosen, fuses and chosen == "cuda")


class _FeedForward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        gate_up_weight: Tensor,
        down_weight: Tensor,
        main_grads: MainGrads | None,
        backend: str,
        fused: bool,
    ) -> Tensor:
        x_NK = x.reshape(-1, x.shape[-1])
        if fused:
            gate_up, hidden = compiled.forward(x_NK, gate_up_weight)
        else:
            gate_up = (linear_apart if backend == "cpu" else F.linear)(x_NK, gate_up_weight)
            hidden = activated(gate_up, backend)
        ctx.save_for_backward(x_NK, gate_up, hidden, gate_up_weight, down_weight)
        # not saved for backward: they are changed in place, which autograd treats as an error
        ctx.main_grads, ctx.backend, ctx.fused = main_grads, backend, fused
        # not a view of a product of rows, which autograd does not let be changed in place
        return F.linear(hidden.view(*x.shape[:-1], hidden.shape[-1]), down_weight)

    @staticmethod
    @first_order
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x_NK, gate_up, hidden, gate_up_weight, down_weight = ctx.saved_tensors
        of_x, of_gate_up, of_down, *_ = ctx.needs_input_grad
        into_gate_up, into_down = ctx.main_grads or (None, None)
        dy_NK = dy.reshape(x_NK.shape)
        if ctx.fused:
            d_gate_up = compiled.backward(dy_NK, down_weight, gate_up)
        else:
            d_gate_up = activation_gradient(dy_NK @ down_weight, gate_up, ctx.backend, last=last_backward())
        d_down = weight_gradient(into_down, dy_NK, hidden, down_weight) if of_down else None
        d_weight = weight_gradient(into_gate_up, d_gate_up, x_NK, gate_up_weight) if of_gate_up else None
        dx = (d_gate_up @ gate_up_weight).view(dy.shape) if of_x else None
        return dx, d_weight, d_down, None, None, None
