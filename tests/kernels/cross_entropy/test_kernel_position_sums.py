"""Sums by position that position_loss returns."""

import torch
from loss_cases import CASES

import emergence_kernels as ek


def test_position_sums_add_up(backend, device):
    inputs = CASES["half ignored"]().to(torch.float32, device)
    whole = ek.position_loss(inputs.hidden, inputs.weight, inputs.targets, backend=backend).positions
    halves = [
        ek.position_loss(inputs.hidden[i : i + 1], inputs.weight, inputs.targets[i : i + 1], backend=backend).positions
        for i in range(2)
    ]
    for total, a, b in zip(whole, *halves):
        assert torch.allclose(total.double(), (a + b).double(), rtol=1e-6, atol=1e-6)


def test_entropy_is_never_negative(backend, device):
    """Of rows up to certain, where it is the difference of two near equals unless each is small."""
    hidden, targets = torch.randn(1, 40, 8) * torch.linspace(1, 40, 40)[:, None], torch.zeros(1, 40, dtype=torch.int64)
    inputs = (t.to(device) for t in (hidden, torch.eye(8), targets))
    entropy = ek.position_loss(*inputs, backend=backend).positions.entropy_sum
    log_p = hidden[0].double().log_softmax(-1)
    assert (entropy >= 0).all()
    assert torch.allclose(entropy.cpu(), -(log_p.exp() * log_p).sum(-1), rtol=1e-5, atol=2e-5)
