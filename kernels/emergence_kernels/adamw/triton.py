"""AdamW's update in Triton: 34 bytes an element, of which 16 are read (op.py has the formula).

Fused optimizers of frameworks stop at weights and moments (28 bytes); a copy in 16 bits and a zeroed gradient are two more
passes, of 10.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..backends.triton_common import on_device

BLOCK, WARPS = 2048, 8  # two 16-byte accesses a thread and tensor


@triton.jit
def _adamw_kernel(
    w_ptr,
    g_ptr,
    m_ptr,
    v_ptr,
    copy_ptr,
    corrections_ptr,
    scale_ptr,
    applied_ptr,
    N,
    lr,
    BETA1: tl.constexpr,
    BETA2: tl.constexpr,
    EPS: tl.constexpr,
    DECAY: tl.constexpr,
    COPY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = index < N
    if tl.load(applied_ptr) != 0:
        g = tl.load(g_ptr + index, mask=mask, other=0.0) * (1.0 / tl.load(scale_ptr))
        m = tl.load(m_ptr + index, mask=mask, other=0.0)
        v = tl.load(v_ptr + index, mask=mask, other=0.0)
        w = tl.load(w_ptr + index, mask=mask, other=0.0)
        # each form rounds less where its factor is the smaller one
        m = m + (1.0 - BETA1) * (g - m) if BETA1 > 0.5 else g + BETA1 * (m - g)
        v = BETA2 * v + (1.0 - BETA2) * (g * g)
        change = (m / tl.load(corrections_ptr)) / (tl.sqrt(v / tl.load(corrections_ptr + 1)) + EPS)
        w -= lr * (DECAY * w + change)
        tl.store(m_ptr + index, m, mask=mask)
        tl.store(v_ptr + index, v, mask=mask)
        tl.store(w_ptr + index, w, mask=mask)
        if COPY:
            tl.store(copy_ptr + index, w.to(copy_ptr.dtype.element_ty), mask=mask)
    tl.store(g_ptr + index, tl.zeros([BLOCK], tl.float32), mask=mask)


@torch.no_grad()
def adamw_step(
    weights: Tensor,
    gradient: Tensor,
    first: Tensor,
    second: Tensor,
    corrections: Tensor,
    grad_scale: Tensor,
    applied: Tensor,
    copy: Tensor | None,
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> None:
    N = weights.numel()
    if N == 0:
        return
    with on_device(weights):
        _adamw_kernel[(triton.cdiv(N, BLOCK),)](
            weights,
            gradient,
            first,
            second,
            weights if copy is None else copy,
            corrections,
            grad_scale,
            applied,
            N,
            lr,
            BETA1=betas[0],
            BETA2=betas[1],
            EPS=eps,
            DECAY=weight_decay,
            COPY=copy is not None,
            BLOCK=BLOCK,
            num_warps=WARPS,
        )
