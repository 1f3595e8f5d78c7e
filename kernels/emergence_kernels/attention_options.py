"""What attention is asked for beside its tensors, as ops/attention.py hands it to the backends."""

from typing import NamedTuple

from torch import Tensor


class Options(NamedTuple):
    """The arguments of ops.attention.attention of the same names."""

    causal: bool = True
    scale: float | None = None
    document_ids: Tensor | None = None
    window: int | None = None
    deterministic: bool = False
