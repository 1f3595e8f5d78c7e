"""Clipping of gradients at stage 0, and what skips a step."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from emergence_train.training.step import Stepper


@pytest.mark.parametrize("most", [1.0, math.inf])
@pytest.mark.parametrize("gradient", [0.1, 3.0, math.inf, 3e38, math.nan])
def test_a_norm_that_is_not_finite_skips_the_step(most, gradient):
    """Clipping or not (a bound of inf). 3e38 is finite, the norm of five of them is not. Small gradients are left as they are."""
    weights = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(3))]
    for weight in weights:
        weight.grad = torch.full_like(weight, gradient)
    optimizer, mesh = SimpleNamespace(found_inf=None), SimpleNamespace(device=torch.device("cpu"))
    stepper = SimpleNamespace(parameters=weights, mesh=mesh, engine=SimpleNamespace(optimizer=optimizer))
    norm, finite = Stepper._clip(stepper, most)
    assert bool(finite) == (gradient < 1e30) and bool(optimizer.found_inf) != bool(finite)
    if finite:
        assert norm.item() == pytest.approx(5**0.5 * gradient)
        clipped = gradient * min(1.0, most / norm.item())
        assert all(torch.allclose(w.grad, torch.full_like(w, clipped), rtol=1e-5) for w in weights)
