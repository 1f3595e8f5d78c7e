"""ZeRO-1 in bf16 with fewer passes over the gradients, and a step without synchronisation with the GPU.

DeepSpeed's BF16_Optimizer keeps a float32 gradient of every parameter (its main gradient) and moves 26 bytes per
parameter and micro-batch to add a bf16 gradient to it. Here

- a linear layer's backward pass multiplies straight into the main gradient (dW += dy^T x with float32 accumulation, as
  Megatron-LM's fused weight gradients do): 8 bytes per parameter, no rounding to bf16, and no bf16 gradient exists;
- other gradients (norms, embedding, head) are added when they are ready (`bf16.immediate_grad_update`), in one pass of 10 bytes
  per parameter, where DeepSpeed makes a float32 copy first (18);
- ranks are sent the sum of the part of the gradient whose weights they update, not of all of it, while the backward pass goes
  on (training/early_reduction.py);
- clipping, finiteness and the update stay on the device: one pass divides by the clip factor, updates weights and moments
  where the norm is finite, writes the bf16 weights and zeroes the gradient (emergence_kernels.adamw_step), which are three with
  torch's fused AdamW. DeepSpeed's own step synchronises with the host three times.

Bytes and launches are counted in tests/training/test_main_gradients.py.
"""

import math
import os
import types
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from emergence_kernels import adamw_step
from emergence_kernels.backends import accumulating
from emergence_kernels.backends.dispatch import ENVIRONMENT
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


def install(engine: Any, blocks: Sequence[nn.Module] = (), new_event: Callable[[], Any] | None = None) -> None:
    """Install main gradients and the step below in an engine with a BF16_Optimizer of AdamW.

    `blocks`, `new_event`: for Reduction.
    """
    optimizer = engine.optimizer
    assert isinstance(optimizer.optimizer, torch.optim.AdamW), "Training.main_gradients asks for it"
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
    optimizer.reduction = Reduction(optimizer.bf16_groups, engine.module, blocks, new_event)
    optimizer.accumulate_hp_grads_and_remove_lp = types.MethodType(add_gradient, optimizer)
    optimizer.step = types.MethodType(step, optimizer)
    optimizer.zeroed = False  # by the update, all gradients
    optimizer.clear_hp_grads = types.MethodType(clear_gradients, optimizer)


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
        self.reduction(self.fp32_groups_gradients_flat, own, group, world)
    norms = torch.stack([torch.linalg.vector_norm(part) for part in own])
    norm = torch.linalg.vector_norm(norms, dtype=torch.float64)  # whose square may be beyond float32
    if world > 1:
        dist.all_reduce(norm.square_(), group=group)
        norm.sqrt_()
    norm = norm.float()
    scale = ((norm + 1e-6) / (self.clip_grad or math.inf)).clamp_min(1.0)  # 1e-6 as DeepSpeed has it
    self.applied = norm.isfinite()
    alone = world == 1
    backend = "torch" if os.environ.get(ENVIRONMENT) == "torch" else "auto"  # the others are the model's
    flats = zip(self.optimizer.param_groups, self.fp32_groups_flat_partition, own, self.bf16_groups_flat)
    for settings, weights, gradient, copy in flats:
        state = self.optimizer.state[weights]
        if not state:
            state["step"] = weights.new_zeros(())
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(weights), torch.zeros_like(weights)
        adamw_step(
            *(weights, gradient, state["exp_avg"], state["exp_avg_sq"], state["step"]),
            **{name: settings[name] for name in ("lr", "betas", "eps", "weight_decay")},
            grad_scale=scale,
            applied=self.applied,
            copy=copy if alone else None,
            backend=backend,
        )
    self.overflow, self._global_grad_norm, self.zeroed = False, norm, alone
    self._lazy_init_hp_params_optimizer_state()
    if not alone:
        self.update_lp_params()  # of all ranks


def add_gradient(self: Any, parameter: Tensor, group: int, index: int) -> None:
    """BF16_Optimizer.accumulate_hp_grads_and_remove_lp in one pass."""
    if parameter.grad is not None:  # one whose products add to the main gradient has none
        self.fp32_groups_gradients[group][index].view(parameter.shape).add_(parameter.grad)
        parameter.grad = None


def clear_gradients(self: Any) -> None:
    """BF16_Optimizer.clear_hp_grads, without the pass over what the update has zeroed."""
    if not self.zeroed:
        for gradients in self.fp32_groups_gradients_flat:
            gradients.zero_()
    self.zeroed = False
