"""RMSNorm in Triton, with the residual addition fused (the convention is in reference.py).

With r = 1 / sqrt(mean(x^2) + eps), n = x r and g = dy * weight:

    dx = r * (g - n * mean(g n)) + d new_residual            dweight = sum over rows of dy * n (n as it was rounded)

Backward is persistent: a few programs a multiprocessor walk over the rows, read x and dy once and ahead, and keep their share of
dweight in float32 registers; the shares are summed afterwards in a fixed order.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..backends import triton_configs as configs
from ..backends.layout import adjacent_rows
from ..backends.triton_common import on_device


@triton.jit
def _forward_kernel(
    x_ptr,
    residual_ptr,
    weight_ptr,
    y_ptr,
    new_residual_ptr,
    rstd_ptr,
    stride_x,
    stride_residual,
    N,
    D,
    eps,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    RESIDUAL: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    offs_d = tl.arange(0, BLOCK_D)
    inside = rows < N
    mask = inside[:, None] & (offs_d[None, :] < D)
    x = tl.load(x_ptr + rows[:, None] * stride_x + offs_d[None, :], mask=mask, other=0.0).to(tl.float32)
    out = rows[:, None] * D + offs_d[None, :]
    if RESIDUAL:
        x += tl.load(residual_ptr + rows[:, None] * stride_residual + offs_d[None, :], mask=mask, other=0.0).to(
            tl.float32
        )
        x = x.to(y_ptr.dtype.element_ty)  # what is normalised is the sum as stored
        tl.store(new_residual_ptr + out, x, mask=mask)
        x = x.to(tl.float32)
    rstd = 1.0 / tl.sqrt(tl.sum(x * x, 1) / D + eps)
    tl.store(rstd_ptr + rows, rstd, mask=inside)
    weight = tl.load(weight_ptr + offs_d, mask=offs_d < D, other=0.0).to(tl.float32)
    normed = (x * rstd[:, None]).to(y_ptr.dtype.element_ty).to(tl.float32)
    y = normed * weight[None, :]
    tl.store(y_ptr + out, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _load_rows(ptr, stride, block, N, offs_d, columns, ROWS: tl.constexpr):
    """A block of rows in its dtype, 0 beyond the edge."""
    rows = block * ROWS + tl.arange(0, ROWS).to(tl.int64)
    mask = (rows < N)[:, None] & columns[None, :]
    return tl.load(ptr + rows[:, None] * stride + offs_d[None, :], mask=mask, other=0.0)


@triton.jit
def _load_scalars(ptr, block, N, ROWS: tl.constexpr):
    rows = block * ROWS + tl.arange(0, ROWS).to(tl.int64)
    return tl.load(ptr + rows, mask=rows < N, other=0.0)


@triton.jit
def _backward_kernel(
    dy_ptr,
    d_residual_ptr,
    x_ptr,
    weight_ptr,
    rstd_ptr,
    dx_ptr,
    dw_ptr,
    stride_dy,
    stride_d_residual,
    stride_x,
    N,
    D,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    RESIDUAL: tl.constexpr,
    AHEAD: tl.constexpr,
):
    """RESIDUAL: add d_residual to dx. AHEAD: read it, too, a block of rows in advance, if there are registers."""
    pid = tl.program_id(0)
    programs = tl.num_programs(0)
    offs_d = tl.arange(0, BLOCK_D)
    columns = offs_d < D
    weight = tl.load(weight_ptr + offs_d, mask=columns, other=0.0).to(tl.float32)
    dw = tl.zeros((BLOCK_D,), dtype=tl.float32)
    blocks = tl.cdiv(N, ROWS)
    x_next = _load_rows(x_ptr, stride_x, pid, N, offs_d, columns, ROWS)
    dy_next = _load_rows(dy_ptr, stride_dy, pid, N, offs_d, columns, ROWS)
    d_residual_next = x_next
    if RESIDUAL and AHEAD:
        d_residual_next = _load_rows(d_residual_ptr, stride_d_residual, pid, N, offs_d, columns, ROWS)
    rstd_next = _load_scalars(rstd_ptr, pid, N, ROWS)
    for block in range(pid, blocks, programs):
        x, dy, rstd = x_next.to(tl.float32), dy_next.to(tl.float32), rstd_next
        if RESIDUAL and AHEAD:
            d_residual = d_residual_next.to(tl.float32)
        if RESIDUAL and not AHEAD:
            d_residual = _load_rows(d_residual_ptr, stride_d_residual, block, N, offs_d, columns, ROWS).to(tl.float32)
        # What comes from memory for the next rows is on its way while these are reduced.
        x_next = _load_rows(x_ptr, stride_x, block + programs, N, offs_d, columns, ROWS)
        dy_next = _load_rows(dy_ptr, stride_dy, block + programs, N, offs_d, columns, ROWS)
        if RESIDUAL and AHEAD:
            d_residual_next = _load_rows(d_residual_ptr, stride_d_residual, block + programs, N, offs_d, columns, ROWS)
        rstd_next = _load_scalars(rstd_ptr, block + programs, N, ROWS)
        rows = block * ROWS + tl.arange(0, ROWS).to(tl.int64)
        mask = (rows < N)[:, None] & columns[None, :]
        normed = x * rstd[:, None]
        dw += tl.sum(dy * normed.to(dx_ptr.dtype.element_ty).to(tl.float32), 0)
        g = dy * weight[None, :]
        dx = rstd[:, None] * (g - normed * (tl.sum(g * normed, 1) / D)[:, None])
        if RESIDUAL:
            dx += d_residual
        tl.store(dx_ptr + rows[:, None] * D + offs_d[None, :], dx.to(dx_ptr.dtype.element_ty), mask=mask)
    tl.store(dw_ptr + pid.to(tl.int64) * D + offs_d, dw, mask=columns)


@triton.jit
def _sum_shares_kernel(shares_ptr, dw_ptr, P, D, BLOCK_P: tl.constexpr, BLOCK_D: tl.constexpr):
    """dweight (D,) = the sum of shares (P, D), in a fixed order."""
    offs_d = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    offs_p = tl.arange(0, BLOCK_P)
    total = tl.zeros((BLOCK_P, BLOCK_D), dtype=tl.float32)
    for start in range(0, P, BLOCK_P):
        mask = (start + offs_p < P)[:, None] & (offs_d < D)[None, :]
        total += tl.load(shares_ptr + (start + offs_p)[:, None] * D + offs_d[None, :], mask=mask, other=0.0)
    tl.store(dw_ptr + offs_d, tl.sum(total, 0).to(dw_ptr.dtype.element_ty), mask=offs_d < D)


def tile(D: int) -> tuple[int, int, int]:
    """(rows, columns, warps) of a program: about 4k values, or one longer row."""
    block = triton.next_power_of_2(D)
    rows = max(1, 4096 // block)
    return rows, block, max(1, min(16, rows * block // 512))


def backward_tile(D: int) -> tuple[int, int, int]:
    """(rows, columns, warps) of a program of the backward kernel, whose warps lie side by side along a row.

    The sum over rows, for dweight, is then within a thread. Where warps shared the columns, a block of rows took six barriers,
    and the kernel 2.07 TB/s on an H100.
    """
    block = triton.next_power_of_2(D)
    warps = max(1, min(16, block // 256))
    return max(1, 512 * warps // block), block, warps


def reads_residual_ahead(dtype: torch.dtype) -> bool:
    """Whether the backward kernel has registers for another row's d_residual: in float32 some tiles would spill."""
    return dtype != torch.float32


def forward(x: Tensor, weight: Tensor, eps: float, residual: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """-> y, x + residual (empty without one), rstd (N,) float32."""
    x_ND = adjacent_rows(x)
    residual_ND = None if residual is None else adjacent_rows(residual)
    N, D = x_ND.shape
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    new_residual = torch.empty(0 if residual is None else x.shape, dtype=x.dtype, device=x.device)
    rstd_N = torch.empty(N, dtype=torch.float32, device=x.device)
    rows, block, warps = tile(D)
    with on_device(x):
        _forward_kernel[(triton.cdiv(N, rows),)](
            x_ND,
            residual_ND,
            weight.contiguous(),
            y,
            new_residual,
            rstd_N,
            x_ND.stride(0),
            0 if residual_ND is None else residual_ND.stride(0),
            N,
            D,
            eps,
            ROWS=rows,
            BLOCK_D=block,
            RESIDUAL=residual is not None,
            num_warps=warps,
            # Where a thread has one feature of a row, x * x + (the neighbour's x * x) would become one rounding fewer on either
            # side, and the lanes of a row would end with sums that differ in the last bit: which one rstd holds was chance.
            enable_fp_fusion=False,
        )
    return y, new_residual, rstd_N


def backward(dy: Tensor, d_residual: Tensor | None, x: Tensor, weight: Tensor, rstd_N: Tensor) -> tuple[Tensor, Tensor]:
    """x is what was normalised. -> dx, dweight."""
    dy_ND, x_ND = adjacent_rows(dy), adjacent_rows(x)
    d_residual_ND = None if d_residual is None else adjacent_rows(d_residual)
    N, D = x_ND.shape
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    rows, block, warps = backward_tile(D)
    programs = max(1, min(triton.cdiv(N, rows), configs.persistent_programs(x.device, warps)))
    dw_PD = torch.empty(programs, D, dtype=torch.float32, device=x.device)
    dweight = torch.empty(D, dtype=weight.dtype, device=x.device)
    with on_device(x):
        _backward_kernel[(programs,)](
            dy_ND,
            d_residual_ND,
            x_ND,
            weight.contiguous(),
            rstd_N,
            dx,
            dw_PD,
            dy_ND.stride(0),
            0 if d_residual_ND is None else d_residual_ND.stride(0),
            x_ND.stride(0),
            N,
            D,
            ROWS=rows,
            BLOCK_D=block,
            RESIDUAL=d_residual is not None,
            AHEAD=reads_residual_ahead(x.dtype),
            num_warps=warps,
        )
        _sum_shares_kernel[(triton.cdiv(D, 8),)](
            dw_PD, dweight, programs, D, BLOCK_P=min(1024, triton.next_power_of_2(programs)), BLOCK_D=8, num_warps=4
        )
    return dx, dweight
