"""Argument checks shared by the operations: one clear error each, raised before anything is launched."""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch

from .tracing import traced

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
DEBUG = "EMERGENCE_KERNELS_DEBUG"


def require(condition: bool, message: str | Callable[[], str]) -> None:
    """Raise ValueError unless the condition holds. A message with numbers is a function, as for torch._check: formatting takes
    longer than checking."""
    if not condition:
        raise ValueError(message if isinstance(message, str) else message())


def checks_values(device: torch.device) -> bool:
    """Whether to check values: free on the CPU, a device sync elsewhere (so only with EMERGENCE_KERNELS_DEBUG=1)."""
    if traced():
        return False
    return device.type == "cpu" or os.environ.get(DEBUG, "0") == "1"


def check_float(op: str, **tensors: torch.Tensor | None) -> None:
    """Check that all tensors are floating point with one dtype and one device."""
    first = next(t for t in tensors.values() if t is not None)
    dtype, device = first.dtype, first.device
    if dtype in FLOATS and all(t is None or (t.dtype == dtype and t.device == device) for t in tensors.values()):
        return
    given = {name: t for name, t in tensors.items() if t is not None}
    first_name = next(iter(given))
    for name, t in given.items():
        require(t.dtype in FLOATS, f"{op}: {name} has dtype {t.dtype}; expected float32, bfloat16, float16 or float64")
        require(t.dtype == dtype, f"{op}: {name} has dtype {t.dtype} but {first_name} has {dtype}; cast one of them")
        require(t.device == device, f"{op}: {name} is on {t.device} but {first_name} is on {device}")


def check_loss_inputs(
    op: str, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, ignore_index: int
) -> None:
    """hidden (..., D), weight (V, D), targets (...) of integers, each target in [0, V) or ignore_index."""
    check_float(op, hidden=hidden, weight=weight)
    require(weight.dim() == 2, lambda: f"{op}: weight must be (vocabulary, features), got shape {tuple(weight.shape)}")
    require(hidden.dim() >= 2, lambda: f"{op}: hidden must be (..., features), got shape {tuple(hidden.shape)}")
    require(
        hidden.shape[-1] == weight.shape[1],
        lambda: (
            f"{op}: hidden has {hidden.shape[-1]} features but weight has {weight.shape[1]}"
            + (" (under ZeRO-3 call it inside the module that owns the weight: LMHead)" if weight.numel() == 0 else "")
        ),
    )
    require(weight.numel() > 0, lambda: f"{op}: weight is empty, its shape is {tuple(weight.shape)}")
    require(
        targets.shape == hidden.shape[:-1],
        lambda: f"{op}: targets have shape {tuple(targets.shape)}, expected {tuple(hidden.shape[:-1])}",
    )
    require(
        targets.dtype in (torch.int64, torch.int32),
        lambda: f"{op}: targets have dtype {targets.dtype}; expected int64 or int32",
    )
    require(
        targets.device == hidden.device,
        lambda: f"{op}: targets are on {targets.device} but hidden is on {hidden.device}",
    )
    if checks_values(targets.device) and targets.numel():
        least, greatest = torch.aminmax(targets)  # one pass, and in most cases sufficient
        if int(least) >= 0 and int(greatest) < weight.shape[0]:
            return
        bad = (targets != ignore_index) & ((targets < 0) | (targets >= weight.shape[0]))
        if bool(bad.any()):
            value = int(targets[bad][0])
            raise ValueError(
                f"{op}: target {value} is outside the vocabulary of {weight.shape[0]} and is not ignore_index "
                f"({ignore_index})"
            )


def check_weights(weights: torch.Tensor, targets_BT: torch.Tensor) -> None:
    """Check token weights of position_loss, (T,) or (B, T): finite, not negative, without gradient."""
    B, T = targets_BT.shape
    require(
        tuple(weights.shape) in ((T,), (B, T)),
        lambda: f"position_loss: weights have shape {tuple(weights.shape)}, expected ({T},) or ({B}, {T})",
    )
    require(
        weights.is_floating_point(),
        lambda: f"position_loss: weights have dtype {weights.dtype}; expected a floating-point dtype",
    )
    require(
        weights.device == targets_BT.device,
        lambda: f"position_loss: weights are on {weights.device}, targets on {targets_BT.device}",
    )
    require(
        not weights.requires_grad, lambda: "position_loss: weights are constants of the loss; pass weights.detach()"
    )
    if checks_values(weights.device):
        require(
            bool(torch.isfinite(weights).all()) and not bool((weights < 0).any()),
            lambda: "position_loss: weights must be finite and not negative",
        )


def autocast(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Under torch.autocast, the tensors in its dtype but those in float64, as for a linear layer; otherwise unchanged."""
    kind = tensors[0].device.type
    if not autocasts(kind):
        return tensors
    return tuple(t if t.dtype == torch.float64 else t.to(torch.get_autocast_dtype(kind)) for t in tensors)


def autocasts(kind: str) -> bool:
    """Whether a device's torch.autocast is on; "meta" has none (torch.amp.is_autocast_available breaks graphs, as of 2.11)."""
    return kind != "meta" and torch.is_autocast_enabled(kind)


def without_autocast(kind: str) -> AbstractContextManager:
    return torch.autocast(kind, enabled=False) if autocasts(kind) else nullcontext()
