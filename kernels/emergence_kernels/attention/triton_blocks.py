"""Blocks of queries and keys of attention's Triton kernels: where they are, what may be seen, loads and stores."""

import triton
import triton.language as tl

from ..backends.triton_common import WIDEN


@triton.jit
def _load(ptr, stride, offs_t, offs_d, T, D: tl.constexpr, BLOCK_D: tl.constexpr, EVEN_T: tl.constexpr):
    """Rows offs_t of a (T, D) matrix, 0 outside."""
    ptrs = ptr + offs_t.to(tl.int64)[:, None] * stride + offs_d[None, :]
    if EVEN_T and D == BLOCK_D:
        x = tl.load(ptrs)
    elif EVEN_T:
        x = tl.load(ptrs, mask=offs_d[None, :] < D, other=0.0)
    elif D == BLOCK_D:
        x = tl.load(ptrs, mask=offs_t[:, None] < T, other=0.0)
    else:
        x = tl.load(ptrs, mask=(offs_t[:, None] < T) & (offs_d[None, :] < D), other=0.0)
    if WIDEN:
        x = x.to(tl.float32)
    return x


@triton.jit
def _store(ptr, stride, x, offs_t, offs_d, T, D: tl.constexpr):
    ptrs = ptr + offs_t.to(tl.int64)[:, None] * stride + offs_d[None, :]
    tl.store(ptrs, x.to(ptr.dtype.element_ty), mask=(offs_t[:, None] < T) & (offs_d[None, :] < D))


@triton.jit
def _narrow(x, like):
    """Operands of a matrix product in the inputs' dtype (float32 in the interpreter)."""
    return x.to(like.dtype)


@triton.jit
def _visible(
    offs_q, offs_k, ids_q, ids_k, T, window, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, DOCUMENTS: tl.constexpr
):
    """(queries, keys) -> may the query see the key?"""
    seen = (offs_q[:, None] < T) & (offs_k[None, :] < T)
    if CAUSAL:
        seen = seen & (offs_q[:, None] >= offs_k[None, :])
    if WINDOW:
        seen = seen & (offs_q[:, None] - offs_k[None, :] < window)
        if not CAUSAL:
            seen = seen & (offs_k[None, :] - offs_q[:, None] < window)
    if DOCUMENTS:
        seen = seen & (ids_q[:, None] == ids_k[None, :])
    return seen


@triton.jit
def _key_range(
    block, q0, range_ptr, T, window,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
    CAUSAL: tl.constexpr, WINDOW: tl.constexpr, DOCUMENTS: tl.constexpr,
):  # fmt: skip
    """[low, high) of the keys that a block of queries visits; keys below `free` are seen by all of its rows."""
    low = 0
    high = T
    if CAUSAL:
        high = tl.minimum(T, q0 + BLOCK_Q)
    if WINDOW:
        low = tl.maximum(0, q0 - window + 1) // BLOCK_K * BLOCK_K
        if not CAUSAL:
            high = tl.minimum(T, q0 + BLOCK_Q + window - 1)
    if DOCUMENTS:
        low = tl.maximum(low, tl.load(range_ptr + 2 * block) * BLOCK_K)
        high = tl.minimum(high, tl.load(range_ptr + 2 * block + 1) * BLOCK_K)
    if WINDOW or DOCUMENTS:
        free = low
    elif CAUSAL:
        free = tl.minimum(q0, T) // BLOCK_K * BLOCK_K
    else:
        free = T // BLOCK_K * BLOCK_K
    return low, free, high


@triton.jit
def _query_range(
    block, k0, range_ptr, T, window,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
    CAUSAL: tl.constexpr, WINDOW: tl.constexpr, DOCUMENTS: tl.constexpr,
):  # fmt: skip
    """[low, high) of the queries that visit a block of keys; queries from `free` on see all of it."""
    low = 0
    high = T
    if CAUSAL:
        low = k0 // BLOCK_Q * BLOCK_Q
    if WINDOW:
        high = tl.minimum(T, k0 + BLOCK_K + window - 1)
        if not CAUSAL:
            low = tl.maximum(0, k0 - window + 1) // BLOCK_Q * BLOCK_Q
    if DOCUMENTS:
        low = tl.maximum(low, tl.load(range_ptr + 2 * block) * BLOCK_Q)
        high = tl.minimum(high, tl.load(range_ptr + 2 * block + 1) * BLOCK_Q)
    if WINDOW or DOCUMENTS:
        free = tl.cdiv(high, BLOCK_Q) * BLOCK_Q
    elif CAUSAL:
        free = tl.cdiv(k0 + BLOCK_K - 1, BLOCK_Q) * BLOCK_Q
    else:
        free = low
    if k0 + BLOCK_K > T:  # the last keys are beyond the edge: no query sees all of the block
        free = tl.cdiv(T, BLOCK_Q) * BLOCK_Q
    return low, free, high


@triton.jit
def _place(T, heads, BLOCK: tl.constexpr):
    """(blocks of a head, this program's block, sequence and head). All in the first dimension, which alone may be longer than
    65,535, with a head's blocks in a row, since they share keys and values in the L2 cache."""
    blocks = tl.cdiv(T, BLOCK)
    # Unsigned division saves registers, without which kernels for sm_80 spilled.
    head = tl.program_id(0).to(tl.uint32) // tl.cast(blocks, tl.uint32)
    b = head // tl.cast(heads, tl.uint32)
    block = tl.program_id(0) - head.to(tl.int32) * blocks
    return blocks, block, b.to(tl.int64), (head - b * tl.cast(heads, tl.uint32)).to(tl.int64)
