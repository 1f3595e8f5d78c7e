"""Rotary position embedding in Triton. Its gradient is the rotation by the opposite angle."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import on_device


@triton.jit
def _rotary_kernel(
    x_ptr, cos_ptr, sin_ptr, y_ptr, stride_xb, stride_xt, stride_xh, stride_cb, stride_ct, T, H, sign,
    D: tl.constexpr, R: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_REST: tl.constexpr,
):  # fmt: skip
    """One program: all heads of one token, so that its angles are read once."""
    b = (tl.program_id(0) // T).to(tl.int64)
    t = (tl.program_id(0) % T).to(tl.int64)
    offs_h = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    offs_r = tl.arange(0, BLOCK_R)
    heads = offs_h[:, None] < H
    mask = heads & (offs_r[None, :] < R)
    cos = tl.load(cos_ptr + b * stride_cb + t * stride_ct + offs_r, mask=offs_r < R, other=0.0).to(tl.float32)
    sin = tl.load(sin_ptr + b * stride_cb + t * stride_ct + offs_r, mask=offs_r < R, other=0.0).to(tl.float32) * sign
    x_row = x_ptr + b * stride_xb + t * stride_xt + offs_h[:, None] * stride_xh
    y_row = y_ptr + (b * T + t) * H * D + offs_h[:, None] * D
    first = tl.load(x_row + offs_r[None, :], mask=mask, other=0.0).to(tl.float32)
    second = tl.load(x_row + R + offs_r[None, :], mask=mask, other=0.0).to(tl.float32)
    y_first = first * cos[None, :] - second * sin[None, :]
    y_second = second * cos[None, :] + first * sin[None, :]
    tl.store(y_row + offs_r[None, :], y_first.to(y_ptr.dtype.element_ty), mask=mask)
    tl.store(y_row + R + offs_r[None, :], y_second.to(y_ptr.dtype.element_ty), mask=mask)
    if 2 * R < D:
        offs_p = 2 * R + tl.arange(0, BLOCK_REST)
        mask = heads & (offs_p[None, :] < D)
        tl.store(y_row + offs_p[None, :], tl.load(x_row + offs_p[None, :], mask=mask, other=0.0), mask=mask)


def rotate(x_BTHD: Tensor, cos: Tensor, sin: Tensor, sign: float) -> Tensor:
    """By the angles for sign 1, back for sign -1."""
    B, T, H, D = x_BTHD.shape
    R = cos.shape[-1]
    x = x_BTHD if x_BTHD.stride(3) == 1 else x_BTHD.contiguous()
    cos, sin = cos.contiguous(), sin.contiguous()
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    block_h = min(16, triton.next_power_of_2(H))
    with on_device(x):
        _rotary_kernel[(B * T, triton.cdiv(H, block_h))](
            x, cos, sin, y, *x.stride()[:3], cos.stride(0) if cos.dim() == 3 else 0, cos.stride(-2), T, H, sign,
            D=D, R=R, BLOCK_H=block_h, BLOCK_R=triton.next_power_of_2(R),
            BLOCK_REST=triton.next_power_of_2(max(1, D - 2 * R)), num_warps=4,
        )  # fmt: skip
    return y
