"""Clipping of gradients at stage 0, and what skips a step."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from emergence_train.training.step import Stepper


class Stateless(torch.optim.Optimizer):
    """One of one's own, which knows nothing of `found_inf`."""

    def __init__(self, parameters):
        super().__init__(parameters, {"lr": 1.0})

    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.data -= parameter.grad


OPTIMIZERS = {
    "fused": lambda weights: torch.optim.SGD(weights, lr=1.0, fused=True),
    "unfused": lambda weights: torch.optim.SGD(weights, lr=1.0),
    "without the option": lambda weights: torch.optim.Rprop(weights, lr=1.0, step_sizes=(1.0, 1.0)),
    "own": Stateless,
}


def stepper_of(weights, optimizer, device):
    mesh = SimpleNamespace(device=torch.device(device))
    return SimpleNamespace(parameters=weights, mesh=mesh, engine=SimpleNamespace(optimizer=optimizer))


@pytest.mark.parametrize("device", ["cpu", "cuda"])  # which is asked for its name alone
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("most", [1.0, math.inf])
@pytest.mark.parametrize("gradient", [0.1, 3.0, math.inf, 3e38, math.nan])
def test_a_norm_that_is_not_finite_skips_the_step(most, gradient, optimizer, device):
    """Clipping or not (a bound of inf). 3e38 is finite, the norm of five of them is not. Small gradients are left as they are."""
    weights = [nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))]
    for weight in weights:
        weight.grad = torch.full_like(weight, gradient)
    stepper = stepper_of(weights, OPTIMIZERS[optimizer](weights), device)
    norm, finite = Stepper._clip(stepper, most)
    assert bool(finite) == (gradient < 1e30)
    clipped = 0.0
    if finite:
        assert norm.item() == pytest.approx(5**0.5 * gradient)
        clipped = gradient * min(1.0, most / norm.item())
        assert all(torch.allclose(w.grad, torch.full_like(w, clipped), rtol=1e-5) for w in weights)
    stepper.engine.optimizer.step()
    moved = float(clipped > 0) if optimizer == "without the option" else clipped  # Rprop moves by the sign
    assert all(torch.allclose(w.detach(), torch.full_like(w, 1 - moved), rtol=1e-5) for w in weights)
