"""Muon: momentum whose matrices are orthogonalised (Jordan et al. 2024), AdamW for all other parameters.

Shapes: M rows, N columns of a weight matrix.
"""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from emergence_train.optim.base import OptimizerConfig

if TYPE_CHECKING:
    import torch

Beta = Annotated[float, Field(ge=0, lt=1)]


class Muon(OptimizerConfig):
    """Muon for the weights of linear layers, AdamW for embedding, output head and vectors.

    Learning-rate rule (arXiv 2502.16982): an orthogonalised update is scaled by 0.2 sqrt(max(M, N)), which gives its elements
    the root mean square of AdamW's. So one `schedule.lr`, AdamW's, is for both; there is no rule of muP. Clipping bounds the
    gradients, before the momentum.
    """

    kind: Literal["muon"] = Field(default="muon", description="which optimizer")
    momentum: Beta = Field(default=0.95, description="decay rate of the momentum of matrices, Nesterov's")
    betas: tuple[Beta, Beta] = Field(default=(0.9, 0.95), description="of AdamW: decay rates of its moments")
    eps: float = Field(default=1e-8, gt=0, description="of AdamW: added to the root of the second moment")
    weight_decay: float = Field(default=0.1, ge=0, description="decoupled; on matrices alone")

    def build(self, model: "torch.nn.Module", lr: float) -> "torch.optim.Optimizer":
        from emergence_train.optim.muon_step import MuonAdamW, muon_groups

        return MuonAdamW(muon_groups(model, self.weight_decay), lr, self.momentum, self.betas, self.eps)
