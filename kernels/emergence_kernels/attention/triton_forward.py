"""Attention's forward kernel in Triton; triton.py has the formulas and the launch."""

import triton
import triton.language as tl

from ..backends.triton_common import LOG2E
from .triton_blocks import _key_range, _load, _narrow, _place, _store, _visible
from .triton_scores import _parameter, _scores

HIDDEN = tl.constexpr(-1.0e30)  # finite: a row masked in a whole block is corrected by the block with its own key


@triton.jit
def _forward_step(
    acc, m, l, q, k_ptr, v_ptr, stride_k, stride_v, ids_ptr, ids_q, offs_q, offs_d,
    start, stop, T, window, scale2, cap2, parameter,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_K: tl.constexpr, EVEN_T: tl.constexpr, PRECISION: tl.constexpr,
    CAUSAL: tl.constexpr, WINDOW: tl.constexpr, DOCUMENTS: tl.constexpr, MASKED: tl.constexpr,
    SOFTCAP: tl.constexpr, BIAS: tl.constexpr,
):  # fmt: skip
    for k0 in range(start, stop, BLOCK_K):
        offs_k = k0 + tl.arange(0, BLOCK_K)
        k = _load(k_ptr, stride_k, offs_k, offs_d, T, D, BLOCK_D, EVEN_T or not MASKED)
        product = tl.dot(q, k.T, input_precision=PRECISION)
        s, _ = _scores(product, offs_q[:, None], offs_k[None, :], scale2, cap2, parameter, SOFTCAP, BIAS)
        if MASKED:
            ids_k = ids_q
            if DOCUMENTS:
                ids_k = tl.load(ids_ptr + offs_k, mask=offs_k < T, other=0)
            s = tl.where(_visible(offs_q, offs_k, ids_q, ids_k, T, window, CAUSAL, WINDOW, DOCUMENTS), s, HIDDEN)
        m_new = tl.maximum(m, tl.max(s, 1))
        p = tl.exp2(s - m_new[:, None])
        alpha = tl.exp2(m - m_new)
        l = l * alpha + tl.sum(p, 1)
        v = _load(v_ptr, stride_v, offs_k, offs_d, T, D, BLOCK_D, EVEN_T or not MASKED)
        acc = tl.dot(_narrow(p, v), v, acc * alpha[:, None], input_precision=PRECISION)
        m = m_new
    return acc, m, l


@triton.jit
def _forward_kernel(
    q_ptr, k_ptr, v_ptr, o_ptr, lse_ptr, ids_ptr, range_ptr, sink_ptr, bias_ptr,
    stride_qb, stride_qt, stride_qh, stride_kb, stride_kt, stride_kh, stride_vb, stride_vt, stride_vh,
    T, H, window, scale2, cap2, GROUP: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, EVEN_T: tl.constexpr,
    PRECISION: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, DOCUMENTS: tl.constexpr,
    SOFTCAP: tl.constexpr, BIAS: tl.constexpr,
):  # fmt: skip
    blocks, block, b, h = _place(T, H, BLOCK_Q)
    if CAUSAL:
        block = blocks - 1 - block  # the longest rows are scheduled first
    q0 = block * BLOCK_Q
    offs_q = q0 + tl.arange(0, BLOCK_Q)
    offs_d = tl.arange(0, BLOCK_D)
    q = _load(q_ptr + b * stride_qb + h * stride_qh, stride_qt, offs_q, offs_d, T, D, BLOCK_D, EVEN_T)
    g = h // GROUP
    k_ptr += b * stride_kb + g * stride_kh
    v_ptr += b * stride_vb + g * stride_vh
    ids_ptr += b * T
    ids_q = offs_q
    if DOCUMENTS:
        ids_q = tl.load(ids_ptr + offs_q, mask=offs_q < T, other=0)
    m = tl.full((BLOCK_Q,), HIDDEN, tl.float32)
    l = tl.zeros((BLOCK_Q,), tl.float32)
    if sink_ptr is not None:  # a key without a value, which every row has seen
        m = tl.maximum(m, _parameter(sink_ptr, h) * LOG2E)
        l += 1.0
    acc = tl.zeros((BLOCK_Q, BLOCK_D), tl.float32)
    parameter = _parameter(bias_ptr, h)
    low, free, high = _key_range(
        b * blocks + block, q0, range_ptr, T, window, BLOCK_Q, BLOCK_K, CAUSAL, WINDOW, DOCUMENTS
    )
    if not (WINDOW or DOCUMENTS):
        acc, m, l = _forward_step(
            acc, m, l, q, k_ptr, v_ptr, stride_kt, stride_vt, ids_ptr, ids_q, offs_q, offs_d,
            low, free, T, window, scale2, cap2, parameter, D, BLOCK_D, BLOCK_K, EVEN_T, PRECISION,
            CAUSAL, WINDOW, DOCUMENTS, False, SOFTCAP, BIAS,
        )  # fmt: skip
    acc, m, l = _forward_step(
        acc, m, l, q, k_ptr, v_ptr, stride_kt, stride_vt, ids_ptr, ids_q, offs_q, offs_d,
        free, high, T, window, scale2, cap2, parameter, D, BLOCK_D, BLOCK_K, EVEN_T, PRECISION,
        CAUSAL, WINDOW, DOCUMENTS, True, SOFTCAP, BIAS,
    )  # fmt: skip
    o_row = H * D
    _store(o_ptr + b * T * o_row + h * D, o_row, acc / l[:, None], offs_q, offs_d, T, D)
    tl.store(lse_ptr + (b * H + h) * T + offs_q, m + tl.log2(l), mask=offs_q < T)
