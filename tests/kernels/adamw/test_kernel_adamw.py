"""adamw_step against float64, against torch's own AdamW, and where a step is left out."""

from fractions import Fraction

import pytest
import torch

import emergence_kernels as ek
from emergence_kernels.adamw.reference import corrections_of

GIVEN = dict(lr=3e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)


@pytest.fixture(params=["torch", "triton"])
def which(request) -> str:
    return request.getfixturevalue("triton_only") if request.param == "triton" else request.param


def state(N: int, device, dtype=torch.float32) -> list[torch.Tensor]:
    torch.manual_seed(N)
    first, second = torch.zeros(N), torch.zeros(N)
    return [t.to(device, dtype) for t in (torch.randn(N), torch.empty(N), first, second, torch.zeros(()))]


def gradients(N: int, steps: int) -> list[torch.Tensor]:
    """Of sizes from 1e-12 to 1e4, some of them 0."""
    torch.manual_seed(7)
    size = 10.0 ** torch.linspace(-12, 4, N)
    size[:: max(N // 5, 1)] = 0.0
    return [torch.randn(N) * size for _ in range(steps)]


@pytest.mark.parametrize("N", [1, 7, 2048, 5003])
@pytest.mark.parametrize(
    "clip, betas", [(1.0, (0.9, 0.95)), (3.7, (0.9, 0.999)), (1.0, (0.0, 0.95)), (1.0, (0.5, 0.0))]
)
def test_updates_are_float64s(which, N, clip, betas, device):
    """Ten steps beside torch.optim.AdamW in float64: within a few roundings of what a step moves."""
    weights, gradient, first, second, step = state(N, device)
    copy = torch.empty(N, dtype=torch.bfloat16, device=device)
    exact = torch.nn.Parameter(weights.double().clone())
    settings = GIVEN | {"betas": betas}
    peer = torch.optim.AdamW([exact], **settings)
    scale, applied = torch.tensor(clip, device=device), torch.tensor(True, device=device)
    for number, g in enumerate(gradients(N, 10), 1):
        gradient.copy_(g)
        exact.grad = g.to(device).double() / clip
        peer.step()
        given = (weights, gradient, first, second, step)
        ek.adamw_step(*given, **settings, grad_scale=scale, applied=applied, copy=copy, backend=which)
        assert not gradient.any() and step == number
    assert (weights.double() - exact).abs().max() < 10 * 2e-7 * (1 + exact.abs().max())
    largest = torch.stack(gradients(N, 10)).abs().amax(0).to(device).double() / clip
    for ours, name, power in ((first, "exp_avg", 1), (second, "exp_avg_sq", 2)):
        apart = (ours.double() - peer.state[exact][name]).abs()
        assert (apart <= 1e-6 * largest**power + 1e-38).all(), name  # means may cancel
    assert torch.equal(copy, weights.bfloat16())


def test_decay_alone_is_not_rounded_away(which, device):
    """Of lr * weight_decay = 1e-6 a factor 1 - 1e-6 in float32 is 5% off; a product that is subtracted is not."""
    weights, gradient, first, second, step = state(4096, device)
    before = weights.double().clone()
    given = GIVEN | {"lr": 1e-5}
    for _ in range(50):
        gradient.zero_()
        ek.adamw_step(
            *(weights, gradient, first, second, step),
            **given,
            grad_scale=torch.ones((), device=device),
            applied=torch.tensor(True, device=device),
            backend=which,
        )
    lost = 1 - (weights.double() / before)
    assert lost.mean().item() == pytest.approx(50e-6, rel=0.01)


@pytest.mark.parametrize("step", [1, 2, 1000])
def test_corrections_are_those_of_exact_powers(step):
    """In float32 1 - 0.999 would be 1.3e-5 off."""
    betas = (Fraction(9, 10), Fraction(999, 1000))
    corrections = corrections_of(torch.tensor(float(step)), tuple(map(float, betas)))
    assert corrections.dtype == torch.float32
    assert corrections.tolist() == pytest.approx([float(1 - beta**step) for beta in betas], rel=1e-7)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_step_that_is_left_out_changes_nothing(which, bad, device):
    weights, gradient, first, second, step = state(3000, device)
    copy = torch.full((3000,), 5.0, dtype=torch.bfloat16, device=device)
    before = [t.clone() for t in (weights, first, second, step)]
    gradient.fill_(bad)
    ek.adamw_step(
        *(weights, gradient, first, second, step),
        **GIVEN,
        grad_scale=torch.tensor(bad, device=device),
        applied=torch.tensor(False, device=device),
        copy=copy,
        backend=which,
    )
    assert all(torch.equal(a, b) for a, b in zip(before, (weights, first, second, step)))
    assert not gradient.any(), "the next step begins at zero"


def test_what_does_not_fit_is_refused(device):
    weights, gradient, first, second, step = state(8, device)
    rest = dict(**GIVEN, grad_scale=torch.ones((), device=device), applied=torch.tensor(True, device=device))
    with pytest.raises(ValueError, match="first must be contiguous of shape"):
        ek.adamw_step(weights, gradient, first[:4], second, step, **rest)
    with pytest.raises(ValueError, match="gradient must have the weights' dtype"):
        ek.adamw_step(weights, gradient.bfloat16(), first, second, step, **rest)
    with pytest.raises(ValueError, match=r"grad_scale must be a scalar on \S+, got shape \(3,\)"):
        ek.adamw_step(weights, gradient, first, second, step, **rest | {"grad_scale": torch.ones(3, device=device)})
    with pytest.raises(ValueError, match="step must have the weights' dtype torch.float32, got torch.int64"):
        ek.adamw_step(weights, gradient, first, second, step.long(), **rest)
    assert step == 0, "nothing is changed"
    with pytest.raises(ek.BackendError, match="float32 only"):
        wide = [t.double() for t in (weights, gradient, first, second, step)]
        ek.adamw_step(
            *wide, **rest | {"grad_scale": torch.ones((), dtype=torch.float64, device=device)}, backend="triton"
        )
