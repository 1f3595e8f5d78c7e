"""A bias-free linear layer whose weight gradient is added to a main gradient by its product: dW += dy^T x."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import require
from .products import add_to_dw
from .register_op import first_order


def linear(x: Tensor, weight: Tensor, main_grad: Tensor) -> Tensor:
    """x W^T.

    Args:
        x: (..., K). weight: (N, K). main_grad: (N, K) float32, to which the weight's gradient is added; the weight has none.
    """
    return _Accumulating.apply(x, weight, main_grad)


def check_main_grad(op: str, main_grad: Tensor | None, weight: Tensor) -> None:
    require(
        main_grad is None
        or (main_grad.dtype == torch.float32 and main_grad.shape == weight.shape and main_grad.device == weight.device),
        lambda: f"{op}: a main gradient must be float32, of its weight's shape {tuple(weight.shape)}, on its device",
    )


def weight_gradient(main_grad: Tensor | None, dy_NM: Tensor, x_NK: Tensor, weight: Tensor) -> Tensor | None:
    """dy^T x in the weight's dtype, or None where it was added to a main gradient."""
    gradient = add_to_dw(main_grad, dy_NM, x_NK, single=main_grad is None)
    return gradient.to(weight.dtype) if main_grad is None else None


class _Accumulating(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, main_grad: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.main_grad = main_grad  # not saved for backward: it is changed in place, which autograd treats as an error
        return F.linear(x, weight)

    @staticmethod
    @first_order
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, None, None]:
        x, weight = ctx.saved_tensors
        dy_NM = dy.reshape(-1, dy.shape[-1])
        if ctx.needs_input_grad[1]:
            weight_gradient(ctx.main_grad, dy_NM, x.reshape(-1, x.shape[-1]), weight)
        dx = (dy_NM @ weight).view(x.shape) if ctx.needs_input_grad[0] else None
        return dx, None, None
