"""Fused kernels for pretraining decoder language models: RMSNorm, attention, and losses that know token positions.

Every operation has a PyTorch reference ("torch") that says what it computes, and faster backends behind one signature.
Importing the package needs torch only; Triton is imported when a Triton kernel is asked for.
"""

from .dispatch import BACKENDS, BackendError, available_backends, resolve_backend
from .modules import LMHead
from .ops.attention import attention
from .ops.linear_cross_entropy import linear_cross_entropy
from .ops.position_loss import PositionLoss, PositionSums, position_loss
from .ops.rms_norm import rms_norm
from .ops.rotary import rotary
from .ops.rotary_attention import rotary_attention
from .ops.swiglu import swiglu

__all__ = [
    "BACKENDS",
    "BackendError",
    "LMHead",
    "PositionLoss",
    "PositionSums",
    "attention",
    "available_backends",
    "linear_cross_entropy",
    "position_loss",
    "resolve_backend",
    "rms_norm",
    "rotary",
    "rotary_attention",
    "swiglu",
]
__version__ = "0.1.0"
