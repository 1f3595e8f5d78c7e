"""AdamW's update in PyTorch (op.py has the formula)."""

import torch
from torch import Tensor

CHUNK = 1 << 24  # elements at a time, which bounds what is allocated


def corrections_of(step: Tensor, betas: tuple[float, float]) -> Tensor:
    """1 - b1^t and 1 - b2^t, (2,) in the dtype of step; in float64 before, for 1 - b2^t is small at first."""
    count = step.double()
    return torch.stack([1.0 - beta**count for beta in betas]).to(step.dtype)


@torch.no_grad()
def adamw_step(
    weights: Tensor,
    gradient: Tensor,
    first: Tensor,
    second: Tensor,
    corrections: Tensor,
    grad_scale: Tensor,
    applied: Tensor,
    copy: Tensor | None,
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> None:
    for w, g, m, v in zip(*(tensor.split(CHUNK) for tensor in (weights, gradient, first, second))):
        scaled = g / grad_scale
        new_m = betas[0] * m + (1 - betas[0]) * scaled
        new_v = betas[1] * v + (1 - betas[1]) * scaled.square()
        change = new_m / corrections[0] / ((new_v / corrections[1]).sqrt() + eps)
        for old, new in ((w, w - lr * (weight_decay * w + change)), (m, new_m), (v, new_v)):
            old.copy_(torch.where(applied, new, old))
    gradient.zero_()
    if copy is not None:
        copy.copy_(weights)
