"""Options of attention, passed from op.py to the backends."""

from typing import NamedTuple

import torch
from torch import Tensor

# dq (B, T, H, D), dk and dv (B, T, G, D). Buffers passed to a backend have adjacent features and adjacent heads,
# and dk and dv the same strides: new tensors, or slices of one tensor (B, T, H + 2G, D).
Gradients = tuple[Tensor, Tensor, Tensor]


def empty_gradients(q: Tensor, k: Tensor, v: Tensor) -> Gradients:
    dq, dk, dv = (torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (q, k, v))
    return dq, dk, dv


# Options in the schema of a custom op.
SCHEMA = "bool causal, float? scale, Tensor? document_ids, SymInt? window, bool deterministic"


class Options(NamedTuple):
    """The arguments of op.attention of the same names."""

    causal: bool = True
    scale: float | None = None
    document_ids: Tensor | None = None
    window: int | None = None
    deterministic: bool = False
