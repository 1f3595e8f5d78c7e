"""AdamW's update in PyTorch (op.py has the formula)."""

import torch
from torch import Tensor


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
    scaled = gradient / grad_scale
    m = betas[0] * first + (1 - betas[0]) * scaled
    v = betas[1] * second + (1 - betas[1]) * scaled.square()
    change = m / corrections[0] / ((v / corrections[1]).sqrt() + eps)
    for old, new in ((weights, weights - lr * (weight_decay * weights + change)), (first, m), (second, v)):
        old.copy_(torch.where(applied, new, old))
    gradient.zero_()
    if copy is not None:
        copy.copy_(weights)
