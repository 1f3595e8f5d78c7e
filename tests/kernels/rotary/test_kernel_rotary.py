"""rotary against the rotation written with complex numbers."""

import pytest
import torch
from kernel_checks import DTYPES, assert_as_good, leaves
from rotary_cases import angles, plain

import emergence_kernels as ek


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape, R, batch", [((2, 5, 3, 16), 8, None), ((2, 3, 1, 18), 4, 2), ((1, 2, 17, 6), 3, None)])
def test_against_float64(shape, R, batch, dtype, backend, device):
    x = torch.randn(shape[0], shape[2], shape[1], shape[3]).transpose(1, 2).to(device, dtype)
    cos, sin = angles(shape[1], R, device, batch)
    upstream = torch.randn(shape).to(device, dtype)
    (tracked,) = leaves(x)
    y = ek.rotary(tracked, cos, sin, backend=backend)
    got = [y.detach(), *torch.autograd.grad(y, tracked, upstream)]
    results = []
    for kept in (torch.float64, dtype):
        (copy,) = leaves(x, dtype=kept)
        other = plain(copy, cos, sin)
        results.append([other.detach(), *torch.autograd.grad(other, copy, upstream.to(kept))])
    for name, *three in zip(("y", "dx"), got, *results):
        assert_as_good(name, *three)


def test_scores_depend_on_distance(backend, device):
    """What rotary is for: q . k is a function of the distance between their positions."""
    T, R = 7, 8
    frequency = 1.0 / 100 ** (torch.arange(R, device=device) / R)
    angle = torch.arange(T, device=device)[:, None] * frequency
    q, k = (torch.randn(1, 1, 1, 16, device=device).expand(1, T, 1, 16) for _ in range(2))
    q, k = (ek.rotary(t, angle.cos(), angle.sin(), backend=backend) for t in (q, k))
    scores = (q[0, :, 0] @ k[0, :, 0].t()).cpu()
    for distance in range(1, T):
        line = torch.diagonal(scores, -distance)
        assert torch.allclose(line, line[:1].expand_as(line), atol=1e-4)


def test_opcheck_and_whole_graph(fused, device):
    (x,) = leaves(torch.randn(1, 3, 2, 8, device=device))
    cos, sin = angles(3, 4, device)
    torch.library.opcheck(torch.ops.emergence_kernels.rotary, (x, cos, sin, 1.0, fused))
    step = torch.compile(lambda x: ek.rotary(x * 1.0, cos, sin, backend=fused), fullgraph=True, backend="aot_eager")
    upstream = torch.randn_like(x)
    got = torch.autograd.grad(step(x), x, upstream)[0]
    assert torch.allclose(got, ek.rotary(upstream, cos, -sin, backend="torch"), atol=1e-6)


def test_wrong_arguments(device):
    x = torch.randn(1, 3, 2, 8, device=device)
    cos, sin = angles(3, 5, device)
    with pytest.raises(ValueError, match="2R at most 8"):
        ek.rotary(x, cos, sin)
    with pytest.raises(ValueError, match="sin has"):
        ek.rotary(x, cos[:, :4], sin)
    with pytest.raises(ValueError, match="constants"):
        ek.rotary(x, cos[:, :4].requires_grad_(), sin[:, :4])
