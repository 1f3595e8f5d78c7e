"""RMSNorm in PyTorch."""

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float, residual: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Llama's convention: statistics and the normalised value in float32, cast to the input's dtype, times weight."""
    if residual is not None:
        x = x + residual
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    y = normed.to(x.dtype) * weight
    return y, (None if residual is None else x)
