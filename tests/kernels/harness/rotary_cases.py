"""The rotary embedding written with PyTorch's operations, the oracle of its tests, and angles."""

import torch


def angles(T, R, device, batch=None):
    shape = (T, R) if batch is None else (batch, T, R)
    angle = torch.rand(shape, device=device) * 6
    return angle.cos(), angle.sin()


def plain(x, cos, sin):
    R = cos.shape[-1]
    cos, sin = (t.to(x.dtype).unsqueeze(-2) for t in (cos, sin))
    a, b, rest = x[..., :R], x[..., R : 2 * R], x[..., 2 * R :]
    return torch.cat((a * cos - b * sin, b * cos + a * sin, rest), -1)
