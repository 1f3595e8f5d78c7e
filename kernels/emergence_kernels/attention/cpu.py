"""Attention by csrc/cpu/attention/attention.cpp in float32, with the interface of triton.py."""

import torch
from torch import Tensor

from ..backends.library import operations
from .document_ranges import Blocks
from .inputs import adjacent_features, numbered
from .options import Angles, Gradients, Options, Saved, empty_gradients


def document_blocks(q: Tensor, options: Options, backward: bool) -> list[Blocks]:
    """None: ids are compared one by one."""
    return []


def rotates_back(q: Tensor, cos: Tensor) -> bool:
    """Whether backward takes angles, and rotates dq and dk back by itself."""
    return True


def _masks(q: Tensor, options: Options) -> tuple[Tensor | None, tuple[float, bool, int]]:
    """ids, (scale, causal, window), as the operators take them."""
    scale = q.shape[-1] ** -0.5 if options.scale is None else options.scale
    return numbered(options.document_ids), (scale, options.causal, options.window or 2**62)


def forward(q: Tensor, k: Tensor, v: Tensor, options: Options) -> tuple[Tensor, Tensor]:
    """-> out (B, T, H, D), lse (B, H, T) float32, natural."""
    B, T, H, _ = q.shape
    out, lse = (torch.empty(shape, dtype=q.dtype, device=q.device) for shape in (q.shape, (B, H, T)))
    ids, rest = _masks(q, options)
    operations("cpu").attention.default(*map(adjacent_features, (q, k, v)), ids, out, lse, *rest)
    return out, lse


def backward(
    grad: Tensor, saved: Saved, options: Options, into: Gradients | None = None, angles: Angles | None = None
) -> Gradients:
    """-> dq, dk, dv, always deterministic. into: where to write them (options.py). angles: dq and dk are rotated back by them."""
    q, k, v, out, lse = saved
    gradients = into or empty_gradients(q, k, v)
    ids, rest = _masks(q, options)
    cos, sin = (None, None) if angles is None else (angle.float().contiguous() for angle in angles)
    operations("cpu").attention_backward.default(
        *map(adjacent_features, (grad, q, k, v)), ids, adjacent_features(out), lse, cos, sin, *gradients, *rest
    )
    return gradients
