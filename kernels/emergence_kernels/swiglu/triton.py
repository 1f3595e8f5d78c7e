"""SwiGLU in Triton: one kernel forward, one backward (the formulas are in reference.py).

Forward reads 2F values of a row and writes F; backward reads 3F, recomputes the sigmoid and writes both gradients, 2F.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..backends.layout import adjacent_rows
from ..backends.triton_common import on_device


@triton.jit
def _gate_and_up(x_ptr, stride_x, N, F, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """The program's rows, columns and mask, and both values there in float32."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = (rows < N)[:, None] & (columns < F)[None, :]
    at = x_ptr + rows[:, None] * stride_x + columns[None, :]
    gate = tl.load(at, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(at + F, mask=mask, other=0.0).to(tl.float32)
    return rows, columns, mask, gate, up


@triton.jit
def _swiglu_kernel(x_ptr, y_ptr, stride_x, N, F, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    rows, columns, mask, gate, up = _gate_and_up(x_ptr, stride_x, N, F, ROWS, BLOCK)
    y = gate * tl.sigmoid(gate) * up
    tl.store(y_ptr + rows[:, None] * F + columns[None, :], y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _swiglu_backward_kernel(dy_ptr, x_ptr, dx_ptr, stride_dy, stride_x, N, F, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    rows, columns, mask, gate, up = _gate_and_up(x_ptr, stride_x, N, F, ROWS, BLOCK)
    dy = tl.load(dy_ptr + rows[:, None] * stride_dy + columns[None, :], mask=mask, other=0.0).to(tl.float32)
    sigmoid = tl.sigmoid(gate)
    d_gate = dy * up * sigmoid * (1.0 + gate * (1.0 - sigmoid))
    d_up = dy * gate * sigmoid
    to = dx_ptr + rows[:, None] * (2 * F) + columns[None, :]
    tl.store(to, d_gate.to(dx_ptr.dtype.element_ty), mask=mask)
    tl.store(to + F, d_up.to(dx_ptr.dtype.element_ty), mask=mask)


def tile(F: int) -> tuple[int, int]:
    """(rows, columns) of a program of four warps: 1024 values, so that each thread has 16 bytes of 16-bit values."""
    block = min(1024, triton.next_power_of_2(F))
    return 1024 // block, block


def forward(x: Tensor) -> Tensor:
    """(..., 2F) -> (..., F)."""
    x_NF = adjacent_rows(x)
    N, F = x_NF.shape[0], x_NF.shape[1] // 2
    y = torch.empty((*x.shape[:-1], F), dtype=x.dtype, device=x.device)
    if N:
        rows, block = tile(F)
        with on_device(x):
            _swiglu_kernel[(triton.cdiv(N, rows), triton.cdiv(F, block))](
                x_NF, y, x_NF.stride(0), N, F, ROWS=rows, BLOCK=block, num_warps=4
            )
    return y


def backward(dy: Tensor, x: Tensor) -> Tensor:
    """-> the gradient of gate and up, (..., 2F)."""
    dy_NF, x_NF = adjacent_rows(dy), adjacent_rows(x)
    N, F = dy_NF.shape
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if N:
        rows, block = tile(F)
        with on_device(x):
            _swiglu_backward_kernel[(triton.cdiv(N, rows), triton.cdiv(F, block))](
                dy_NF, x_NF, dx, dy_NF.stride(0), x_NF.stride(0), N, F, ROWS=rows, BLOCK=block, num_warps=4
            )
    return dx
