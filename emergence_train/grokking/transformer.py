"""A stack of small transformers: the symbols of a question and a last place, where the answer is read.

Shapes: K models, N questions, T places, A heads, D width, C answers.
"""

from typing import Literal

import torch
from pydantic import Field, model_validator

from emergence_train.grokking.shapes import LEAST_COLUMNS, Shapes, wide
from emergence_train.section import Section


class Transformer(Section):
    """Causal decoder with learned positions, norms before each block, ReLU and no biases; arXiv 2201.02177 has 2 layers of width
    128 and 4 heads."""

    kind: Literal["transformer"]
    layers: int = Field(default=2, ge=1, le=16, description="blocks")
    width: int = Field(default=128, ge=LEAST_COLUMNS, description="width")
    heads: int = Field(default=4, ge=1, description="attention heads")
    init: float = Field(
        default=1.0, gt=0, description="scale of the first weights; above 1 delays generalization (arXiv 2210.01117)"
    )

    @model_validator(mode="after")
    def _heads(self) -> "Transformer":
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is no multiple of heads {self.heads}; change one of them")
        return self

    def shapes(self, places: int, symbols: int, classes: int) -> Shapes:
        """Of the parameters by name, each with the standard deviation of its first values."""
        width, scale = self.width, self.init * self.width**-0.5
        shapes: Shapes = {
            "embedding": ((symbols + 1, width), scale),
            "positions": ((places + 1, width), scale),
        }
        for layer in range(self.layers):
            shapes[f"attention_{layer}"] = ((width, 3 * width), scale)
            shapes[f"output_{layer}"] = ((width, width), scale)
            shapes[f"up_{layer}"] = ((width, 4 * width), scale)
            shapes[f"down_{layer}"] = ((4 * width, width), scale / 2)
        shapes["last"] = ((width, classes), scale)
        return shapes

    def prepared(self, questions_KNT: torch.Tensor, symbols: int) -> torch.Tensor:
        """(K, N, T + 1) what `logits` takes: the question and the symbol of the answer's place."""
        return torch.cat([questions_KNT, torch.full_like(questions_KNT[..., :1], symbols)], 2)

    def logits(self, weights: dict[str, torch.Tensor], rows: torch.Tensor) -> torch.Tensor:
        """(K, N, C) at the last place of prepared questions."""
        models, questions, places = rows.shape
        symbols = weights["embedding"].shape[1]
        offset = symbols * torch.arange(models, device=rows.device)[:, None, None]
        embedded = torch.nn.functional.embedding(rows + offset, weights["embedding"].flatten(0, 1))
        x = (embedded + weights["positions"][:, None]).flatten(1, 2)  # (K, N * T, D)
        future = torch.ones(places, places, dtype=torch.bool, device=rows.device).triu(1)
        for layer in range(self.layers):
            attended = self._attended(_normed(x) @ weights[f"attention_{layer}"], questions, places, future)
            x = x + attended @ weights[f"output_{layer}"]
            x = x + torch.relu(_normed(x) @ weights[f"up_{layer}"]) @ weights[f"down_{layer}"]
        last = x.unflatten(1, (questions, places))[:, :, -1]
        return (_normed(last) @ wide(weights["last"]))[..., : weights["last"].shape[2]]

    def _attended(self, mixed: torch.Tensor, questions: int, places: int, future: torch.Tensor) -> torch.Tensor:
        """(K, N * T, D) of queries, keys and values (K, N * T, 3 D)."""
        parts = mixed.unflatten(2, (3, self.heads, -1)).unflatten(1, (questions, places))
        q, k, v = parts.permute(3, 0, 1, 4, 2, 5)  # (K, N, A, T, D / A)
        scores = q @ k.mT * q.shape[-1] ** -0.5
        shares = scores.masked_fill(future, float("-inf")).softmax(-1)
        return (shares @ v).transpose(2, 3).flatten(3).flatten(1, 2)


def _normed(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.layer_norm(x, x.shape[-1:])
