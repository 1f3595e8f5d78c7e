"""RMSNorm in PyTorch.

Llama's convention: statistics and the normalised value in float32, cast to the input's dtype, times weight. With
r = 1 / sqrt(mean(x^2) + eps), n = x r and g = dy * weight:

    dx = r * (g - n * mean(g n)),    dweight = sum over rows of dy * n
"""

from typing import Any

import torch
from torch import Tensor

from ..backends.register_op import first_order
from ..backends.tracing import traced


def rms_norm(x: Tensor, weight: Tensor, eps: float, residual: Tensor | None) -> tuple[Tensor, Tensor | None]:
    if residual is not None:
        x = x + residual
    if x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64) and not traced():
        y = _FewPasses.apply(x.reshape(-1, x.shape[-1]), weight, eps).view(x.shape)
    else:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
        y = normed.to(x.dtype) * weight
    return y, (None if residual is None else x)


class _FewPasses(torch.autograd.Function):
    """The same with a third of the passes over memory that autograd would make: on a CPU they are the cost."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        r_N = torch.linalg.vecdot(x_ND, x_ND).div_(x_ND.shape[1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x_ND, weight_D, r_N)
        return torch.mul(x_ND, r_N.unsqueeze(1)).mul_(weight_D)

    @staticmethod
    @first_order
    def backward(ctx: Any, dy_ND: Tensor) -> tuple[Tensor, Tensor, None]:
        x_ND, weight_D, r_N = ctx.saved_tensors
        product_ND = dy_ND * x_ND
        pull_N = (product_ND @ weight_D).div_(-x_ND.shape[1])
        for _ in range(3):  # r^3 by itself may leave float32's range
            pull_N.mul_(r_N)
        dw_D = product_ND.mul_(r_N.unsqueeze(1)).sum(0)  # not a matrix-vector product: that adds less exactly
        dx_ND = torch.mul(dy_ND, weight_D, out=product_ND).mul_(r_N.unsqueeze(1))
        return dx_ND.addcmul_(x_ND, pull_N.unsqueeze(1)), dw_D, None
