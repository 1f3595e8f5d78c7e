"""Rotary embedding by csrc/ (rotary.cu has the formulas), as triton.py with `backend` "cuda" or "cpu" beside."""

import torch
from torch import Tensor

from ..backends.library import operations


def rotate(x_BTHD: Tensor, cos: Tensor, sin: Tensor, sign: float, out: Tensor | None = None, *, backend: str) -> Tensor:
    """cos and sin (T, R) or (B, T, R). out: where to write, x itself or any (B, T, H, D) with adjacent features."""
    if x_BTHD.stride(-1) != 1:
        x_BTHD = x_BTHD.clone(memory_format=torch.contiguous_format)
    out = torch.empty(x_BTHD.shape, dtype=x_BTHD.dtype, device=x_BTHD.device) if out is None else out
    operations(backend).rotary.default(x_BTHD, cos.float().contiguous(), sin.float().contiguous(), out, sign)
    return out
