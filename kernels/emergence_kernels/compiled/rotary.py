"""Rotary embedding by csrc/ (rotary.cu has the formulas), as triton_backend/rotary.py with `backend` "cuda" or "cpu" beside."""

import torch
from torch import Tensor

from .library import operations


def rotate(x_BTHD: Tensor, cos: Tensor, sin: Tensor, sign: float, *, backend: str) -> Tensor:
    """cos and sin (T, R) or (B, T, R). -> contiguous (B, T, H, D)."""
    if x_BTHD.stride(-1) != 1:
        x_BTHD = x_BTHD.contiguous()
    out_BTHD = torch.empty(x_BTHD.shape, dtype=x_BTHD.dtype, device=x_BTHD.device)
    operations(backend).rotary.default(x_BTHD, cos.float().contiguous(), sin.float().contiguous(), out_BTHD, sign)
    return out_BTHD
