"""AdamW: Adam with decoupled weight decay (arXiv 1711.05101)."""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from emergence_train.optim.base import OptimizerConfig, eager

if TYPE_CHECKING:
    import torch

Beta = Annotated[float, Field(ge=0, lt=1)]


class AdamW(OptimizerConfig):
    """AdamW. Weight decay applies to matrices, not to norms."""

    kind: Literal["adamw"] = Field(default="adamw", description="which optimizer")
    betas: tuple[Beta, Beta] = Field(default=(0.9, 0.95), description="decay rates of the first and second moment")
    eps: float = Field(default=1e-8, gt=0, description="added to the root of the second moment")
    weight_decay: float = Field(default=0.1, ge=0, description="decoupled; on matrices alone")

    def build(self, model: "torch.nn.Module", lr: float) -> "torch.optim.Optimizer":
        import torch

        from emergence_train.optim.groups import parameter_groups

        groups = parameter_groups(model, self.weight_decay)
        return eager(torch.optim.AdamW)(groups, lr=lr, betas=self.betas, eps=self.eps, fused=True)
