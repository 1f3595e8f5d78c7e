"""Attention by csrc/: kernels for Hopper where they run, those for sm_80 elsewhere; the interface is that of triton.py."""

from types import ModuleType

from torch import Tensor

from . import hopper as attention_hopper
from . import mma as attention_mma
from .document_ranges import Blocks
from .options import Angles, Gradients, Options, Saved

LEADING = 4096  # positions
KERNELS = {"sm_80": attention_mma, "sm_90": attention_hopper}
unsupported_reason = attention_mma.unsupported_reason  # what those take, one of them does


def _kernels(q: Tensor) -> ModuleType:
    return KERNELS["sm_90" if q.device.type == "cuda" and attention_hopper.unsupported_reason(q) is None else "sm_80"]


def order(q: Tensor) -> tuple[str, ...]:
    """Backends, fastest first, where ranking.json has no measurement of such a q. On an H100 Hopper's kernels were 1.5 to 2.1
    times as fast as Triton's, and both ways 2 to 8% ahead of cuDNN's from 1,024 to 4,096 positions, 7% behind at 16,384
    (20261126-hopper-attention.json)."""
    if q.device.type != "cuda" or attention_hopper.unsupported_reason(q) is not None:
        return ()
    return ("cuda", "flash", "triton") if q.shape[1] <= LEADING else ("flash", "cuda", "triton")


def document_blocks(q: Tensor, options: Options, backward: bool) -> list[Blocks]:
    """The ranges that forward reads, and backward too."""
    return _kernels(q).document_blocks(q, options, backward)


def rotates_back(q: Tensor, cos: Tensor) -> bool:
    """Whether backward takes angles, and rotates dq and dk back by itself."""
    kernels = _kernels(q)
    return kernels is attention_hopper and attention_hopper.rotates_back(cos)


def forward(q: Tensor, k: Tensor, v: Tensor, options: Options) -> tuple[Tensor, Tensor]:
    """-> out (B, T, H, D), lse (B, H, T) float32, in base 2."""
    return _kernels(q).forward(q, k, v, options)


def backward(
    grad: Tensor, saved: Saved, options: Options, into: Gradients | None = None, angles: Angles | None = None
) -> Gradients:
    """-> dq, dk, dv. into: where to write them (options.py). angles: by which dq and dk are rotated back, if rotates_back.

    `deterministic`: every sum has a fixed order, at the cost of two more matrix products (seven instead of five); otherwise
    blocks of keys add to dq by atomics, in a float32 buffer of dq's size."""
    if angles is None:
        return _kernels(saved.q).backward(grad, saved, options, into)
    return attention_hopper.backward(grad, saved, options, into, angles)
