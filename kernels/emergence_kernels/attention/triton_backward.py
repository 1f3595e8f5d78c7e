"""Attention's backward kernels in Triton; triton.py has the formulas and the launches."""

import triton
import triton.language as tl

from .triton_blocks import _key_range, _load, _narrow, _place, _query_range, _store, _visible
from .triton_scores import _parameter, _scores


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
    start, stop, T, window, scale2, cap2, parameter,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_Q: tl.constexpr, EVEN_T: tl.constexpr, PRECISION: tl.constexpr,
    CAUSAL: tl.constexpr, WINDOW: tl.constexpr, DOCUMENTS: tl.constexpr, MASKED: tl.constexpr,
    SOFTCAP: tl.constexpr, BIAS: tl.constexpr,
):  # fmt: skip
    for q0 in range(start, stop, BLOCK_Q):
        offs_q = q0 + tl.arange(0, BLOCK_Q)
        q = _load(q_ptr, stride_q, offs_q, offs_d, T, D, BLOCK_D, EVEN_T)
        # Beyond the edge lse is +inf, so p is 0.
        if EVEN_T:
            lse2 = tl.load(lse_ptr + offs_q)
        else:
            lse2 = tl.load(lse_ptr + offs_q, mask=offs_q < T, other=float("inf"))
        product = tl.dot(k, q.T, input_precision=PRECISION)
        st, tanh_t = _scores(product, offs_q[None, :], offs_k[:, None], scale2, cap2, parameter, SOFTCAP, BIAS)
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
        if SOFTCAP:
            dst *= 1.0 - tanh_t * tanh_t
        dk = tl.dot(_narrow(dst, q), q, dk, input_precision=PRECISION)
    return dk, dv


@triton.jit
def _dkdv_kernel(
    q_ptr, k_ptr, v_ptr, do_ptr, lse_ptr, delta_ptr, dk_ptr, dv_ptr, ids_ptr, range_ptr, bias_ptr,
    stride_qb, stride_qt, stride_qh, stride_kb, stride_kt, stride_kh, stride_vb, stride_vt, stride_vh,
    stride_db, stride_dt, stride_dh, stride_gb, stride_gt, T, H, window,
    scale, scale2, cap2, GROUP: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, EVEN_T: tl.constexpr,
    PRECISION: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, DOCUMENTS: tl.constexpr,
    SOFTCAP: tl.constexpr, BIAS: tl.constexpr,
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
        parameter = _parameter(bias_ptr, h)
        dk, dv = _dkdv_step(
            dk, dv, k, v, q_head, do_head, lse_head, delta_head, stride_qt, stride_dt, ids_ptr, ids_k, offs_k, offs_d,
            low, tl.minimum(free, high), T, window, scale2, cap2, parameter, D, BLOCK_D, BLOCK_Q, EVEN_T, PRECISION,
            CAUSAL, WINDOW, DOCUMENTS, True, SOFTCAP, BIAS,
        )  # fmt: skip
        if not (WINDOW or DOCUMENTS):
            dk, dv = _dkdv_step(
                dk, dv, k, v, q_head, do_head, lse_head, delta_head, stride_qt, stride_dt, ids_ptr, ids_k, offs_k,
                offs_d, free, high, T, window, scale2, cap2, parameter, D, BLOCK_D, BLOCK_Q, EVEN_T, PRECISION,
                CAUSAL, WINDOW, DOCUMENTS, False, SOFTCAP, BIAS,
            )  # fmt: skip
    _store(dk_ptr + b * stride_gb + g * D, stride_gt, dk * scale, offs_k, offs_d, T, D)
    _store(dv_ptr + b * stride_gb + g * D, stride_gt, dv, offs_k, offs_d, T, D)


@triton.jit
def _dq_step(
    dq, q, do, lse2, delta, k_ptr, v_ptr, stride_k, stride_v, ids_ptr, ids_q, offs_q, offs_d, start, stop, T, window,
    scale2, cap2, parameter,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_K: tl.constexpr, EVEN_T: tl.constexpr, PRECISION: tl.constexpr,
    CAUSAL: tl.constexpr, WINDOW: tl.constexpr, DOCUMENTS: tl.constexpr, MASKED: tl.constexpr,
    SOFTCAP: tl.constexpr, BIAS: tl.constexpr,
):  # fmt: skip
    for k0 in range(start, stop, BLOCK_K):
        offs_k = k0 + tl.arange(0, BLOCK_K)
        k = _load(k_ptr, stride_k, offs_k, offs_d, T, D, BLOCK_D, EVEN_T or not MASKED)
        v = _load(v_ptr, stride_v, offs_k, offs_d, T, D, BLOCK_D, EVEN_T or not MASKED)
        product = tl.dot(q, k.T, input_precision=PRECISION)
        s, tanh_s = _scores(product, offs_q[:, None], offs_k[None, :], scale2, cap2, parameter, SOFTCAP, BIAS)
        p = tl.exp2(s - lse2[:, None])
        if MASKED:
            ids_k = ids_q
            if DOCUMENTS:
                ids_k = tl.load(ids_ptr + offs_k, mask=offs_k < T, other=0)
            p = tl.where(_visible(offs_q, offs_k, ids_q, ids_k, T, window, CAUSAL, WINDOW, DOCUMENTS), p, 0.0)
        ds = p * (tl.dot(do, v.T, input_precision=PRECISION) - delta[:, None])
        if SOFTCAP:
            ds *= 1.0 - tanh_s * tanh_s
        dq = tl.dot(_narrow(ds, k), k, dq, input_precision=PRECISION)
    return dq


@triton.jit
def _dq_kernel(
    q_ptr, k_ptr, v_ptr, do_ptr, lse_ptr, delta_ptr, dq_ptr, ids_ptr, range_ptr, bias_ptr,
    stride_qb, stride_qt, stride_qh, stride_kb, stride_kt, stride_kh, stride_vb, stride_vt, stride_vh,
    stride_db, stride_dt, stride_dh, stride_gb, stride_gt, T, H, window,
    scale, scale2, cap2, GROUP: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, EVEN_T: tl.constexpr,
    PRECISION: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, DOCUMENTS: tl.constexpr,
    SOFTCAP: tl.constexpr, BIAS: tl.constexpr,
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
    parameter = _parameter(bias_ptr, h)
    if not (WINDOW or DOCUMENTS):
        dq = _dq_step(
            dq, q, do, lse2, delta, k_ptr, v_ptr, stride_kt, stride_vt, ids_ptr, ids_q, offs_q, offs_d, low, free, T,
            window, scale2, cap2, parameter, D, BLOCK_D, BLOCK_K, EVEN_T, PRECISION,
            CAUSAL, WINDOW, DOCUMENTS, False, SOFTCAP, BIAS,
        )  # fmt: skip
    dq = _dq_step(
        dq, q, do, lse2, delta, k_ptr, v_ptr, stride_kt, stride_vt, ids_ptr, ids_q, offs_q, offs_d, free, high, T,
        window, scale2, cap2, parameter, D, BLOCK_D, BLOCK_K, EVEN_T, PRECISION,
        CAUSAL, WINDOW, DOCUMENTS, True, SOFTCAP, BIAS,
    )  # fmt: skip
    _store(dq_ptr + b * stride_gb + h * D, stride_gt, dq * scale, offs_q, offs_d, T, D)
