"""ZeRO-1 in bf16 with fewer passes over the gradients, and a step without synchronisation with the GPU.

DeepSpeed's BF16_Optimizer keeps a float32 gradient of every parameter (its main gradient) and moves 26 bytes per
parameter and micro-batch to add a bf16 gradient to it. Here

- a linear layer's backward pass multiplies straight into the main gradient (dW += dy^T x with float32 accumulation, as
  Megatron-LM's fused weight gradients do): 8 bytes per parameter, no rounding to bf16, and no bf16 gradient exists;
- other gradients (norms, embedding, head) are added when they are ready (`bf16.immediate_grad_update`);
- ranks are sent the sum of the part of the gradient whose weights they update, not of all of it, while the backward pass goes
  on (training/early_reduction.py);
- clipping, finiteness and the update stay on the device: the fused AdamW divides by the clip factor and skips the update where
  the norm is not finite. DeepSpeed's own step synchronises with the host three times.

Bytes and launches are counted in tests/training/test_main_gradients.py.
"""

import math
import types
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from emergence_kernels.backends import accumulating
from emergence_train.training.early_reduction import Reduction
from emergence_train.training.fp8 import Fp8Linear


class AccumulatingLinear(nn.Linear):
    """A bias-free linear layer whose weight gradient is added to `weight.main_grad`, float32 of the weight's shape."""

    @property
    def main_grad(self) -> Tensor | None:
        return getattr(self.weight, "main_grad", None)

    def forward(self, x: Tensor) -> Tensor:
        main_grad = self.main_grad
        if main_grad is None or not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return F.linear(x, self.weight)
        return accumulating.linear(x, self.weight, main_grad)


def install(engine: Any, blocks: Sequence[nn.Module] = (), new_event: Callable[[], Any] | None = None) -> bool:
    """Install main gradients and the step below in an engine with a BF16_Optimizer; False for other optimizers.

    `blocks`, `new_event`: for Reduction.
    """
    optimizer = engine.optimizer
    if not (hasattr(optimizer, "fp32_groups_gradients") and isinstance(optimizer.optimizer, torch.optim.AdamW)):
        return False
    main_grads = {
        parameter: gradient.view(parameter.shape)
        for parameters, gradients in zip(optimizer.bf16_groups, optimizer.fp32_groups_gradients)
        for parameter, gradient in zip(parameters, gradients)
    }
    for module in engine.module.modules():
        if type(module) in (nn.Linear, Fp8Linear) and module.bias is None and module.weight in main_grads:
            module.weight.main_grad = main_grads[module.weight]
            if type(module) is nn.Linear:  # an Fp8Linear adds to it by itself
                module.__class__ = AccumulatingLinear
    engine.enable_backward_allreduce = False  # the step does
    optimizer.reduction = Reduction(optimizer.bf16_groups, blocks, new_event)
    optimizer.step = types.MethodType(step, optimizer)
    return True


def step_applied(engine: Any) -> bool | Tensor:
    """Whether the engine's last step updated the weights: with the step below a tensor on the device."""
    applied = getattr(engine.optimizer, "applied", None)
    return engine.was_step_applied() if applied is None else applied


@torch.no_grad()
def step(self: Any, closure: None = None) -> None:
    """BF16_Optimizer.step without synchronisation: `_global_grad_norm` is a tensor, which the caller may read later, and
    weights and moments are unchanged where it is not finite."""
    group, own = self.dp_process_group, self.fp32_groups_gradient_flat_partition
    world = dist.get_world_size(group)
    if world > 1:
        self.reduction(self.fp32_groups_gradients_flat, own, group)
    norms = torch.stack([torch.linalg.vector_norm(part) for part in own])
    norm = torch.linalg.vector_norm(norms, dtype=torch.float64)  # whose square may be beyond float32
    if world > 1:
        dist.all_reduce(norm.square_(), group=group)
        norm.sqrt_()
    norm = norm.float()
    inner, limit = self.optimizer, self.clip_grad or math.inf
    # the fused kernel divides by it; 1e-6 as DeepSpeed has it
    inner.grad_scale = ((norm + 1e-6) / limit).clamp_min(1.0)
    self.applied = norm.isfinite()
    inner.found_inf = (~self.applied).float()  # and skips the update where this is 1
    for weights, gradients in zip(self.fp32_groups_flat_partition, own):
        weights.grad = gradients
    inner.step()
    self.overflow, self._global_grad_norm = False, norm
    self._lazy_init_hp_params_optimizer_state()
    self.update_lp_params()  # the engine zeroes the gradients after this
