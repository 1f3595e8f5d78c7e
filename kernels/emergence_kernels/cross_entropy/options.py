"""Inputs and options of a sweep over rows of logits, passed from the operations to the backends."""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


class LossInputs(NamedTuple):
    """N rows of D features, the head of V logits, and the targets."""

    hidden_ND: Tensor
    weight_VD: Tensor
    targets_N: Tensor
    valid_N: Tensor  # bool; False: ignored


@dataclass(frozen=True)
class RowOptions:
    """Arguments of fused_rows, forward_rows and backward_rows (reference.py).

    z_loss: coefficient of the squared log-sum-exp. softcap: bound of the logits, None for none (fused_rows has none).
    need_dx, need_dw: gradients to compute. rows_per_chunk: None chooses by device. backend: the library of
    compiled.py.
    """

    z_loss: float = 0.0
    softcap: float | None = None
    need_dx: bool = False
    need_dw: bool = False
    rows_per_chunk: int | None = None
    backend: str = "torch"

    @property
    def need_gradients(self) -> bool:
        return self.need_dx or self.need_dw
