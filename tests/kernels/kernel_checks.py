"""The yardstick of the kernel tests: an error against float64 no more than twice that of PyTorch in the same dtype."""

import torch
from torch import Tensor

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def assert_as_good(
    name: str, ours: Tensor, exact: Tensor, plain: Tensor, factor: float = 2.0, floor: float = 2.0
) -> None:
    """max |ours - exact| <= factor * max |plain - exact| + floor * eps * max |exact|, eps of ours' dtype.

    exact: the float64 result for the very inputs that ours saw. plain: ordinary PyTorch in the same dtype.
    """
    assert ours.shape == exact.shape == plain.shape, f"{name}: {ours.shape}, {exact.shape}, {plain.shape}"
    if not ours.numel():
        return
    assert torch.isfinite(ours).all(), f"{name}: not finite"
    error = (ours.double() - exact).abs().max().item()
    yardstick = (plain.double() - exact).abs().max().item()
    size = exact.abs().max().item()
    limit = factor * yardstick + floor * torch.finfo(ours.dtype).eps * size + 1e-12
    assert error <= limit, f"{name}: error {error:.3g}, PyTorch's {yardstick:.3g}, limit {limit:.3g}, size {size:.3g}"


def leaves(*tensors: Tensor, dtype: torch.dtype | None = None) -> list[Tensor]:
    """Copies that require gradients, strides kept unless converted."""
    return [
        t.detach().to(dtype or t.dtype).clone(memory_format=torch.preserve_format).requires_grad_() for t in tensors
    ]
