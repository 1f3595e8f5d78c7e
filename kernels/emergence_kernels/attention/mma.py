"""Attention by csrc/cuda/attention/mma_forward.cu and mma_backward.cu (sm_80 and later), with the interface of triton.py."""

import torch
from torch import Tensor

from ..backends.library import operations
from .document_ranges import Blocks
from .inputs import aligned, numbered, positive
from .options import Gradients, Options, Saved, empty_gradients

MAX_HEAD_DIM = 128
RANGES = (64, 64, 4)  # rows and columns as in csrc/cuda/attention/mma.h


def unsupported_reason(q: Tensor) -> str | None:
    """The reason why these kernels do not take q, or None."""
    D = q.shape[-1]
    if q.dtype not in (torch.bfloat16, torch.float16):
        return f"it supports bfloat16 and float16, not {q.dtype}"
    return f"head dim {D} is not a multiple of 8 up to {MAX_HEAD_DIM}" if D % 8 or D > MAX_HEAD_DIM else None


def document_blocks(q: Tensor, options: Options, backward: bool) -> list[Blocks]:
    """The ranges that forward reads, and backward too."""
    return [RANGES]


def _masks(options: Options) -> tuple[tuple[Tensor | None, Tensor | None], tuple[bool, int]]:
    """(ids, ranges), (causal, window), as the operators take them."""
    ids, plan = numbered(options.document_ids), options.plan()
    ranges = None if ids is None or plan is None else plan.blocks(*RANGES)
    return (ids, ranges), (options.causal, options.window or 0)


def forward(q: Tensor, k: Tensor, v: Tensor, options: Options) -> tuple[Tensor, Tensor]:
    """-> out (B, T, H, D), lse (B, H, T) float32, in base 2 for exp2."""
    B, T, H, _ = q.shape
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(B, H, T, dtype=torch.float32, device=q.device)
    documents, reach = _masks(options)
    q, scale, _ = positive(q, options.scale)
    operations("cuda").attention.default(*map(aligned, (q, k, v)), *documents, out, lse, scale, *reach)
    return out, lse


def backward(grad: Tensor, saved: Saved, options: Options, into: Gradients | None = None) -> Gradients:
    """As compiled.backward, without angles."""
    q, k, v, out, lse = saved
    dq, dk, dv = into or empty_gradients(q, k, v)
    documents, reach = _masks(options)
    q, scale, factor = positive(q, options.scale)
    operations("cuda").attention_backward.default(
        *map(aligned, (grad, q, k, v, out)), lse, *documents, dq, dk, dv, scale, *reach, options.deterministic
    )
    return dq if factor == 1 else dq.mul_(factor), dk, dv
