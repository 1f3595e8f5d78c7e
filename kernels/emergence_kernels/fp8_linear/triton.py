"""Quantisation to e4m3 in Triton (reference.py has the definition), and products by torch._scaled_mm (cuBLASLt or CUTLASS).

A row is read once and kept in registers. A weight's columns are reduced first, then read again by tiles and written transposed,
as the second operand of a product must have the sum's dimension last.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..backends.layout import adjacent_rows
from ..backends.triton_common import on_device
from . import reference

WIDEST = 16384  # features of a row that is kept in registers; wider ones are read twice
TILE = 128, 64  # rows and columns of a program that transposes
# Sums stay in the tensor cores, which keep some 14 bits, and are not promoted to float32 now and then: operands have 4.
FAST_ACCUMULATION = True


@triton.jit
def _magnitude(x):
    """The bits of |x|, which order as the magnitudes do, and infinities and NaN above them."""
    return x.to(tl.int32, bitcast=True) & 0x7FFFFFFF


@triton.jit
def _scale(bits):
    """-> the bits of the scale, and 1 / scale, for the bits of the largest magnitude."""
    finite = bits < 0x7F800000
    # Its exponent, and 1 more where the mantissa is above 1.75 = 448 / 2^8; at least 9, so that the scale's is 1.
    exponent = tl.maximum((tl.where(finite, bits, 0) + 0x1FFFFF) >> 23, 9)
    inverse = tl.where(finite, (262 - exponent) << 23, 0).to(tl.float32, bitcast=True)
    return tl.where(finite, (exponent - 8) << 23, 0x7FC00000), inverse


@triton.jit
def _rounded(x, inverse):
    return tl.where(inverse == 0.0, 0.0, x * inverse).to(tl.float8e4nv)


@triton.jit
def _fp8_rows_kernel(x_ptr, q_ptr, scale_ptr, stride_x, K, BLOCK: tl.constexpr, WHOLE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    x_ptr += row * stride_x
    q_ptr += row * K
    if WHOLE:
        x = tl.load(x_ptr + columns, mask=columns < K, other=0.0).to(tl.float32)
        scale, inverse = _scale(tl.max(_magnitude(x), 0))
        tl.store(q_ptr + columns, _rounded(x, inverse), mask=columns < K)
    else:
        largest = tl.zeros([BLOCK], tl.int32)
        for start in range(0, K, BLOCK):
            x = tl.load(x_ptr + start + columns, mask=start + columns < K, other=0.0).to(tl.float32)
            largest = tl.maximum(largest, _magnitude(x))
        scale, inverse = _scale(tl.max(largest, 0))
        for start in range(0, K, BLOCK):
            x = tl.load(x_ptr + start + columns, mask=start + columns < K, other=0.0).to(tl.float32)
            tl.store(q_ptr + start + columns, _rounded(x, inverse), mask=start + columns < K)
    tl.store(scale_ptr + row, scale.to(tl.float32, bitcast=True))


@triton.jit
def _fp8_columns_kernel(
    w_ptr, amax_ptr, q_ptr, scale_ptr, stride_w, N, K, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr
):
    n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.program_id(1).to(tl.int64) * BLOCK_K + tl.arange(0, BLOCK_K)
    amax = tl.load(amax_ptr + k, mask=k < K, other=0.0).to(tl.float32)
    scale, inverse = _scale(_magnitude(amax))
    mask = (n < N)[:, None] & (k < K)[None, :]
    w = tl.load(w_ptr + n[:, None] * stride_w + k[None, :], mask=mask, other=0.0).to(tl.float32)
    q = tl.trans(_rounded(w, inverse[None, :]))
    tl.store(q_ptr + k[:, None] * N + n[None, :], q, mask=(k < K)[:, None] & (n < N)[None, :])
    if tl.program_id(0) == 0:
        tl.store(scale_ptr + k, scale.to(tl.float32, bitcast=True), mask=k < K)


def tile(K: int) -> tuple[int, int]:
    """(columns, warps) of a program: 16 bytes of 16-bit values a thread, and up to eight times as many."""
    block = min(triton.next_power_of_2(max(K, 1)), WIDEST)
    return block, min(max(block // 512, 1), 16)


def _empty(rows: int, columns: int, like: Tensor) -> tuple[Tensor, Tensor]:
    values = torch.empty((rows, columns), dtype=reference.E4M3, device=like.device)
    return values, torch.empty(rows, dtype=torch.float32, device=like.device)


def quantize_rows(x: Tensor, out: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
    """(..., K) -> e4m3 (N, K), scales (N,); written to `out` where given."""
    x_NK = adjacent_rows(x)
    N, K = x_NK.shape
    q_NK, scales_N = out or _empty(N, K, x)
    block, warps = tile(K)
    if N:
        with on_device(x):
            _fp8_rows_kernel[(N,)](
                x_NK, q_NK, scales_N, x_NK.stride(0), K, BLOCK=block, WHOLE=block >= K, num_warps=warps
            )
    return q_NK, scales_N


def quantize_columns(w_NK: Tensor, out: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
    """(N, K) -> e4m3 of the transpose (K, N), scales (K,); written to `out` where given."""
    w_NK = adjacent_rows(w_NK)
    N, K = w_NK.shape
    q_KN, scales_K = out or _empty(K, N, w_NK)
    amax_K = torch.linalg.vector_norm(w_NK, torch.inf, dim=0)
    with on_device(w_NK):
        _fp8_columns_kernel[(triton.cdiv(N, TILE[0]), triton.cdiv(K, TILE[1]))](
            w_NK, amax_K, q_KN, scales_K, w_NK.stride(0), N, K, BLOCK_N=TILE[0], BLOCK_K=TILE[1], num_warps=4
        )
    return q_KN, scales_K


def product(a_MK: Tensor, a_scales_M: Tensor, b_NK: Tensor, b_scales_N: Tensor, dtype: torch.dtype) -> Tensor:
    """As the reference's, on the tensor cores; in the interpreter the reference's."""
    if not a_MK.is_cuda:
        return reference.product(a_MK, a_scales_M, b_NK, b_scales_N, dtype)
    if not len(a_MK):
        return torch.empty((0, len(b_NK)), dtype=dtype, device=a_MK.device)
    return torch._scaled_mm(
        a_MK,
        b_NK.t(),
        a_scales_M[:, None],
        b_scales_N[None],
        out_dtype=dtype,
        use_fast_accum=FAST_ACCUMULATION,
    )
