"""SwiGLU by csrc/ (swiglu.cu has the formulas), as triton.py with `backend` "cuda" or "cpu" beside."""

import torch
from torch import Tensor

from ..backends.layout import adjacent_rows
from ..backends.library import operations


def forward(x: Tensor, *, backend: str) -> Tensor:
    """(..., 2F) -> (..., F)."""
    x_NF = adjacent_rows(x)
    F = x_NF.shape[1] // 2
    y = x.new_empty((*x.shape[:-1], F))
    operations(backend).swiglu.default(x_NF, y.view(-1, F))
    return y


def backward(dy: Tensor, x: Tensor, *, backend: str, in_place: bool = False) -> Tensor:
    """-> the gradient of gate and up, (..., 2F). in_place: it takes the place of x, whose features are adjacent."""
    x_NF = adjacent_rows(x)
    dx = x if in_place else torch.empty_like(x, memory_format=torch.contiguous_format)
    operations(backend).swiglu_backward.default(adjacent_rows(dy), x_NF, dx.view(x_NF.shape))
    return dx
