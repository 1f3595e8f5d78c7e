"""RMSNorm by csrc/ (rms_norm.cu and rms_norm_backward.cu have the formulas), as triton.py, with `backend` "cuda" or "cpu"."""

import torch
from torch import Tensor

from ..backends.layout import adjacent_rows
from ..backends.library import operations


def _aligned(t: Tensor) -> Tensor:
    """Rows that start at multiples of 16 bytes, by a copy if need be; (N, D) with adjacent features."""
    t = adjacent_rows(t)
    size = t.element_size()
    if t.shape[1] * size % 16 == 0 and (t.data_ptr() % 16 or t.stride(0) * size % 16):
        return t.clone(memory_format=torch.contiguous_format)
    return t


def forward(
    x: Tensor, weight: Tensor, eps: float, residual: Tensor | None, *, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    """-> y, x + residual (empty without one), rstd (N,) float32."""
    x_ND = _aligned(x)
    residual_ND = None if residual is None else _aligned(residual)
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    new_residual = None if residual is None else torch.empty_like(y)
    rstd_N = x.new_empty(x_ND.shape[0], dtype=torch.float32)
    sum_ND = None if new_residual is None else new_residual.view(x_ND.shape)
    operations(backend).rms_norm.default(
        x_ND, residual_ND, weight.contiguous(), y.view(x_ND.shape), sum_ND, rstd_N, eps
    )
    return y, x.new_empty(0) if new_residual is None else new_residual, rstd_N


def backward(
    dy: Tensor, d_residual: Tensor | None, x: Tensor, weight: Tensor, rstd_N: Tensor, *, backend: str
) -> tuple[Tensor, Tensor]:
    """x is what was normalised. -> dx, dweight."""
    x_ND = _aligned(x)
    dx = torch.empty_like(x, memory_format=torch.contiguous_format)
    dweight = torch.empty_like(weight, memory_format=torch.contiguous_format)
    d_residual_ND = None if d_residual is None else _aligned(d_residual)
    operations(backend).rms_norm_backward.default(
        _aligned(dy), d_residual_ND, x_ND, weight.contiguous(), rstd_N, dx.view(x_ND.shape), dweight
    )
    return dx, dweight
