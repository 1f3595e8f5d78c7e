"""Rotary position embedding in PyTorch."""

import torch
from torch import Tensor


def rotary(x_BTHD: Tensor, cos_TR: Tensor, sin_TR: Tensor) -> Tensor:
    """The first 2R features are rotated in pairs (i, i + R) in float32; the others pass."""
    R = cos_TR.shape[-1]
    wide = torch.promote_types(x_BTHD.dtype, torch.float32)
    cos, sin = (t.to(wide).unsqueeze(-2) for t in (cos_TR, sin_TR))
    first, second = x_BTHD[..., :R].to(wide), x_BTHD[..., R : 2 * R].to(wide)
    turned = torch.cat((first * cos - second * sin, second * cos + first * sin), -1).to(x_BTHD.dtype)
    return turned if x_BTHD.shape[-1] == 2 * R else torch.cat((turned, x_BTHD[..., 2 * R :]), -1)
