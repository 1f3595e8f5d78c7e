"""Layouts of tensors for kernels."""

import torch
from torch import Tensor


def adjacent_rows(t: Tensor) -> Tensor:
    """(N, D) of (..., D), whose last stride is 1; a view where that is possible."""
    if t.dim() != 2:
        t = t.reshape(-1, t.shape[-1])
    # not contiguous(), which returns a tensor that is empty or has rows of one whatever its strides
    return t if t.stride(1) == 1 else t.clone(memory_format=torch.contiguous_format)


def rows_for_copies(t: Tensor) -> Tensor:
    """(N, D) of (..., D) that TMA can read: adjacent values, and rows that start at multiples of 16 bytes."""
    t = adjacent_rows(t)
    stride = t.stride(0) * t.element_size()
    fits = t.data_ptr() % 16 == 0 and (t.shape[0] == 1 or (stride > 0 and stride % 16 == 0))
    return t if fits else t.clone(memory_format=torch.contiguous_format)
