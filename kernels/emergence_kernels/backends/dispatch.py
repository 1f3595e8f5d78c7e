"""Choose the backend of an operation.

"torch" is the reference and runs anywhere. "triton" needs Triton and a CUDA device (or TRITON_INTERPRET=1, which runs
the same kernels slowly on the CPU, for tests). "flash" is attention by flash-attn, or PyTorch's own flash kernels.
"cuda" and "cpu" are compiled C++, where built (build.py); "cpu" supports float32 only. "auto" chooses the fastest that can
run; a named backend either runs or raises BackendError before anything is launched.
"""

import importlib.util
import os

import torch

from . import library
from .tracing import traced

BACKENDS = ("auto", "triton", "cuda", "cpu", "flash", "torch")
ENVIRONMENT = "EMERGENCE_KERNELS_BACKEND"


class BackendError(RuntimeError):
    """A backend was named and cannot run here."""


HAS_TRITON = importlib.util.find_spec("triton") is not None


def interpreting() -> bool:
    """Whether Triton runs its kernels on the CPU (the variable must be set before Triton is first imported)."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


# Backends of each operation, in the default order; ranking.py has the measured order where there is one. "auto" chooses "cuda"
# only by measurement, or where the operation ranks it (on Hopper attention, feed_forward, position_loss). "torch" is always last.
IMPLEMENTED = {
    "rms_norm": ("triton", "cuda", "cpu", "torch"),
    "rotary": ("triton", "cuda", "cpu", "torch"),
    "swiglu": ("triton", "cuda", "cpu", "torch"),
    "feed_forward": ("triton", "cuda", "cpu", "torch"),
    "fp8_linear": ("triton", "torch"),
    "attention": ("flash", "triton", "cuda", "cpu", "torch"),
    "linear_cross_entropy": ("triton", "cuda", "cpu", "torch"),
    "position_loss": ("triton", "cuda", "cpu", "torch"),
    "adamw_step": ("triton", "torch"),
}


CPU_OPERATIONS = {op for op, backends in IMPLEMENTED.items() if "cpu" in backends}


def unsupported_reason(backend: str, op: str, device: torch.device, limits: dict[str, str | None]) -> str | None:
    """The reason why `backend` cannot run `op` on `device`, or None if it can.

    limits: for a backend, the reason why it does not support these inputs.
    """
    if limits.get(backend):
        return limits[backend]
    if backend not in IMPLEMENTED[op]:
        return f"it has no {op}"
    if backend == "torch":
        return None
    if backend == "flash":  # `limits` has the operation's own check
        return None if device.type == "cuda" else f"the tensors are on {device.type}, and it needs a CUDA device"
    if backend in ("cuda", "cpu"):
        return library.unsupported_reason(backend, device)
    if backend == "triton":
        if not HAS_TRITON:
            return "triton is not installed"
        if device.type == "cuda" or interpreting():
            return None
        return f"the tensors are on {device.type}, and Triton needs a CUDA device (or TRITON_INTERPRET=1)"
    raise AssertionError(backend)


def resolve_backend(
    backend: str | None,
    op: str,
    device: torch.device,
    limits: dict[str, str | None] | None = None,
    avoid: tuple[str, ...] = (),
    measured: tuple[str, ...] | list[str] = (),
) -> str:
    """Resolve a request (argument, else EMERGENCE_KERNELS_BACKEND, else "auto") into the backend that runs `op`.

    limits: as in unsupported_reason. avoid: backends that "auto" does not choose for these inputs although they could run.
    measured: backends from the fastest to the slowest for such inputs, from ranking.fastest.
    """
    limits = limits or {}
    asked = backend or os.environ.get(ENVIRONMENT) or "auto"
    if asked not in BACKENDS:
        raise BackendError(f"unknown kernel backend {asked!r}: choose one of {', '.join(BACKENDS)}")
    if asked == "auto":
        if device.type != "cuda":
            # Interpreter and emulation are test tools, used only where named. In a graph Inductor fuses elementwise passes.
            compiled = op in CPU_OPERATIONS and not traced() and not limits.get("cpu")
            return "cpu" if compiled and library.unsupported_reason("cpu", device) is None else "torch"
        known = [name for name in IMPLEMENTED[op] if name not in ("cuda", "cpu")]
        names = [name for name in dict.fromkeys([*measured, *known]) if name in IMPLEMENTED[op] and name not in avoid]
        return next(name for name in names if unsupported_reason(name, op, device, limits) is None)
    reason = unsupported_reason(asked, op, device, limits)
    if reason is not None:
        raise BackendError(f"{op}: backend {asked!r} cannot run: {reason}; 'auto' chooses one that can")
    return asked


def dtype_limits(tensor: torch.Tensor) -> dict[str, str | None]:
    """Reasons by dtype: own kernels compute in float32, and those for CPUs support nothing else."""
    reason = "float64 is computed by 'torch' only" if tensor.dtype == torch.float64 else None
    narrow = None if tensor.dtype == torch.float32 else f"it supports float32 only, not {tensor.dtype}"
    return {"triton": reason, "cuda": reason, "cpu": reason or narrow}


def slow_products(tensor: torch.Tensor) -> tuple[str, ...]:
    """Backends to avoid for float32 products without tensor cores, which cuBLAS computes faster than Triton."""
    return ("triton",) if tensor.dtype == torch.float32 else ()


def available_backends(device: str | torch.device = "cpu") -> dict[str, dict[str, str]]:
    """For each operation, {backend: "yes" or the reason why not} on `device`."""
    device = torch.device(device)
    names = [name for name in BACKENDS if name != "auto"]
    return {op: {name: unsupported_reason(name, op, device, {}) or "yes" for name in names} for op in IMPLEMENTED}
