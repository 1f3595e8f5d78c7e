"""RMSNorm with an optional fused residual addition."""

from torch import Tensor

from ..checks import check_float, require
from ..dispatch import resolve_backend
from ..reference.rms_norm import rms_norm as rms_norm_torch


def rms_norm(
    x: Tensor, weight: Tensor, eps: float = 1e-6, residual: Tensor | None = None, *, backend: str | None = None
) -> Tensor | tuple[Tensor, Tensor]:
    """Root-mean-square normalisation over the last dimension (Zhang and Sennrich, arXiv 1910.07467).

    Casting follows Llama: the mean square and x / rms are float32, the result is cast to x's dtype and then multiplied
    by weight. float64 inputs are computed in float64.

    Args:
        x: (..., D).
        weight: (D,), same dtype and device as x.
        eps: added to the mean square.
        residual: (..., D) or None. If given, x + residual (rounded to x's dtype) is what is normalised.
        backend: "triton", "torch" or "auto"; None reads EMERGENCE_KERNELS_BACKEND.

    Returns:
        y (..., D); with a residual (y, x + residual).

    Raises:
        ValueError: shapes, dtypes or devices do not match. BackendError: the named backend cannot run.
    """
    check_float("rms_norm", x=x, weight=weight, residual=residual)
    require(x.dim() >= 1 and x.shape[-1] > 0, f"rms_norm: x must be (..., features), got shape {tuple(x.shape)}")
    require(
        weight.shape == x.shape[-1:],
        f"rms_norm: weight has shape {tuple(weight.shape)}, expected ({x.shape[-1]},) to match x",
    )
    if residual is not None:
        require(
            residual.shape == x.shape,
            f"rms_norm: residual has shape {tuple(residual.shape)} but x has {tuple(x.shape)}",
        )
    resolve_backend(backend, "rms_norm", x.device)
    y, new_residual = rms_norm_torch(x, weight, eps, residual)
    return y if residual is None else (y, new_residual)
