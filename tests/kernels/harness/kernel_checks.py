"""The yardstick of the kernel tests: an error against float64 no more than twice that of PyTorch in the same dtype.

Three times in float32: what errors there are is the order of sums, and libraries' orders differ by up to 2.8 (seen on an H100's
cuBLAS and on one of two CPUs, by PyTorch's own products beside PyTorch's own products).
"""

import torch
from torch import Tensor

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def narrow(backend: str) -> torch.dtype:
    """The narrowest usual dtype that the backend takes."""
    return torch.float32 if backend == "cpu" else torch.bfloat16


def of_attention(backend: str, dtype: torch.dtype = torch.float32) -> torch.dtype:
    """The dtype to try in the place of `dtype`: "cuda" has 16 bits only, "cpu" float32."""
    if backend == "cpu":
        return torch.float32
    narrower = {torch.float32: torch.bfloat16, torch.bfloat16: torch.float16}
    return narrower.get(dtype, dtype) if backend == "cuda" else dtype


def assert_as_good(
    name: str, ours: Tensor, exact: Tensor, plain: Tensor, factor: float = 2.0, floor: float = 2.0, terms: float = 0.0
) -> None:
    """norm(ours - exact) <= factor * norm(plain - exact) + floor * eps * norm(exact), eps of ours' dtype.

    The same for the largest single error, with twice the factor: one element's rounding is a matter of luck.
    terms: the size of float32 terms that cancel in the result (p - 1 of a confident target): their eps is allowed too.
    exact: the float64 result for the very inputs that ours saw. plain: ordinary PyTorch in the same dtype.
    """
    assert ours.shape == exact.shape == plain.shape, f"{name}: {ours.shape}, {exact.shape}, {plain.shape}"
    if not ours.numel():
        return
    assert torch.isfinite(ours).all(), f"{name}: not finite"
    factor = max(factor, 3.0) if ours.dtype == torch.float32 else factor
    eps = torch.finfo(ours.dtype).eps
    for what, measure, allowed in (
        ("norm", torch.linalg.vector_norm, factor),
        ("largest", lambda t: t.abs().max(), 2 * factor),
    ):
        error, yardstick = measure(ours.double() - exact).item(), measure(plain.double() - exact).item()
        size = measure(exact).item()
        limit = allowed * yardstick + floor * (eps * size + torch.finfo(torch.float32).eps * terms) + 1e-12
        assert error <= limit, f"{name}, {what}: error {error:.3g}, PyTorch's {yardstick:.3g}, size {size:.3g}"


def placed(t: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """In this dtype on the device, with its strides."""
    if 0 in t.stride() and t.numel():  # expanded
        return t[:1].to(device=device, dtype=dtype).expand_as(t)
    return torch.empty_strided(t.shape, t.stride(), dtype=dtype, device=device).copy_(t)


def leaves(*tensors: Tensor, dtype: torch.dtype | None = None) -> list[Tensor]:
    """Copies that require gradients, strides kept unless converted."""
    return [
        t.detach().to(dtype or t.dtype).clone(memory_format=torch.preserve_format).requires_grad_() for t in tensors
    ]
