"""Options of attention, passed from op.py to the backends."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .document_ranges import DocumentPlan

# dq (B, T, H, D), dk and dv (B, T, G, D). Buffers passed to a backend have adjacent features and adjacent heads,
# and dk and dv the same strides: new tensors, or slices of one tensor (B, T, H + 2G, D).
Gradients = tuple[Tensor, Tensor, Tensor]

# cos and sin (T, R) or (B, T, R) of the rotary embedding, by which a backend rotates dq and dk back (its rotates_back says if).
Angles = tuple[Tensor, Tensor]


class Saved(NamedTuple):
    """What backward reads of the forward pass."""

    q: Tensor  # (B, T, H, D)
    k: Tensor  # (B, T, G, D)
    v: Tensor
    out: Tensor  # (B, T, H, D)
    lse: Tensor  # (B, H, T) float32, in the base of the kernels that computed it


def empty_gradients(q: Tensor, k: Tensor, v: Tensor) -> Gradients:
    dq, dk, dv = (torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (q, k, v))
    return dq, dk, dv


# Options and backend in the schema of a custom op: Options.arguments. What follows `backend` has come later.
SCHEMA = (
    "bool causal, float? scale, Tensor? document_ids, SymInt? window, bool deterministic, str backend, "
    "float? softcap=None, Tensor? sinks=None, Tensor? alibi=None, Tensor? ranges=None, int[] range_blocks=[]"
)
BIASES = ("alibi",)  # options with the parameters (heads,) of a bias of the scores: of each call one at most
TENSORS = ("document_ids", "sinks", *BIASES, "ranges")
FIRST = 5  # options before `backend`
SINKS = FIRST + 2  # the index of `sinks` in SCHEMA


class Options(NamedTuple):
    """The arguments of op.attention of the same names; ranges and range_blocks are those of a DocumentPlan."""

    causal: bool = True
    scale: float | None = None
    document_ids: Tensor | None = None
    window: int | None = None
    deterministic: bool = False
    softcap: float | None = None
    sinks: Tensor | None = None
    alibi: Tensor | None = None
    ranges: Tensor | None = None
    range_blocks: tuple[int, ...] = ()

    @property
    def changes_scores(self) -> bool:
        """Whether the softmax is of more than scale * q k^T."""
        return not (self.softcap is None and self.sinks is None) or bool(self.biases())

    def biases(self) -> dict[str, Tensor]:
        """The parameters of those that are given."""
        return {name: getattr(self, name) for name in BIASES if getattr(self, name) is not None}

    def arguments(self, backend: str) -> tuple[Any, ...]:
        """As SCHEMA has them."""
        return *self[:FIRST], backend, *self[FIRST:]

    @classmethod
    def parse(cls, arguments: tuple[Any, ...]) -> tuple["Options", str]:
        """The options and the backend of `arguments`."""
        first, backend, rest = arguments[:FIRST], arguments[FIRST], arguments[FIRST + 1 :]
        return cls(*first, *rest), backend

    def tensors(self) -> tuple[Tensor | None, ...]:
        """Those to save for backward; with_tensors puts them back into options without."""
        return tuple(getattr(self, name) for name in TENSORS)

    def with_tensors(self, tensors: tuple[Tensor | None, ...]) -> "Options":
        given: dict[str, Any] = dict(zip(TENSORS, tensors))
        return self._replace(**given)

    def without_tensors(self) -> "Options":
        return self.with_tensors((None,) * len(TENSORS))

    def plan(self) -> DocumentPlan | None:
        """Of the documents, with the ranges that are known; None: one document."""
        if self.document_ids is None:
            return None
        return DocumentPlan(self.document_ids, self.ranges, tuple(self.range_blocks))
