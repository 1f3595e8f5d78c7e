"""feed_forward against float64, with and without main gradients. Hopper's kernels have tests of their own."""

import pytest
import torch
import torch.nn.functional as F
from kernel_checks import DTYPES, assert_as_good, leaves

import emergence_kernels as ek

K, FEATURES = 24, 40


def inputs(dtype, device, lead=(2, 9), features=FEATURES):
    x, w, down = torch.randn(*lead, K), torch.randn(2 * features, K) / K**0.5, torch.randn(K, features) / features**0.5
    return leaves(*(t.to(device, dtype) for t in (x, w, down)))


def layer(x, w, down):
    gate, up = F.linear(x, w).chunk(2, -1)
    return F.linear(gate * torch.sigmoid(gate) * up, down)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("features", [FEATURES, 128])  # rows of 1 KiB, which on a CPU are apart (backends/products.py)
@pytest.mark.parametrize("lead", [(2, 9), (7,), (0, 3), ()])
def test_against_float64(lead, features, dtype, backend, device):
    given = inputs(dtype, device, lead, features)
    y = ek.feed_forward(*given, backend=backend)
    upstream = torch.randn_like(y)
    got = [y.detach(), *torch.autograd.grad(y, given, upstream)]
    wanted = layer(*(wide := leaves(*given, dtype=torch.float64)))
    exact = [wanted.detach(), *torch.autograd.grad(wanted, wide, upstream.double())]
    other = layer(*(plain := leaves(*given)))
    for name, ours, *two in zip(
        ("y", "dx", "dw", "d_down"), got, exact, [other.detach(), *torch.autograd.grad(other, plain, upstream)]
    ):
        assert ours.dtype == dtype
        assert_as_good(name, ours, *two)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_main_gradients_are_added_to(dtype, backend, device):
    """Over two calls, in float32, from what was there; an upstream gradient of another layout."""
    given = inputs(dtype, device)
    grads = tuple(torch.full(t.shape, 0.5, device=device) for t in given[1:])
    wide, exact = (
        leaves(*given, dtype=torch.float64),
        [torch.full(t.shape, 0.5, dtype=torch.float64) for t in given[1:]],
    )
    for _ in range(2):
        upstream = torch.randn(9, 2, K, device=device).to(dtype).transpose(0, 1)
        y = ek.feed_forward(*given, main_grads=grads, backend=backend)
        y.backward(upstream)
        for sums, grad in zip(exact, torch.autograd.grad(layer(*wide), wide[1:], upstream.double())):
            sums += grad.cpu()
    assert given[1].grad is None and given[2].grad is None and given[0].grad is not None
    for name, ours, sums in zip(("gate_up", "down"), grads, exact):
        error = (ours.double().cpu() - sums).norm() / sums.norm()
        assert error < (1e-6 if dtype == torch.float32 else 4e-3), (
            name
        )  # of bf16 the hidden values are rounded, not the sums


def test_only_what_is_asked_for(backend, device):
    x, w, down = inputs(torch.float32, device)
    w.requires_grad_(False)
    y = ek.feed_forward(x.detach(), w, down, backend=backend)
    (d_down,) = torch.autograd.grad(y.sum(), down)
    gate, up = F.linear(x, w).chunk(2, -1)
    assert torch.allclose(d_down, torch.ones_like(y).flatten(0, 1).T @ (F.silu(gate) * up).flatten(0, 1), atol=1e-4)


def test_is_a_graph_of_its_parts(device):
    given = inputs(torch.float32, device)
    compiled = torch.compile(ek.feed_forward, backend="eager", fullgraph=True)
    assert torch.allclose(compiled(*given), layer(*given), atol=1e-5)


def test_autocast(device):
    given = inputs(torch.float32, device)
    with torch.autocast(device.type, torch.bfloat16):
        y = ek.feed_forward(*given)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert all(t.grad.dtype == torch.float32 for t in given)


@pytest.mark.parametrize(
    "shapes, says",
    [
        (((5, K), (2 * FEATURES, K), (K, FEATURES + 1)), "expected .2 hidden"),
        (((5, K + 1), (8, K), (K, 4)), "to match gate_up_weight"),
    ],
)
def test_wrong_shapes(shapes, says, device):
    with pytest.raises(ValueError, match=says):
        ek.feed_forward(*(torch.randn(shape, device=device) for shape in shapes))


def test_main_gradients_that_do_not_fit(device):
    given = inputs(torch.float32, device)
    right = tuple(torch.zeros(t.shape, device=device) for t in given[1:])
    for grads in ((right[0].double(), right[1]), (right[0], right[1].t())):
        with pytest.raises(ValueError, match="must be float32, of its weight's shape"):
            ek.feed_forward(*given, main_grads=grads)


@pytest.mark.parametrize("features", [FEATURES, 128])
def test_retained_graph_gives_the_same_gradients(features, backend, device):
    """Gradients may be written over what the last backward pass reads, and not before."""
    given = inputs(torch.float32, device, features=features)
    y = ek.feed_forward(*given, backend=backend)
    first = torch.autograd.grad(y.square().sum(), given, retain_graph=True)
    second = torch.autograd.grad(y.square().sum(), given, retain_graph=True)
    last = torch.autograd.grad(y.square().sum(), given)
    assert all(map(torch.equal, first, second)) and all(map(torch.equal, second, last))
