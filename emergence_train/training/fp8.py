"""Linear layers whose products have fp8 operands in training (`training.linears: fp8`).

Forward and input gradient multiply in fp8; the weight gradient is that of a bf16 layer, added to the main gradient where it has
one. Without gradients (validation, tasks, export) a layer multiplies in bf16: what is measured of a run is what its checkpoint
holds.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emergence_kernels import Fp8Weight, fp8_linear, quantize_weight
from emergence_kernels.fp8_linear.op import fp8_fits, fp8_unsupported_reason
from emergence_train.errors import InputError


class Fp8Linear(nn.Linear):
    """A bias-free linear layer by fp8_linear; `held`: its weight in fp8, in a block of HeldWeights."""

    held: Fp8Weight | None = None

    def forward(self, x: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return F.linear(x, self.weight)
        main_grad = None if torch.compiler.is_compiling() else getattr(self.weight, "main_grad", None)
        return fp8_linear(x, self.weight, self.held, main_grad=main_grad)


def install(model: nn.Module, *, is_rank0: bool = True) -> None:
    """Make every bias-free linear layer whose sizes are multiples of 16 an Fp8Linear. The head is none: its loss owns it.

    Raises InputError, which rank 0 reports, where no layer has such sizes.
    """
    for module in model.modules():
        if type(module) is nn.Linear and module.bias is None and fp8_fits(module.in_features, module.out_features):
            module.__class__ = Fp8Linear
    if not layers(model):
        error = InputError(
            "training.linears fp8: no linear layer has sizes that are multiples of 16; choose model.width and model.ffn that "
            "are, or training.linears bf16"
        )
        error.already_reported = not is_rank0
        raise error


def layers(model: nn.Module) -> list[Fp8Linear]:
    return [module for module in model.modules() if isinstance(module, Fp8Linear)]


def describe(model: nn.Module, device: torch.device) -> str:
    """A line for the log: how many layers, and whether their products are emulated."""
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    line = f"fp8 in {len(layers(model))} of {len(linears)} linear layers"
    if reason := fp8_unsupported_reason(device):
        line += f", emulated: {reason}; losses are those of fp8, and no time is saved"
    return line


class HeldWeights:
    """A block in which layers hold their weights in fp8, rounded once at its start: the micro-batches of a step.

    Outside of it a layer rounds its weight in each pass, so that none ever multiplies by an old one. The tensors stay where they
    are from one step to the next, as CUDA graphs need.
    """

    def __init__(self, held: list[Fp8Linear]) -> None:
        self.layers = held
        self.tensors: list[Fp8Weight | None] = [None] * len(held)

    def __enter__(self) -> None:
        for number, layer in enumerate(self.layers):
            layer.held = self.tensors[number] = quantize_weight(layer.weight, self.tensors[number])

    def __exit__(self, *_: Any) -> None:
        for layer in self.layers:
            layer.held = None
