"""rms_norm against a float64 oracle."""

import pytest
import torch
from kernel_checks import DTYPES, assert_as_good, leaves, narrow, placed

import emergence_kernels as ek

EPS = 1e-6


def plain(x, weight, residual=None):
    """The textbook formula in the inputs' dtype, statistics in float32 as PyTorch's own does."""
    x = x if residual is None else x + residual
    wide = x.double() if x.dtype == torch.float64 else x.float()
    y = (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPS)).to(x.dtype) * weight
    return y, x


def make(layout):
    """x and a residual of the same layout."""
    if layout == "prime":
        return torch.randn(2, 7, 131), torch.randn(2, 7, 131)
    if layout == "flat":
        return torch.randn(64), torch.randn(64)
    if layout == "strided rows":
        return torch.randn(6, 2, 48)[:, 0], torch.randn(6, 96)[:, :48]
    if layout == "strided features":
        return torch.randn(5, 80)[:, ::2], torch.randn(40, 5).t()
    if layout == "expanded":
        return torch.randn(1, 40).expand(5, 40), torch.randn(1, 40).expand(5, 40)
    if layout == "huge and tiny":
        return torch.randn(4, 32) * torch.tensor([1e4, 1e-4, 1.0, 0.0])[:, None], torch.zeros(4, 32)
    if layout == "no rows":
        return torch.randn(0, 32), torch.randn(0, 32)
    raise AssertionError(layout)


LAYOUTS = ["prime", "flat", "strided rows", "strided features", "expanded", "huge and tiny", "no rows"]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("with_residual", [False, True], ids=["plain", "residual"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_against_float64(layout, with_residual, dtype, backend, device):
    x, residual = (placed(t, dtype, device) for t in make(layout))
    weight = (1 + 0.3 * torch.randn(x.shape[-1])).to(device, dtype)
    inputs = [x, weight, residual] if with_residual else [x, weight]
    upstream = [torch.randn(x.shape).to(device, dtype) for _ in range(2 if with_residual else 1)]
    tracked = [t.detach().requires_grad_() for t in inputs]
    out = ek.rms_norm(tracked[0], tracked[1], EPS, residual=tracked[2] if with_residual else None, backend=backend)
    out = out if with_residual else (out,)
    assert all(o.dtype == dtype and o.shape == x.shape for o in out)
    got = [*(o.detach() for o in out), *torch.autograd.grad(out, tracked, upstream)]
    results = []
    for kept in (torch.float64, dtype):
        copies = leaves(*inputs, dtype=kept)
        other = plain(*copies)[: len(out)]
        results.append([*other, *torch.autograd.grad(other, copies, [g.to(kept) for g in upstream])])
    names = ["y", "new residual", "dx", "dweight", "dresidual"] if with_residual else ["y", "dx", "dweight"]
    for name, *three in zip(names, got, *results):
        assert_as_good(name, *(t.detach() for t in three))


@pytest.mark.parametrize("stride", [0, 2])
@pytest.mark.parametrize("apart", range(4), ids=["x", "residual", "dy", "dsum"])
def test_one_feature_of_any_stride(apart, stride, backend, device):
    """In closed form, s = x + residual: y = w s / r with r^2 = s^2 + eps, dy/ds = w eps / r^3, dy/dw = s / r. The gradient that
    a sum has is expanded: stride 0."""
    eps, dtype = 0.5, narrow(backend)
    inputs = [torch.randn(2, 5, 1, device=device, dtype=dtype) for _ in range(4)]
    inputs[apart] = torch.randn(2, 5, stride or 1, device=device, dtype=dtype)[..., :: stride or 1]
    if not stride:
        inputs[apart] = inputs[apart][0, 0, 0].expand(2, 5, 1)
    x, residual, dy, d_sum = inputs
    x, residual = x.requires_grad_(), residual.requires_grad_()
    weight = torch.full((1,), 1.5, device=device, dtype=dtype, requires_grad=True)
    y, total = ek.rms_norm(x, weight, eps, residual=residual, backend=backend)
    got = y, total, *torch.autograd.grad((y, total), (x, residual, weight), (dy, d_sum))
    s = total.detach().double()
    r = (s.square() + eps).sqrt()
    dx = dy * 1.5 * eps / r**3 + d_sum
    for ours, exact in zip(
        got, (1.5 * s / r, (x + residual).detach(), dx, dx, (dy * s / r).sum().view(1)), strict=True
    ):
        assert (ours.double() - exact).abs().max() <= 4 * torch.finfo(dtype).eps * exact.abs().max()


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_dweight_is_of_rows_as_they_were_rounded(dtype, backend, device):
    """Of one row and a weight of 1, y is the row as it was rounded, and dweight dy * y bit for bit."""
    x, dy = (torch.randn(1, 512, device=device).to(dtype) for _ in range(2))
    weight = torch.ones(512, device=device, dtype=dtype, requires_grad=True)
    y = ek.rms_norm(x, weight, backend=backend)
    assert torch.equal(torch.autograd.grad(y, weight, dy)[0], (dy * y.detach())[0])


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_rows_are_rounded_before_the_weight(dtype, backend, device):
    """Llama's casting: to the bit, but where the last bit of a row's root decides."""
    x, weight = (torch.randn(shape).to(device, dtype) for shape in ((40, 64), (64,)))
    different = ek.rms_norm(x, weight, EPS, backend=backend) != plain(x, weight)[0]
    assert different.sum() <= 2  # 26% if they are not rounded


@pytest.mark.parametrize("rows, D", [(130, 8), (150, 257)])
def test_dweight_has_the_share_of_every_row(rows, D, compiled, device, monkeypatch):
    """On a CPU more rows than those of a share; on a GPU several rounds of a block, and more shares than are summed at once."""
    monkeypatch.setenv("EMERGENCE_EMULATE_MULTIPROCESSORS", "9")
    x, weight, upstream = (torch.randn(shape, device=device) for shape in ((rows, D), (D,), (rows, D)))
    a, b = leaves(x, weight, dtype=torch.float64)
    exact = torch.autograd.grad(plain(a, b)[0], (a, b), upstream.double())
    tracked = leaves(x, weight)
    got = torch.autograd.grad(ek.rms_norm(*tracked, EPS, backend=compiled), tracked, upstream)
    for actual, expected in zip(got, exact):
        assert (actual.double() - expected).norm() <= 1e-6 * expected.norm()


def test_a_sum_over_thousands_of_rows(device):
    """dweight of the torch backend keeps PyTorch's exactness at a laptop's batch."""
    x, weight, upstream = (torch.randn(s, device=device) for s in ((4096, 32), (32,), (4096, 32)))
    results = []
    for run, dtype in ((ek.rms_norm, torch.float32), (plain, torch.float64), (plain, torch.float32)):
        tracked = leaves(x, weight, dtype=dtype)
        y = run(*tracked) if run is ek.rms_norm else run(*tracked)[0]
        results.append(torch.autograd.grad(y, tracked, upstream.to(dtype)))
    for name, *three in zip(("dx", "dweight"), *results):
        assert_as_good(name, *three)


def test_many_rows(triton_only, device):
    """More rows than persistent programs, several rows a program, a last block that is not full."""
    rows = 1000 if device.type == "cpu" else 100_000  # the interpreter has two programs, of 128 rows at a time
    x, weight = leaves(torch.randn(rows, 24, device=device), torch.randn(24, device=device))
    upstream = torch.randn(rows, 24, device=device)
    got = torch.autograd.grad(ek.rms_norm(x, weight, EPS, backend="triton"), (x, weight), upstream)
    a, b = leaves(x, weight, dtype=torch.float64)
    exact = torch.autograd.grad(plain(a, b)[0], (a, b), upstream.double())
    for actual, expected in zip(got, exact):
        assert (actual.double() - expected).norm() <= 1e-6 * expected.norm()


@pytest.mark.parametrize("used", ["y", "residual"])
def test_one_output_unused(used, backend, device):
    x, weight, residual = leaves(*(torch.randn(3, 16, device=device) for _ in range(2)), torch.randn(3, 16))
    weight = weight.detach()[0].clone().requires_grad_()
    residual = residual.detach().to(device).requires_grad_()
    y, total = ek.rms_norm(x, weight, EPS, residual=residual, backend=backend)
    (y if used == "y" else total).square().sum().backward()
    a, w, r = leaves(x, weight, residual, dtype=torch.float64)
    y, total = plain(a, w, r)
    (y if used == "y" else total).square().sum().backward()
    assert torch.allclose(x.grad.double(), a.grad, atol=1e-5) and torch.allclose(
        residual.grad.double(), r.grad, atol=1e-5
    )
    assert used == "residual" or torch.allclose(weight.grad.double(), w.grad, atol=1e-5)


def test_second_backward_and_shared_buffers(backend, device):
    x, weight, residual = leaves(torch.randn(5, 16), torch.randn(16), torch.randn(5, 16))
    x, weight, residual = (t.detach().to(device).requires_grad_() for t in (x, weight, residual))
    y, total = ek.rms_norm(x, weight, residual=residual, backend=backend)
    upstream = torch.randn(5, 16, device=device)
    kept = upstream.clone()
    out = (y * 1).sum() + (total * upstream).sum()
    first = torch.autograd.grad(out, (x, weight, residual), retain_graph=True)
    second = torch.autograd.grad(out, (x, weight, residual))
    assert all(torch.equal(a, b) for a, b in zip(first, second)) and torch.equal(kept, upstream)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(out, (x, weight, residual))


@pytest.mark.parametrize("with_residual", [False, True], ids=["plain", "residual"])
def test_opcheck(with_residual, fused, device):
    x, weight, residual = leaves(*(torch.randn(s, device=device) for s in ((3, 16), (16,), (3, 16))))
    residual = residual if with_residual else None
    torch.library.opcheck(torch.ops.emergence_kernels.rms_norm, (x, weight, EPS, residual, fused))
    arguments = (torch.randn_like(x), residual, x, weight, torch.rand(3, device=device), fused)
    detached = tuple(t.detach() if isinstance(t, torch.Tensor) else t for t in arguments)
    torch.library.opcheck(torch.ops.emergence_kernels.rms_norm_backward, detached)


def test_whole_graph(backend, device):
    def step(x, weight, residual):
        y, total = ek.rms_norm(x * 1.0, weight, residual=residual, backend=backend)
        return (y * total).sum()

    eager, compiled = [], []
    start = [torch.randn(s, device=device) for s in ((2, 3, 16), (16,), (2, 3, 16))]
    for results, run in ((eager, step), (compiled, torch.compile(step, fullgraph=True, backend="aot_eager"))):
        tensors = leaves(*start)
        loss = run(*tensors)
        loss.backward()
        results += [loss, *(t.grad for t in tensors)]
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(eager, compiled))


def test_wrong_arguments(device):
    x, weight = torch.randn(3, 8, device=device), torch.randn(8, device=device)
    for arguments, options, message in [
        ((x, weight[:5]), {}, "weight has shape"),
        ((x, weight.double()), {}, "dtype"),
        ((x, weight), {"residual": x[:2]}, "residual has shape"),
        ((x.long(), weight), {}, "dtype"),
    ]:
        with pytest.raises(ValueError, match=message):
            ek.rms_norm(*arguments, **options)
    with pytest.raises(ek.BackendError, match="8200 features are more than 8192"):
        ek.rms_norm(torch.randn(1, 8200, device=device), torch.randn(8200, device=device), backend="triton")
