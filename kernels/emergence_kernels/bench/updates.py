"""adamw_step beside torch's fused AdamW: what a step does to float32 weights, moments, a bf16 copy and the gradient."""

from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..adamw.op import adamw_step
from ..backends.dispatch import available_backends
from .timing import measure, peak_extra_bytes

SIZES = {"full": (1 << 26, 1 << 29), "short": (1 << 28,), "laptop": (1 << 20,), "tiny": (1 << 12,)}  # elements
BYTES = 34  # read: weights, gradient, moments; written: the same and the copy
SETTINGS: dict[str, Any] = dict(lr=3e-4, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)


def rows(suite: str, device: torch.device, limits: dict[str, float]) -> Iterator[dict]:
    for elements in SIZES[suite]:
        for name, run in _candidates(elements, device):
            timing = measure(run, device, 0.5 if device.type == "cuda" else 0.05)
            gbps = BYTES * elements / timing.median_ms / 1e6
            yield {
                "op": "adamw_step",
                "shape": {"elements": elements},
                "contender": name,
                "note": "torch: the fused optimizer with a clip factor and found_inf, then the copy and the fill",
                "formula": f"{BYTES} bytes an element: reads 16, writes 18",
                "modes": {"both": asdict(timing) | {"gbps": gbps, "percent_of_copy": 100 * gbps / limits["copy_gbps"]}},
                "peak_extra_bytes": peak_extra_bytes(run, device),
            }


def _candidates(elements: int, device: torch.device) -> Iterator[tuple[str, Callable[[], None]]]:
    weights, gradient = torch.randn(elements, device=device), torch.randn(elements, device=device)
    copy = torch.empty(elements, dtype=torch.bfloat16, device=device)
    scale, applied = torch.ones((), device=device), torch.tensor(True, device=device)
    yield "torch fused", _fused(weights, gradient, copy, scale)
    moments = [torch.zeros_like(weights), torch.zeros_like(weights), torch.zeros((), device=device)]
    for backend, answer in available_backends(device)["adamw_step"].items():
        if answer == "yes":
            given = dict(grad_scale=scale, applied=applied, copy=copy, backend=backend, **SETTINGS)
            yield f"emergence {backend}", partial(adamw_step, weights, gradient, *moments, **given)


def _fused(weights: Tensor, gradient: Tensor, copy: Tensor, scale: Tensor) -> Callable[[], None]:
    parameter = torch.nn.Parameter(weights.clone())
    optimizer: Any = torch.optim.AdamW([parameter], fused=True, **SETTINGS)
    optimizer.grad_scale, optimizer.found_inf = scale, torch.zeros((), device=scale.device)

    def run() -> None:
        parameter.grad = gradient
        optimizer.step()
        copy.copy_(parameter.detach())
        gradient.zero_()

    return run
