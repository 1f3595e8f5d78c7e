"""Modules around the operations, to build a decoder of; LMHead, the output head, is in cross_entropy/."""

import torch
from torch import Tensor, nn

from .rms_norm.op import rms_norm
from .swiglu.op import swiglu


class RMSNorm(nn.Module):
    """x / sqrt(mean x^2 + eps) * weight over the last dimension (Zhang and Sennrich 2019).

    Args:
        features: F, the size of the last dimension. backend: as of rms_norm.
    """

    def __init__(self, features: int, eps: float = 1e-6, *, backend: str | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(features))
        self.eps, self.backend = eps, backend

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """x (..., F) -> its norm; with a residual (..., F) the norm of x + residual, and the sum."""
        if residual is None:
            return rms_norm(x, self.weight, self.eps, backend=self.backend)
        return rms_norm(x, self.weight, self.eps, residual=residual, backend=self.backend)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, eps={self.eps}"


class SwiGLU(nn.Module):
    """down(silu(gate x) * up x), gate and up in one matrix (Shazeer 2020).

    Args:
        features: of the input and the output. hidden: of the gate. backend: as of swiglu.
    """

    def __init__(self, features: int, hidden: int, *, bias: bool = False, backend: str | None = None) -> None:
        super().__init__()
        self.gate_up = nn.Linear(features, 2 * hidden, bias=bias)
        self.down = nn.Linear(hidden, features, bias=bias)
        self.backend = backend

    def forward(self, x: Tensor) -> Tensor:
        """x (..., features) -> (..., features)."""
        return self.down(swiglu(self.gate_up(x), backend=self.backend))
