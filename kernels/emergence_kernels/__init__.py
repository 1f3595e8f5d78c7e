"""Fused kernels for pretraining decoder language models: RMSNorm, SwiGLU, rotary embedding, attention, fp8 linear
layers, per-position losses.

Every operation has a PyTorch reference ("torch") that defines it, and faster backends behind one signature. Importing the
package needs torch only; Triton is imported when a Triton kernel is used.
"""

from .adamw.op import adamw_step
from .attention.document_ranges import DocumentPlan
from .attention.op import attention, document_plan
from .attention.projected_attention import projected_attention
from .attention.rotary_attention import rotary_attention
from .backends.dispatch import BACKENDS, BackendError, available_backends, resolve_backend
from .cross_entropy.linear import linear_cross_entropy
from .cross_entropy.lm_head import LMHead
from .cross_entropy.position_loss import PositionLoss, PositionSums, position_loss
from .feed_forward.op import feed_forward
from .fp8_linear.op import Fp8Weight, fp8_linear, quantize_weight
from .llama_patch import patch_llama
from .modules import RMSNorm, SwiGLU
from .rms_norm.op import rms_norm
from .rotary.op import rotary
from .swiglu.op import swiglu

__all__ = [
    "BACKENDS",
    "BackendError",
    "DocumentPlan",
    "Fp8Weight",
    "LMHead",
    "PositionLoss",
    "PositionSums",
    "RMSNorm",
    "SwiGLU",
    "adamw_step",
    "attention",
    "available_backends",
    "document_plan",
    "feed_forward",
    "fp8_linear",
    "linear_cross_entropy",
    "patch_llama",
    "position_loss",
    "projected_attention",
    "quantize_weight",
    "resolve_backend",
    "rms_norm",
    "rotary",
    "rotary_attention",
    "swiglu",
]
__version__ = "0.1.0"
