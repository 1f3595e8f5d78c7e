"""Preparation of the inputs of attention's compiled kernels."""

import torch
from torch import Tensor


def aligned(t: Tensor, *, expanded: bool = True) -> Tensor:
    """Rows of adjacent features that start at multiples of 16 bytes, by a copy if need be. expanded: may a stride be 0?"""
    strides = [t.stride(d) * t.element_size() for d in range(3) if t.shape[d] > 1]
    fine = t.stride(3) == 1 and t.data_ptr() % 16 == 0 and all(s % 16 == 0 and (s > 0 or expanded) for s in strides)
    return t if fine else t.clone(memory_format=torch.contiguous_format)


def adjacent_features(t: Tensor) -> Tensor:
    return t if t.stride(3) == 1 or t.shape[3] == 1 else t.clone(memory_format=torch.contiguous_format)


def numbered(document_ids: Tensor | None) -> Tensor | None:
    """Document ids as the operators take them; None where there are none, or no positions."""
    return None if document_ids is None or document_ids.numel() == 0 else document_ids.long().contiguous()


def positive(q: Tensor, scale: float | None) -> tuple[Tensor, float, int]:
    """q and a positive scale, since the kernels compute a row's maximum before scaling, and the factor applied to q."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if scale > 0:
        return q, scale, 1
    return (q * 0, 1.0, 0) if scale == 0 else (-q, -scale, -1)


def grouped(heads: int, kv_heads: int) -> bool:
    """Whether query heads share key heads."""
    if heads != kv_heads:  # noqa: SIM103  a branch is a guard; of symbolic sizes != is symbolic, and PyTorch's kernels want a bool
        return True
    return False
