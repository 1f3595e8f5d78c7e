"""A stack of multilayer perceptrons over embedded symbols.

Shapes: K models, N questions, T places of a question, V symbols, D width, H hidden, C answers.
"""

from typing import Literal

import torch
from pydantic import Field

from emergence_train.grokking.shapes import LEAST_COLUMNS, Shapes, tall, wide
from emergence_train.section import Section


class Mlp(Section):
    """Embeddings of the symbols, concatenated, then hidden layers with ReLU."""

    kind: Literal["mlp"]
    width: int = Field(ge=LEAST_COLUMNS, description="width of the embedding")
    hidden: int = Field(ge=LEAST_COLUMNS, description="units of a hidden layer")
    layers: int = Field(default=1, ge=1, le=8, description="hidden layers")
    init: float = Field(
        default=1.0, gt=0, description="scale of the first weights; above 1 delays generalization (arXiv 2210.01117)"
    )

    def shapes(self, places: int, symbols: int, classes: int) -> Shapes:
        """Of the parameters by name, each with the standard deviation of its first values."""
        shapes: Shapes = {
            "embedding": ((symbols, self.width), self.init * self.width**-0.5),
            "first": ((places, self.width, self.hidden), self.init * places**-0.5),
            "bias": ((1, self.hidden), 0.0),
        }
        for layer in range(1, self.layers):
            shapes[f"hidden_{layer}"] = ((self.hidden, self.hidden), self.init * (2 / self.hidden) ** 0.5)
        shapes["last"] = ((self.hidden, classes), self.init * self.hidden**-0.5)
        return shapes

    def prepared(self, questions_KNT: torch.Tensor, symbols: int) -> torch.Tensor:
        """(K, N, T * V + 1) what `logits` takes: one-hot places and a constant: one product for the first layer."""
        hot = torch.nn.functional.one_hot(questions_KNT, symbols).flatten(2)
        return torch.cat([hot, hot.new_ones(*hot.shape[:2], 1)], 2).to(torch.float32)

    def logits(self, weights: dict[str, torch.Tensor], rows: torch.Tensor) -> torch.Tensor:
        """(K, N, C) of prepared questions. Sums over rows are matrix products alone, whose bits do not depend on K."""
        symbols, classes = weights["embedding"].shape[1], weights["last"].shape[2]
        table = (tall(weights["embedding"])[:, None] @ weights["first"])[:, :, :symbols].flatten(1, 2)
        hidden = torch.relu(rows @ torch.cat([table, weights["bias"]], 1))
        for layer in range(1, self.layers):
            hidden = torch.relu(hidden @ weights[f"hidden_{layer}"])
        return (hidden @ wide(weights["last"]))[..., :classes]
