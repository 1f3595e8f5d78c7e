"""swiglu against float64 and autograd."""

import pytest
import torch
from kernel_checks import DTYPES, assert_as_good, leaves, placed

import emergence_kernels as ek
from emergence_kernels.swiglu.op import activation_gradient


def plain(x):
    gate, up = x.chunk(2, -1)
    return gate / (1 + torch.exp(-gate)) * up


def make(layout):
    if layout == "prime":
        return torch.randn(2, 7, 2 * 131)
    if layout == "packs":
        return torch.randn(3, 5, 2 * 48)
    if layout == "wide":
        return torch.randn(3, 2 * 1032)
    if layout == "flat":
        return torch.randn(64)
    if layout == "strided rows":
        return torch.randn(6, 2, 48)[:, 0]
    if layout == "odd stride":
        return torch.randn(6, 2, 65)[:, 0, :64]
    if layout == "strided features":
        return torch.randn(40, 5).t()
    if layout == "expanded":
        return torch.randn(1, 40).expand(5, 40)
    if layout == "no rows":
        return torch.randn(0, 32)
    if layout == "huge and tiny":
        return torch.randn(4, 32) * torch.tensor([40.0, 5.0, 1e-4, 0.0])[:, None]
    raise AssertionError(layout)


LAYOUTS = [
    "prime",
    "packs",
    "wide",
    "flat",
    "strided rows",
    "odd stride",
    "strided features",
    "expanded",
    "no rows",
    "huge and tiny",
]


def exact(x, upstream):
    """y and dx in float64, by formulas that share nothing with the kernels' but the definition."""
    gate, up = x.double().chunk(2, -1)
    s, grad = torch.special.expit(gate), upstream.double()
    return gate * s * up, torch.cat([grad * up * (s + gate * s * torch.special.expit(-gate)), grad * gate * s], -1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_against_float64(layout, dtype, backend, device):
    x = placed(make(layout), dtype, device)
    upstream = torch.randn(*x.shape[:-1], x.shape[-1] // 2).to(device, dtype)
    tracked = x.detach().requires_grad_()
    y = ek.swiglu(tracked, backend=backend)
    assert y.dtype == dtype and y.shape == upstream.shape
    got = [y.detach(), *torch.autograd.grad(y, tracked, upstream)]
    wide = x.detach().float().requires_grad_()
    gate, up = wide.chunk(2, -1)
    other = torch.nn.functional.silu(gate) * up
    rounded = [t.to(dtype) for t in (other.detach(), *torch.autograd.grad(other, wide, upstream.float()))]
    for name, *three in zip(("y", "dx"), got, exact(x, upstream), rounded):
        assert_as_good(name, *three)


def test_against_autograd(backend, device):
    """The derivative is that of the definition, not of a formula written twice."""
    dtype = torch.float32
    (x,) = leaves(torch.randn(3, 4, 24, device=device), dtype=dtype)
    upstream = torch.randn(3, 4, 12, device=device)
    got = torch.autograd.grad(ek.swiglu(x, backend=backend), x, upstream)[0]
    (copy,) = leaves(x, dtype=torch.float64)
    wanted = torch.autograd.grad(plain(copy), copy, upstream.double())[0]
    assert torch.allclose(got.double(), wanted, rtol=1e-5, atol=1e-6)


def test_extreme_gates(backend, device):
    """Gates from -1e38 to 1e38: no NaN, and each element's derivative to float32's digits, far into the negative side."""
    gate = torch.tensor(
        [-1e38, -1e4, -110.0, -60.0, -20.0, -5.0, -1.2784645, 0.0, 5.0, 20.0, 110.0, 1e4, 1e38], device=device
    )
    x = torch.cat([gate, torch.full_like(gate, 0.5)])[None].requires_grad_()
    upstream = torch.full((1, len(gate)), 2.0, device=device)
    y = ek.swiglu(x, backend=backend)
    (dx,) = torch.autograd.grad(y, x, upstream)
    y_exact, dx_exact = exact(x.detach(), upstream)
    for got, wanted in ((y, y_exact), (dx, dx_exact)):
        assert torch.isfinite(got).all()
        assert torch.allclose(got.double(), wanted, rtol=2e-5, atol=3e-7 * wanted.abs().clamp_max(1).max().item())


def test_float64_is_exact(device):
    x = torch.randn(3, 10, dtype=torch.float64, device=device, requires_grad=True)
    assert torch.autograd.gradcheck(ek.swiglu, x)


@pytest.mark.parametrize("upstream", ["expanded", "strided"])
def test_any_upstream_gradient(upstream, backend, device):
    (x,) = leaves(torch.randn(5, 32, device=device))
    grad = (
        torch.tensor(0.5, device=device).expand(5, 16)
        if upstream == "expanded"
        else torch.randn(16, 5, device=device).t()
    )
    kept = grad.clone()
    (dx,) = torch.autograd.grad(ek.swiglu(x, backend=backend), x, grad)
    assert torch.allclose(dx.double(), exact(x.detach(), grad)[1], atol=1e-6) and torch.equal(grad, kept)


def test_gradient_in_place_of_rows_apart(cpu_library):
    """As a feed-forward layer asks for on a CPU; what lies beside the rows stays."""
    if cpu_library:
        pytest.skip(cpu_library)
    wide, upstream = torch.randn(5, 24), torch.randn(5, 8)
    kept, x = wide.clone(), wide[:, :16]
    assert activation_gradient(upstream, x, "cpu", last=True) is x
    assert torch.allclose(x.double(), exact(kept[:, :16], upstream)[1], atol=1e-6)
    assert torch.equal(wide[:, 16:], kept[:, 16:])


def test_second_backward(backend, device):
    (x,) = leaves(torch.randn(5, 16, device=device))
    y = ek.swiglu(x, backend=backend)
    first = torch.autograd.grad(y.sum(), x, retain_graph=True)[0]
    assert torch.equal(first, torch.autograd.grad(y.sum(), x)[0])
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(y.sum(), x)


def test_cpu_reference_is_autograd_bit_for_bit():
    """What a laptop trained before the operator existed: F.silu(gate) * up and autograd's own backward."""
    for dtype in (torch.float32, torch.float64):
        a, b = leaves(*[torch.randn(7, 2 * 171, dtype=dtype)] * 2)
        upstream = torch.randn(7, 171, dtype=dtype)
        gate, up = b.chunk(2, -1)
        ours, theirs = ek.swiglu(a, backend="torch"), torch.nn.functional.silu(gate) * up
        assert torch.equal(ours, theirs)
        assert torch.equal(torch.autograd.grad(ours, a, upstream)[0], torch.autograd.grad(theirs, b, upstream)[0])


def test_opcheck_and_whole_graph(fused, device):
    (x,) = leaves(torch.randn(1, 3, 16, device=device))
    torch.library.opcheck(torch.ops.emergence_kernels.swiglu, (x, fused))
    step = torch.compile(lambda x: ek.swiglu(x * 1.0, backend=fused), fullgraph=True, backend="aot_eager")
    upstream = torch.randn(1, 3, 8, device=device)
    got = torch.autograd.grad(step(x), x, upstream)[0]
    assert torch.allclose(got, torch.autograd.grad(ek.swiglu(x, backend="torch"), x, upstream)[0], atol=1e-6)


def test_wrong_arguments(device):
    with pytest.raises(ValueError, match=r"must be \(\.\.\., 2 \* features\)"):
        ek.swiglu(torch.randn(3, 5, device=device))
    with pytest.raises(ValueError, match="has dtype"):
        ek.swiglu(torch.ones(3, 4, dtype=torch.int64, device=device))
