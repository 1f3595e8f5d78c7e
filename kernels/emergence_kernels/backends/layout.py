"""Layouts of tensors for kernels."""

from torch import Tensor


def adjacent_rows(t: Tensor) -> Tensor:
    """(N, D) of (..., D), whose last stride is 1; a view where that is possible."""
    t = t.reshape(-1, t.shape[-1])
    return t if t.stride(1) == 1 or t.shape[1] == 1 else t.contiguous()
