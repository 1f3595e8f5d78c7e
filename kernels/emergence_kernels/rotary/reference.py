"""Rotary position embedding in PyTorch."""

from typing import Any

import torch
from torch import Tensor

from ..backends.register_op import first_order
from ..backends.tracing import traced


def rotary(x_BTHD: Tensor, cos_TR: Tensor, sin_TR: Tensor) -> Tensor:
    """The first 2R features are rotated in pairs (i, i + R) in float32; the others pass."""
    R = cos_TR.shape[-1]
    wide = torch.promote_types(x_BTHD.dtype, torch.float32)
    cos, sin = (t.to(wide).unsqueeze(-2) for t in (cos_TR, sin_TR))
    if x_BTHD.device.type == "cpu" and x_BTHD.dtype == wide and not traced():
        return _Rotation.apply(x_BTHD, cos, sin)
    first, second = x_BTHD[..., :R].to(wide), x_BTHD[..., R : 2 * R].to(wide)
    turned = torch.cat((first * cos - second * sin, second * cos + first * sin), -1).to(x_BTHD.dtype)
    return turned if x_BTHD.shape[-1] == 2 * R else torch.cat((turned, x_BTHD[..., 2 * R :]), -1)


def rotate(x_BTHD: Tensor, cos_TR: Tensor, sin_TR: Tensor, sign: float, out_BTHD: Tensor | None = None) -> Tensor:
    """The same without autograd, by the angles for sign 1, back for sign -1. out_BTHD: where to write; it may be x."""
    wide = torch.promote_types(x_BTHD.dtype, torch.float32)
    cos, sin = (t.to(wide).unsqueeze(-2) for t in (cos_TR, sin_TR))
    if x_BTHD.dtype == wide and out_BTHD is not x_BTHD:
        return _turn(x_BTHD, cos, sin, sign, out_BTHD)
    turned = _turn(x_BTHD.to(wide), cos, sin, sign)
    return turned.to(x_BTHD.dtype) if out_BTHD is None else out_BTHD.copy_(turned)


class _Rotation(torch.autograd.Function):
    """Its gradient is turned back by the same angle."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turn(x, cos, sin, 1.0)

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turn(grad, cos, sin, -1.0), None, None


def _turn(x_BTHD: Tensor, cos_T1R: Tensor, sin_T1R: Tensor, sign: float, out_BTHD: Tensor | None = None) -> Tensor:
    """Fewer passes over memory than autograd would make: on a CPU they are the cost. out_BTHD: where to write, not x."""
    R = cos_T1R.shape[-1]
    if out_BTHD is None:
        out_BTHD = torch.empty(x_BTHD.shape, dtype=x_BTHD.dtype, device=x_BTHD.device)
    first, second = x_BTHD[..., :R], x_BTHD[..., R : 2 * R]
    torch.mul(first, cos_T1R, out=out_BTHD[..., :R]).addcmul_(second, sin_T1R, value=-sign)
    torch.mul(second, cos_T1R, out=out_BTHD[..., R : 2 * R]).addcmul_(first, sin_T1R, value=sign)
    out_BTHD[..., 2 * R :] = x_BTHD[..., 2 * R :]
    return out_BTHD
