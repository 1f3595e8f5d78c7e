"""Attention in Triton, forward and backward, without a (T, T) matrix (Dao, arXiv 2307.08691).

With s = scale * q k^T, p = softmax(s) and lse the log-sum-exp of a row, kept by the forward pass (in base 2):

    o = p v        p = exp(s - lse)        dv = p^T do        dp = do v^T
    ds = p * (dp - delta), delta = rowsum(o * do)        dq = scale * ds k        dk = scale * ds^T q

Backward runs one kernel over blocks of keys (dk, dv, summing the query heads of a group) and one over blocks of queries
(dq). That recomputes s and dp twice, and needs no atomics: it is always deterministic.

A block of queries visits the contiguous range of key blocks that any of its rows may see: from the causal edge, the
window and, for documents, the range of blocks whose ids overlap. Blocks that need no mask get none.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..backends import triton_configs as configs
from ..backends.triton_common import WIDEN, dot_precision, on_device
from .options import Gradients, Options, empty_gradients
from .triton_document_ranges import block_ranges

LOG2E = tl.constexpr(1.4426950408889634)
HIDDEN = tl.constexpr(-1.0e30)  # finite: a row masked in a whole block is corrected by the block with its own key


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
def _load_tile(descriptor, b, k0, g, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr):
    """Rows k0... of head g of sequence b by Hopper's TMA, 0 outside: no masks and no pointers in registers."""
    x = tl.reshape(descriptor.load([b.to(tl.int32), k0, g.to(tl.int32), 0]), (BLOCK_K, BLOCK_D))
    if WIDEN:
        x = x.to(tl.float32)
    return x


@triton.jit
def _forward_step(
    acc, m, l, q, k_ptr, v_ptr, stride_k, stride_v, b, g, ids_ptr, ids_q, offs_q, offs_d,
    start, stop, T, window, scale2,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_K: tl.constexpr, EVEN_T: tl.constexpr, PRECISION: tl.constexpr,
    CAUSAL: tl.constexpr, WINDOW: tl.constexpr, DOCUMENTS: tl.constexpr, MASKED: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
):  # fmt: skip
    for k0 in range(start, stop, BLOCK_K):
        offs_k = k0 + tl.arange(0, BLOCK_K)
        if DESCRIPTORS:
            k = _load_tile(k_ptr, b, k0, g, BLOCK_K, BLOCK_D)
        else:
            k = _load(k_ptr, stride_k, offs_k, offs_d, T, D, BLOCK_D, EVEN_T or not MASKED)
        s = tl.dot(q, k.T, input_precision=PRECISION) * scale2
        if MASKED:
            ids_k = ids_q
            if DOCUMENTS:
                ids_k = tl.load(ids_ptr + offs_k, mask=offs_k < T, other=0)
            s = tl.where(_visible(offs_q, offs_k, ids_q, ids_k, T, window, CAUSAL, WINDOW, DOCUMENTS), s, HIDDEN)
        m_new = tl.maximum(m, tl.max(s, 1))
        p = tl.exp2(s - m_new[:, None])
        alpha = tl.exp2(m - m_new)
        l = l * alpha + tl.sum(p, 1)
        if DESCRIPTORS:
            v = _load_tile(v_ptr, b, k0, g, BLOCK_K, BLOCK_D)
        else:
            v = _load(v_ptr, stride_v, offs_k, offs_d, T, D, BLOCK_D, EVEN_T or not MASKED)
        acc = tl.dot(_narrow(p, v), v, acc * alpha[:, None], input_precision=PRECISION)
        m = m_new
    return acc, m, l


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


@triton.jit
def _forward_kernel(
    q_ptr, k_ptr, v_ptr, o_ptr, lse_ptr, ids_ptr, range_ptr,
    stride_qb, stride_qt, stride_qh, stride_kb, stride_kt, stride_kh, stride_vb, stride_vt, stride_vh,
    T, H, window, scale2, GROUP: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, EVEN_T: tl.constexpr,
    PRECISION: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, DOCUMENTS: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
):  # fmt: skip
    blocks, block, b, h = _place(T, H, BLOCK_Q)
    if CAUSAL:
        block = blocks - 1 - block  # the longest rows are scheduled first
    q0 = block * BLOCK_Q
    offs_q = q0 + tl.arange(0, BLOCK_Q)
    offs_d = tl.arange(0, BLOCK_D)
    q = _load(q_ptr + b * stride_qb + h * stride_qh, stride_qt, offs_q, offs_d, T, D, BLOCK_D, EVEN_T)
    g = h // GROUP
    if not DESCRIPTORS:
        k_ptr += b * stride_kb + g * stride_kh
        v_ptr += b * stride_vb + g * stride_vh
    ids_ptr += b * T
    ids_q = offs_q
    if DOCUMENTS:
        ids_q = tl.load(ids_ptr + offs_q, mask=offs_q < T, other=0)
    m = tl.full((BLOCK_Q,), HIDDEN, tl.float32)
    l = tl.zeros((BLOCK_Q,), tl.float32)
    acc = tl.zeros((BLOCK_Q, BLOCK_D), tl.float32)
    low, free, high = _key_range(
        b * blocks + block, q0, range_ptr, T, window, BLOCK_Q, BLOCK_K, CAUSAL, WINDOW, DOCUMENTS
    )
    if not (WINDOW or DOCUMENTS):
        acc, m, l = _forward_step(
            acc, m, l, q, k_ptr, v_ptr, stride_kt, stride_vt, b, g, ids_ptr, ids_q, offs_q, offs_d,
            low, free, T, window, scale2, D, BLOCK_D, BLOCK_K, EVEN_T, PRECISION,
            CAUSAL, WINDOW, DOCUMENTS, False, DESCRIPTORS,
        )  # fmt: skip
    acc, m, l = _forward_step(
        acc, m, l, q, k_ptr, v_ptr, stride_kt, stride_vt, b, g, ids_ptr, ids_q, offs_q, offs_d,
        free, high, T, window, scale2, D, BLOCK_D, BLOCK_K, EVEN_T, PRECISION,
        CAUSAL, WINDOW, DOCUMENTS, True, DESCRIPTORS,
    )  # fmt: skip
    o_row = H * D
    _store(o_ptr + b * T * o_row + h * D, o_row, acc / l[:, None], offs_q, offs_d, T, D)
    tl.store(lse_ptr + (b * H + h) * T + offs_q, m + tl.log2(l), mask=offs_q < T)


@triton.jit
def _delta_kernel(
    o_ptr, do_ptr, delta_ptr, stride_ob, stride_ot, stride_oh, stride_db, stride_dt, stride_dh, T, H,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_Q: tl.constexpr,
):  # fmt: skip
    _, block, b, h = _place(T, H, BLOCK_Q)
    offs_q = block * BLOCK_Q + tl.arange(0, BLOCK_Q)
    offs_d = tl.arange(0, BLOCK_D)
    o = _load(o_ptr + b * stride_ob + h * stride_oh, stride_ot, offs_q, offs_d, T, D, BLOCK_D, False)
    do = _load(do_ptr + b * stride_db + h * stride_dh, stride_dt, offs_q, offs_d, T, D, BLOCK_D, False)
    delta = tl.sum(o.to(tl.float32) * do.to(tl.float32), 1)
    tl.store(delta_ptr + (b * H + h) * T + offs_q, delta, mask=offs_q < T)


@triton.jit
def _dkdv_step(
    dk, dv, k, v, q_ptr, do_ptr, lse_ptr, delta_ptr, stride_q, stride_do, ids_ptr, ids_k, offs_k, offs_d,
    start, stop, T, window, scale2,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_Q: tl.constexpr, EVEN_T: tl.constexpr, PRECISION: tl.constexpr,
    CAUSAL: tl.constexpr, WINDOW: tl.constexpr, DOCUMENTS: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    for q0 in range(start, stop, BLOCK_Q):
        offs_q = q0 + tl.arange(0, BLOCK_Q)
        q = _load(q_ptr, stride_q, offs_q, offs_d, T, D, BLOCK_D, EVEN_T)
        # Beyond the edge lse is +inf, so p is 0.
        if EVEN_T:
            lse2 = tl.load(lse_ptr + offs_q)
        else:
            lse2 = tl.load(lse_ptr + offs_q, mask=offs_q < T, other=float("inf"))
        st = tl.dot(k, q.T, input_precision=PRECISION) * scale2
        pt = tl.exp2(st - lse2[None, :])
        if MASKED:
            ids_q = ids_k
            if DOCUMENTS:
                ids_q = tl.load(ids_ptr + offs_q, mask=offs_q < T, other=0)
            seen = _visible(offs_q, offs_k, ids_q, ids_k, T, window, CAUSAL, WINDOW, DOCUMENTS)
            pt = tl.where(seen.T, pt, 0.0)
        do = _load(do_ptr, stride_do, offs_q, offs_d, T, D, BLOCK_D, EVEN_T)
        dv = tl.dot(_narrow(pt, do), do, dv, input_precision=PRECISION)
        if EVEN_T:
            delta = tl.load(delta_ptr + offs_q)
        else:
            delta = tl.load(delta_ptr + offs_q, mask=offs_q < T, other=0.0)
        dpt = tl.dot(v, do.T, input_precision=PRECISION)
        dst = pt * (dpt - delta[None, :])
        dk = tl.dot(_narrow(dst, q), q, dk, input_precision=PRECISION)
    return dk, dv


@triton.jit
def _dkdv_kernel(
    q_ptr, k_ptr, v_ptr, do_ptr, lse_ptr, delta_ptr, dk_ptr, dv_ptr, ids_ptr, range_ptr,
    stride_qb, stride_qt, stride_qh, stride_kb, stride_kt, stride_kh, stride_vb, stride_vt, stride_vh,
    stride_db, stride_dt, stride_dh, stride_gb, stride_gt, T, H, window, scale, GROUP: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, EVEN_T: tl.constexpr,
    PRECISION: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, DOCUMENTS: tl.constexpr,
):  # fmt: skip
    blocks, block, b, g = _place(T, H // GROUP, BLOCK_K)
    k0 = block * BLOCK_K
    offs_k = k0 + tl.arange(0, BLOCK_K)
    offs_d = tl.arange(0, BLOCK_D)
    k = _load(k_ptr + b * stride_kb + g * stride_kh, stride_kt, offs_k, offs_d, T, D, BLOCK_D, EVEN_T)
    v = _load(v_ptr + b * stride_vb + g * stride_vh, stride_vt, offs_k, offs_d, T, D, BLOCK_D, EVEN_T)
    ids_ptr += b * T
    ids_k = offs_k
    if DOCUMENTS:
        ids_k = tl.load(ids_ptr + offs_k, mask=offs_k < T, other=0)
    low, free, high = _query_range(
        b * blocks + block, k0, range_ptr, T, window, BLOCK_Q, BLOCK_K, CAUSAL, WINDOW, DOCUMENTS
    )
    dk = tl.zeros((BLOCK_K, BLOCK_D), tl.float32)
    dv = tl.zeros((BLOCK_K, BLOCK_D), tl.float32)
    for r in range(0, GROUP):
        h = g * GROUP + r
        q_head = q_ptr + b * stride_qb + h * stride_qh
        do_head = do_ptr + b * stride_db + h * stride_dh
        lse_head = lse_ptr + (b * H + h) * T
        delta_head = delta_ptr + (b * H + h) * T
        dk, dv = _dkdv_step(
            dk, dv, k, v, q_head, do_head, lse_head, delta_head, stride_qt, stride_dt, ids_ptr, ids_k, offs_k, offs_d,
            low, tl.minimum(free, high), T, window, scale * LOG2E, D, BLOCK_D, BLOCK_Q, EVEN_T, PRECISION,
            CAUSAL, WINDOW, DOCUMENTS, True,
        )  # fmt: skip
        if not (WINDOW or DOCUMENTS):
            dk, dv = _dkdv_step(
                dk, dv, k, v, q_head, do_head, lse_head, delta_head, stride_qt, stride_dt, ids_ptr, ids_k, offs_k,
                offs_d, free, high, T, window, scale * LOG2E, D, BLOCK_D, BLOCK_Q, EVEN_T, PRECISION,
                CAUSAL, WINDOW, DOCUMENTS, False,
            )  # fmt: skip
    _store(dk_ptr + b * stride_gb + g * D, stride_gt, dk * scale, offs_k, offs_d, T, D)
    _store(dv_ptr + b * stride_gb + g * D, stride_gt, dv, offs_k, offs_d, T, D)


@triton.jit
def _dq_step(
    dq, q, do, lse2, delta, k_ptr, v_ptr, stride_k, stride_v, ids_ptr, ids_q, offs_q, offs_d, start, stop, T, window,
    scale2,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_K: tl.constexpr, EVEN_T: tl.constexpr, PRECISION: tl.constexpr,
    CAUSAL: tl.constexpr, WINDOW: tl.constexpr, DOCUMENTS: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    for k0 in range(start, stop, BLOCK_K):
        offs_k = k0 + tl.arange(0, BLOCK_K)
        k = _load(k_ptr, stride_k, offs_k, offs_d, T, D, BLOCK_D, EVEN_T or not MASKED)
        v = _load(v_ptr, stride_v, offs_k, offs_d, T, D, BLOCK_D, EVEN_T or not MASKED)
        p = tl.exp2(tl.dot(q, k.T, input_precision=PRECISION) * scale2 - lse2[:, None])
        if MASKED:
            ids_k = ids_q
            if DOCUMENTS:
                ids_k = tl.load(ids_ptr + offs_k, mask=offs_k < T, other=0)
            p = tl.where(_visible(offs_q, offs_k, ids_q, ids_k, T, window, CAUSAL, WINDOW, DOCUMENTS), p, 0.0)
        ds = p * (tl.dot(do, v.T, input_precision=PRECISION) - delta[:, None])
        dq = tl.dot(_narrow(ds, k), k, dq, input_precision=PRECISION)
    return dq


@triton.jit
def _dq_kernel(
    q_ptr, k_ptr, v_ptr, do_ptr, lse_ptr, delta_ptr, dq_ptr, ids_ptr, range_ptr,
    stride_qb, stride_qt, stride_qh, stride_kb, stride_kt, stride_kh, stride_vb, stride_vt, stride_vh,
    stride_db, stride_dt, stride_dh, stride_gb, stride_gt, T, H, window, scale, GROUP: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, EVEN_T: tl.constexpr,
    PRECISION: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, DOCUMENTS: tl.constexpr,
):  # fmt: skip
    blocks, block, b, h = _place(T, H, BLOCK_Q)
    if CAUSAL:
        block = blocks - 1 - block
    q0 = block * BLOCK_Q
    offs_q = q0 + tl.arange(0, BLOCK_Q)
    offs_d = tl.arange(0, BLOCK_D)
    q = _load(q_ptr + b * stride_qb + h * stride_qh, stride_qt, offs_q, offs_d, T, D, BLOCK_D, EVEN_T)
    do = _load(do_ptr + b * stride_db + h * stride_dh, stride_dt, offs_q, offs_d, T, D, BLOCK_D, EVEN_T)
    k_ptr += b * stride_kb + h // GROUP * stride_kh
    v_ptr += b * stride_vb + h // GROUP * stride_vh
    row = (b * H + h) * T
    lse2 = tl.load(lse_ptr + row + offs_q, mask=offs_q < T, other=float("inf"))
    delta = tl.load(delta_ptr + row + offs_q, mask=offs_q < T, other=0.0)
    ids_ptr += b * T
    ids_q = offs_q
    if DOCUMENTS:
        ids_q = tl.load(ids_ptr + offs_q, mask=offs_q < T, other=0)
    low, free, high = _key_range(
        b * blocks + block, q0, range_ptr, T, window, BLOCK_Q, BLOCK_K, CAUSAL, WINDOW, DOCUMENTS
    )
    dq = tl.zeros((BLOCK_Q, BLOCK_D), tl.float32)
    if not (WINDOW or DOCUMENTS):
        dq = _dq_step(
            dq, q, do, lse2, delta, k_ptr, v_ptr, stride_kt, stride_vt, ids_ptr, ids_q, offs_q, offs_d, low, free, T,
            window, scale * LOG2E, D, BLOCK_D, BLOCK_K, EVEN_T, PRECISION, CAUSAL, WINDOW, DOCUMENTS, False,
        )  # fmt: skip
    dq = _dq_step(
        dq, q, do, lse2, delta, k_ptr, v_ptr, stride_kt, stride_vt, ids_ptr, ids_q, offs_q, offs_d, free, high, T,
        window, scale * LOG2E, D, BLOCK_D, BLOCK_K, EVEN_T, PRECISION, CAUSAL, WINDOW, DOCUMENTS, True,
    )  # fmt: skip
    _store(dq_ptr + b * stride_gb + h * D, stride_gt, dq * scale, offs_q, offs_d, T, D)


def _unit_rows(t: Tensor) -> Tensor:
    return t if t.stride(3) == 1 else t.contiguous()


class _Launch:
    """Arguments that the three large kernels share."""

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, options: Options):
        causal, scale, document_ids, window, _ = options
        self.q, self.k, self.v = (_unit_rows(t) for t in (q, k, v))
        self.B, self.T, self.H, self.D = q.shape
        self.G = k.shape[2]
        self.scale = self.D**-0.5 if scale is None else scale
        self.ids = None if document_ids is None else document_ids.contiguous()
        self.window = window or 0
        self.block_d = max(16, triton.next_power_of_2(self.D))
        arch = configs.architecture(q.device)
        masked = window is not None or document_ids is not None
        self.config = lambda part: configs.attention(arch, q.element_size(), self.block_d, part, self.T, masked)
        self.flags = dict(
            CAUSAL=causal, WINDOW=window is not None, DOCUMENTS=self.ids is not None, PRECISION=dot_precision(q.dtype)
        )
        self.strides = [s for t in (self.q, self.k, self.v) for s in t.stride()[:3]]

    def options(self, config: configs.Attention) -> dict:
        return self.flags | dict(
            GROUP=self.H // self.G,
            D=self.D,
            BLOCK_D=self.block_d,
            BLOCK_Q=config.block_q,
            BLOCK_K=config.block_k,
            EVEN_T=self.T % config.block_q == 0 and self.T % config.block_k == 0,
            num_warps=config.num_warps,
            num_stages=config.num_stages,
        )

    def ranges(self, rows: int, columns: int) -> tuple[Tensor, Tensor]:
        """Document ids and block ranges; any pointer where there are no documents."""
        if self.ids is None:
            return self.q, self.q
        return self.ids, block_ranges(self.ids, rows, columns, equal=False)


def forward(q: Tensor, k: Tensor, v: Tensor, options: Options) -> tuple[Tensor, Tensor]:
    """-> out (B, T, H, D), lse (B, H, T) float32, in base 2 for exp2."""
    a = _Launch(q, k, v, options)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(a.B, a.H, a.T, dtype=torch.float32, device=q.device)
    config = a.config("forward")
    keys, values = a.k, a.v
    if config.descriptors:
        from triton.tools.tensor_descriptor import TensorDescriptor

        tile = [1, config.block_k, 1, a.block_d]
        keys, values = (TensorDescriptor.from_tensor(t, tile) for t in (a.k, a.v))
    with on_device(q):
        _forward_kernel[(triton.cdiv(a.T, config.block_q) * a.B * a.H,)](
            a.q, keys, values, out, lse, *a.ranges(config.block_q, config.block_k), *a.strides,
            a.T, a.H, a.window, a.scale * math.log2(math.e), DESCRIPTORS=config.descriptors, **a.options(config),
        )  # fmt: skip
    return out, lse


def backward(
    do: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    options: Options,
    into: Gradients | None = None,
) -> Gradients:
    """-> dq, dk, dv, always deterministic. into: where to write them (options.py)."""
    a = _Launch(q, k, v, options)
    do = _unit_rows(do)
    dq, dk, dv = into or empty_gradients(q, k, v)
    delta = torch.empty_like(lse)
    with on_device(q):
        _delta_kernel[(triton.cdiv(a.T, 64) * a.B * a.H,)](
            out, do, delta, *out.stride()[:3], *do.stride()[:3], a.T, a.H, D=a.D, BLOCK_D=a.block_d, BLOCK_Q=64,
            num_warps=4, enable_fp_fusion=False,  # as in rms_norm/triton.py: o * do + (the neighbour's o * do) is rounded twice
        )  # fmt: skip
        config = a.config("dkdv")
        _dkdv_kernel[(triton.cdiv(a.T, config.block_k) * a.B * a.G,)](
            a.q, a.k, a.v, do, lse, delta, dk, dv, *a.ranges(config.block_k, config.block_q), *a.strides,
            *do.stride()[:3], *dk.stride()[:2], a.T, a.H, a.window, a.scale, **a.options(config),
        )  # fmt: skip
        config = a.config("dq")
        _dq_kernel[(triton.cdiv(a.T, config.block_q) * a.B * a.H,)](
            a.q, a.k, a.v, do, lse, delta, dq, *a.ranges(config.block_q, config.block_k), *a.strides,
            *do.stride()[:3], *dq.stride()[:2], a.T, a.H, a.window, a.scale, **a.options(config),
        )  # fmt: skip
    return dq, dk, dv
