"""adamw_step beside torch's fused AdamW: what a step does to float32 weights, moments, a bf16 copy and the gradient."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..adamw.op import adamw_step
from .candidate import Candidate, Case

SIZES = {"full": (1 << 26, 1 << 29), "short": (1 << 28,), "laptop": (1 << 20,), "tiny": (1 << 12,)}  # elements
BYTES = 34  # read: weights, gradient, moments; written: the same and the copy
SETTINGS: dict[str, Any] = dict(lr=3e-4, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)


def cases(suite: str, device: torch.device, backends: list[str]) -> Iterator[Case]:
    for elements in SIZES[suite]:
        torch.manual_seed(0)
        tensors = torch.randn(elements, device=device), torch.randn(elements, device=device)
        copy = torch.empty(elements, dtype=torch.bfloat16, device=device)
        makers: list[tuple[str, Callable]] = [
            ("torch fused", _fused),
            *((f"emergence {b}", partial(_ours, backend=b)) for b in backends),
        ]
        yield Case(
            op="adamw_step",
            shape={"elements": elements},
            candidates=[partial(_candidate, name, make, *tensors, copy) for name, make in makers],
            bytes={"both": BYTES * elements},
            formula="reads weights, gradient and moments (16 bytes an element), writes them and a bf16 copy (18)",
        )


def _candidate(name: str, make: Callable[..., Callable[[], Tensor]], *tensors: Tensor) -> Candidate:
    return Candidate(name, make(*tensors), ())


def _ours(weights: Tensor, gradient: Tensor, copy: Tensor, *, backend: str) -> Callable[[], Tensor]:
    device = weights.device
    moments = [torch.zeros_like(weights), torch.zeros_like(weights), torch.zeros((), device=device)]
    given = SETTINGS | {"grad_scale": torch.ones((), device=device), "applied": torch.tensor(True, device=device)}

    def run() -> Tensor:
        adamw_step(weights, gradient, *moments, **given, copy=copy, backend=backend)
        return copy

    return run


def _fused(weights: Tensor, gradient: Tensor, copy: Tensor) -> Callable[[], Tensor]:
    """With a clip factor and found_inf, as in training; then the copy and the fill."""
    parameter = torch.nn.Parameter(weights.clone())
    optimizer: Any = torch.optim.AdamW([parameter], fused=True, **SETTINGS)
    optimizer.grad_scale = torch.ones((), device=weights.device)
    optimizer.found_inf = torch.zeros((), device=weights.device)

    def run() -> Tensor:
        parameter.grad = gradient
        optimizer.step()
        copy.copy_(parameter.detach())
        gradient.zero_()
        return copy

    return run
