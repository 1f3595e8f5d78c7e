"""A model whose sequences all begin with a certain token, as Llama's do; what calls it need not know.

Shapes: B sequences, T tokens, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from emergence_kernels import PositionLoss, PositionSums
from emergence_train.models.language_model import IGNORED, LanguageModel


@dataclass
class BegunCache:
    """A model's cache, and whether it holds the token at the beginning."""

    inner: Any
    begun: bool = False


class WithBeginToken(LanguageModel):
    """`model` with the token `begin` before every row: position 1 is predicted from it and the row's first token.

    For evaluation. Rows may be one token shorter than the model's longest; documents within a row are refused.
    """

    def __init__(self, model: LanguageModel, begin: int) -> None:
        super().__init__()
        self.model, self.begin = model, begin
        self.boundaries = model.boundaries

    def forward(
        self,
        tokens_BT: Tensor,
        targets_BT: Tensor | None = None,
        weights: Tensor | None = None,
        document_ids_BT: Tensor | None = None,
        z_loss: float = 0.0,
        cache: Any = None,
        branches_BT: Tensor | None = None,
    ) -> PositionLoss | Tensor:
        if document_ids_BT is not None:
            raise ValueError("documents within a row would each begin with the token")
        if cache is not None:
            tokens_BT = tokens_BT if cache.begun else self._begun(tokens_BT, self.begin)
            cache.begun = True
            return self.model(tokens_BT, cache=cache.inner)
        tokens_BT = self._begun(tokens_BT, self.begin)
        branches_BT = None if branches_BT is None else self._begun(branches_BT, 0)  # of the prefix
        if targets_BT is None:
            return self.model(tokens_BT, branches_BT=branches_BT)[:, 1:]
        weights = None if weights is None else F.pad(weights, (1, 0))
        targets_BT = self._begun(targets_BT, IGNORED)
        result = self.model(tokens_BT, targets_BT, weights, z_loss=z_loss, branches_BT=branches_BT)
        positions = PositionSums(*(sums_T[1:] for sums_T in result.positions))
        return PositionLoss(result.loss, result.token_loss[:, 1:], positions)

    def new_cache(self) -> BegunCache:
        return BegunCache(self.model.new_cache())

    @staticmethod
    def _begun(values_BT: Tensor, value: int) -> Tensor:
        return torch.cat([values_BT.new_full((len(values_BT), 1), value), values_BT], 1)


def beginning(model: torch.nn.Module, end_of_text: int) -> list[int]:
    """What stands for an empty prompt: the end of a text before, or nothing where the model begins every row itself."""
    return [] if isinstance(model, WithBeginToken) else [end_of_text]
