"""Rotary position embedding in Triton. Its gradient is the rotation by the opposite angle."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..backends.triton_common import on_device


@triton.jit
def _rotary_kernel(
    x_ptr,
    cos_ptr,
    sin_ptr,
    y_ptr,
    stride_xb,
    stride_xt,
    stride_xh,
    stride_yb,
    stride_yt,
    stride_yh,
    stride_cb,
    stride_ct,
    T,
    H,
    sign,
    D: tl.constexpr,
    R: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_REST: tl.constexpr,
    IN_PLACE: tl.constexpr,
):
    """One program: up to 16 heads of one token, so that its angles are read once."""
    b = (tl.program_id(0) // T).to(tl.int64)
    t = (tl.program_id(0) % T).to(tl.int64)
    offs_h = (tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)).to(tl.int64)  # heads may be the outermost axis
    offs_r = tl.arange(0, BLOCK_R)
    heads = offs_h[:, None] < H
    mask = heads & (offs_r[None, :] < R)
    cos = tl.load(cos_ptr + b * stride_cb + t * stride_ct + offs_r, mask=offs_r < R, other=0.0).to(tl.float32)
    sin = tl.load(sin_ptr + b * stride_cb + t * stride_ct + offs_r, mask=offs_r < R, other=0.0).to(tl.float32) * sign
    x_row = x_ptr + b * stride_xb + t * stride_xt + offs_h[:, None] * stride_xh
    y_row = y_ptr + b * stride_yb + t * stride_yt + offs_h[:, None] * stride_yh
    first = tl.load(x_row + offs_r[None, :], mask=mask, other=0.0).to(tl.float32)
    second = tl.load(x_row + R + offs_r[None, :], mask=mask, other=0.0).to(tl.float32)
    y_first = first * cos[None, :] - second * sin[None, :]
    y_second = second * cos[None, :] + first * sin[None, :]
    if IN_PLACE:
        tl.debug_barrier()  # a small tile is held by several threads, which must all have read before one writes
    tl.store(y_row + offs_r[None, :], y_first.to(y_ptr.dtype.element_ty), mask=mask)
    tl.store(y_row + R + offs_r[None, :], y_second.to(y_ptr.dtype.element_ty), mask=mask)
    if 2 * R < D and not IN_PLACE:
        offs_p = 2 * R + tl.arange(0, BLOCK_REST)
        mask = heads & (offs_p[None, :] < D)
        tl.store(y_row + offs_p[None, :], tl.load(x_row + offs_p[None, :], mask=mask, other=0.0), mask=mask)


@triton.jit
def _join_kernel(
    dq_ptr,
    dk_ptr,
    dv_ptr,
    cos_ptr,
    sin_ptr,
    out_ptr,
    stride_qb,
    stride_qt,
    stride_qh,
    stride_kb,
    stride_kt,
    stride_kh,
    stride_vb,
    stride_vt,
    stride_vh,
    stride_ob,
    stride_ot,
    stride_cb,
    stride_ct,
    T,
    H,
    G,
    D: tl.constexpr,
    R: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_REST: tl.constexpr,
):
    """One program: up to 16 heads of one token, all of dq, of dk or of dv."""
    b = (tl.program_id(0) // T).to(tl.int64)
    t = (tl.program_id(0) % T).to(tl.int64)
    block = tl.program_id(1)
    blocks_q = tl.cdiv(H, BLOCK_H)
    blocks_k = tl.cdiv(G, BLOCK_H)
    of_q = block < blocks_q
    of_v = block >= blocks_q + blocks_k
    block -= tl.where(of_q, 0, tl.where(of_v, blocks_q + blocks_k, blocks_q))
    offs_h = (block * BLOCK_H + tl.arange(0, BLOCK_H)).to(tl.int64)
    heads = (offs_h < tl.where(of_q, H, G))[:, None]
    offs_r = tl.arange(0, BLOCK_R)
    mask = heads & (offs_r[None, :] < R)
    cos = tl.load(cos_ptr + b * stride_cb + t * stride_ct + offs_r, mask=offs_r < R, other=0.0).to(tl.float32)
    sin = -tl.load(sin_ptr + b * stride_cb + t * stride_ct + offs_r, mask=offs_r < R, other=0.0).to(tl.float32)
    q_row = dq_ptr + b * stride_qb + t * stride_qt + offs_h[:, None] * stride_qh
    k_row = dk_ptr + b * stride_kb + t * stride_kt + offs_h[:, None] * stride_kh
    v_row = dv_ptr + b * stride_vb + t * stride_vt + offs_h[:, None] * stride_vh
    x_row = tl.where(of_q, q_row, tl.where(of_v, v_row, k_row))
    out_row = (
        out_ptr + b * stride_ob + t * stride_ot + (tl.where(of_q, 0, tl.where(of_v, H + G, H)) + offs_h[:, None]) * D
    )
    first = tl.load(x_row + offs_r[None, :], mask=mask, other=0.0).to(tl.float32)
    second = tl.load(x_row + R + offs_r[None, :], mask=mask, other=0.0).to(tl.float32)
    y_first = tl.where(of_v, first, first * cos[None, :] - second * sin[None, :])
    y_second = tl.where(of_v, second, second * cos[None, :] + first * sin[None, :])
    tl.store(out_row + offs_r[None, :], y_first.to(out_ptr.dtype.element_ty), mask=mask)
    tl.store(out_row + R + offs_r[None, :], y_second.to(out_ptr.dtype.element_ty), mask=mask)
    if 2 * R < D:
        offs_p = 2 * R + tl.arange(0, BLOCK_REST)
        mask = heads & (offs_p[None, :] < D)
        tl.store(out_row + offs_p[None, :], tl.load(x_row + offs_p[None, :], mask=mask, other=0.0), mask=mask)


def _tile(D: int, R: int, heads: int) -> dict[str, int]:
    """Constants of a launch. Warps so that each thread has eight pairs, 16 bytes of 16-bit values."""
    block_h, block_r = min(16, triton.next_power_of_2(heads)), triton.next_power_of_2(R)
    rest, warps = triton.next_power_of_2(max(1, D - 2 * R)), max(1, min(4, block_h * block_r // 256))
    return dict(D=D, R=R, BLOCK_H=block_h, BLOCK_R=block_r, BLOCK_REST=rest, num_warps=warps)


def _unit_rows(t: Tensor) -> Tensor:
    return t if t.stride(3) == 1 else t.contiguous()


def rotate(x_BTHD: Tensor, cos: Tensor, sin: Tensor, sign: float, out: Tensor | None = None) -> Tensor:
    """By the angles for sign 1, back for sign -1. out: where to write, x itself or any (B, T, H, D) with adjacent features."""
    B, T, H, D = x_BTHD.shape
    x = _unit_rows(x_BTHD)
    cos, sin = cos.contiguous(), sin.contiguous()
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device) if out is None else out
    if x.numel() == 0:
        return y
    tile = _tile(D, cos.shape[-1], H)
    with on_device(x):
        _rotary_kernel[(B * T, triton.cdiv(H, tile["BLOCK_H"]))](
            x,
            cos,
            sin,
            y,
            *x.stride()[:3],
            *y.stride()[:3],
            cos.stride(0) if cos.dim() == 3 else 0,
            cos.stride(-2),
            T,
            H,
            sign,
            IN_PLACE=x is out,
            **tile,
        )
    return y


def join(dq: Tensor, dk: Tensor, dv: Tensor, cos: Tensor, sin: Tensor, out: Tensor) -> None:
    """Rotates dq and dk back and writes them and dv side by side into out (B, T, H + 2G, D), whose heads are adjacent."""
    B, T, H, D = dq.shape
    G = dk.shape[2]
    dq, dk, dv, cos, sin = *map(_unit_rows, (dq, dk, dv)), cos.contiguous(), sin.contiguous()
    tile = _tile(D, cos.shape[-1], max(H, G))
    blocks = triton.cdiv(H, tile["BLOCK_H"]) + 2 * triton.cdiv(G, tile["BLOCK_H"])
    with on_device(dq):
        _join_kernel[(B * T, blocks)](
            dq,
            dk,
            dv,
            cos,
            sin,
            out,
            *dq.stride()[:3],
            *dk.stride()[:3],
            *dv.stride()[:3],
            *out.stride()[:2],
            cos.stride(0) if cos.dim() == 3 else 0,
            cos.stride(-2),
            T,
            H,
            G,
            **tile,
        )
