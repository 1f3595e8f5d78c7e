"""Base class of an optimizer's section of the configuration, which builds the optimizer."""

import inspect
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from emergence_train.section import Section

if TYPE_CHECKING:  # a configuration is read without torch
    import torch


class OptimizerConfig(Section):
    """Base class. A kind is a subclass in a file of its own and a line in registry.OPTIMIZERS.

    The optimizer must leave parameters without a gradient as they are, which skips a step, and keep its state in tensors of the
    parameter's shape and type beside a count `step`: these are saved, and loaded at any world size and ZeRO stage. Other state,
    and values of param_groups that training changes (but lr), are refused at the start or at the first save. On a GPU at stage 0
    one of torch that is built with fused=True does not make the host wait for the gradient's norm.
    """

    moments: ClassVar[int] = 2  # float32 numbers that it keeps of a parameter, at most: models.memory counts them
    kind: str
    clip: float = Field(default=1.0, ge=0, description="bound of the global gradient norm; 0: no clipping")

    def build(self, model: "torch.nn.Module", lr: float) -> "torch.optim.Optimizer":
        """Build the optimizer of the model's parameters, which ZeRO-3 may have emptied (see groups.py); lr is set each step."""
        raise NotImplementedError


def eager(optimizer: "type[torch.optim.Optimizer]") -> Any:
    """The class `optimizer` with a `step` that is never compiled.

    torch's own imports the compiler, a quarter of the start of a run, to tell it that gradients are off.
    """
    import torch

    plain = inspect.unwrap(optimizer.step)
    return type(optimizer.__name__, (optimizer,), {"step": torch.no_grad()(plain)})
