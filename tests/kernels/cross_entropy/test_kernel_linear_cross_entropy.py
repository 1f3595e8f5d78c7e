"""linear_cross_entropy against a float64 oracle, under upstream gradients that are not ones."""

import pytest
import torch
from compiled import COMPILED
from kernel_checks import DTYPES, assert_as_good, leaves, narrow
from loss_cases import CASES, IGNORE, ordinary, token_losses

import emergence_kernels as ek
from emergence_kernels.cross_entropy import reference
from emergence_kernels.cross_entropy.options import LossInputs, RowOptions


def plain_loss(hidden, weight, targets, z_loss, softcap):
    loss, lse, *_ = token_losses(hidden, weight, targets, softcap)
    return loss + z_loss * lse.square()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_against_float64(case, dtype, backend, device):
    inputs = CASES[case]().to(dtype, device)
    softcap = {"ordinary": 5.0, "peaked elsewhere": 30.0, "expanded": 2.0}.get(case)
    z_loss = 0.0 if case == "confident" else 1e-3
    upstream = torch.randn(inputs.targets.shape, device=device)  # both signs, not uniform
    upstream[torch.rand(upstream.shape, device=device) < 0.2] = 0
    hidden, weight = inputs.hidden.detach().requires_grad_(), inputs.weight.detach().requires_grad_()
    loss = ek.linear_cross_entropy(
        hidden, weight, inputs.targets, ignore_index=IGNORE, z_loss=z_loss, softcap=softcap, backend=backend
    )
    assert loss.dtype == torch.float32 and loss.shape == inputs.targets.shape
    got = [loss.detach(), *torch.autograd.grad(loss, (hidden, weight), upstream)]
    exact, plain = [], []
    for results, kept in ((exact, torch.float64), (plain, dtype)):
        x, w = leaves(inputs.hidden, inputs.weight, dtype=kept)
        other = plain_loss(x, w, inputs.targets, z_loss, softcap)
        results += [other.detach(), *torch.autograd.grad(other, (x, w), upstream.to(other.dtype))]
    terms = upstream.norm().item() if case == "confident" else 0.0
    for name, *three in zip(("loss", "d hidden", "d weight"), got, exact, plain):
        assert_as_good(name, *three, terms=terms)


@pytest.mark.parametrize("kind", ["zero", "negative", "expanded", "tiny", "one token"])
def test_upstream_gradients(kind, backend, device):
    half = kind == "tiny" and backend != "cpu"
    inputs = ordinary().to(torch.float16 if half else torch.float32, device)
    B, T = inputs.targets.shape
    upstream = {
        "zero": torch.zeros(B, T),
        "negative": -torch.rand(B, T),
        "expanded": torch.tensor(0.25).expand(B, T),  # what .mean() sends back: stride 0
        "tiny": torch.rand(B, T) * 1e-7,  # below float16: 1 / tokens without a loss scale
        "one token": torch.zeros(B, T).index_put_((torch.tensor(1), torch.tensor(7)), torch.tensor(3.0)),
    }[kind].to(device)
    kept = upstream.clone()
    hidden, weight = leaves(inputs.hidden, inputs.weight)
    loss = ek.linear_cross_entropy(hidden, weight, inputs.targets, backend=backend)
    # float16 gradients of 1e-7 cannot be held by float16 itself: scale them up on the way out.
    got = torch.autograd.grad(loss, (hidden, weight), upstream * (1e5 if kind == "tiny" else 1))
    x, w = leaves(inputs.hidden, inputs.weight, dtype=torch.float64)
    exact = torch.autograd.grad(plain_loss(x, w, inputs.targets, 0.0, None), (x, w), upstream.double())
    for a, b in zip(got, exact):
        a = a.double() / (1e5 if kind == "tiny" else 1)
        assert (a - b).norm() <= (2e-3 if kind == "tiny" else 2e-6) * b.norm()
    assert torch.equal(upstream, kept)  # shared with others: not to be written


def test_float16_small_upstream(triton_only, device):
    """The kernel's own 16-bit dlogits must not underflow although the upstream gradient is 1 / tokens."""
    inputs = ordinary(B=1, T=23, D=16, V=53).to(torch.float16, device)
    inputs.hidden *= 8
    hidden, weight = leaves(inputs.hidden, inputs.weight)
    upstream = torch.full((1, 23), 2.0**-14, device=device)
    got = torch.autograd.grad(
        ek.linear_cross_entropy(hidden, weight, inputs.targets, backend="triton"), (hidden, weight), upstream
    )
    x, w = leaves(inputs.hidden, inputs.weight, dtype=torch.float64)
    exact = torch.autograd.grad(plain_loss(x, w, inputs.targets, 0.0, None), (x, w), upstream.double())
    for a, b in zip(got, exact):
        assert (a.double() - b).abs().max() <= 2e-3 * b.abs().max() + 2.0**-24


def test_float16_gradients_of_tiny_upstream(backend, device):
    """p times 2^-20 is mostly below what float16 holds; the sums, of hidden and weights that are large, are not."""
    if backend == "cpu":
        pytest.skip("float32 only")
    inputs = ordinary(B=1, T=32, D=16, V=300).to(torch.float16, device)
    hidden, weight = leaves(inputs.hidden * 64, inputs.weight / 64)
    x, w = leaves(hidden, weight, dtype=torch.float64)
    upstream = torch.full((1, 32), 2.0**-20, device=device)
    loss = ek.linear_cross_entropy(hidden, weight, inputs.targets, backend=backend)
    (dw,) = torch.autograd.grad(loss, weight, upstream)
    (exact,) = torch.autograd.grad(plain_loss(x, w, inputs.targets, 0.0, None), w, upstream.double())
    assert (dw.double() - exact).norm() <= 5e-3 * exact.norm()
    hidden, weight = leaves(inputs.hidden / 64, inputs.weight * 64)
    x, w = leaves(hidden, weight, dtype=torch.float64)
    loss = ek.linear_cross_entropy(hidden, weight, inputs.targets, backend=backend)
    (dx,) = torch.autograd.grad(loss, hidden, upstream)
    (exact,) = torch.autograd.grad(plain_loss(x, w, inputs.targets, 0.0, None), x, upstream.double())
    assert (dx.double() - exact).norm() <= 5e-3 * exact.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_chunks_do_not_matter(dtype, backend, device):
    inputs = CASES["edges ignored"]().to(dtype, device)
    if backend == "triton":
        from emergence_kernels.cross_entropy import triton as module
    else:
        module = reference
    hidden, targets = inputs.hidden.flatten(0, 1), inputs.targets.flatten()
    valid = targets != IGNORE
    upstream = torch.randn(len(targets), device=device) * valid
    results = []
    for rows in (None, 16, 7):
        options = RowOptions(need_dx=True, need_dw=True, rows_per_chunk=rows)
        given = LossInputs(hidden, inputs.weight, targets, valid)
        forward = module.forward_rows(given, options)
        backward = module.backward_rows(given, *forward[1:], upstream, options)
        results.append((*forward, *backward))
    first, *others = results
    eps = torch.finfo(dtype).eps
    for other in others:
        assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-5) for a, b in zip(first[:3], other[:3]))
        assert all((a - b).abs().max() <= 16 * eps * a.abs().max() for a, b in zip(first[3:], other[3:]))


def test_second_backward_and_repeated_bits(backend, device):
    inputs = ordinary().to(narrow(backend), device)
    hidden, weight = leaves(inputs.hidden, inputs.weight)
    loss = ek.linear_cross_entropy(hidden, weight, inputs.targets, backend=backend).sum()
    first = torch.autograd.grad(loss, (hidden, weight), retain_graph=True)
    second = torch.autograd.grad(loss, (hidden, weight))
    assert all(torch.equal(a, b) for a, b in zip(first, second))
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, (hidden, weight))


def test_agrees_with_position_loss(backend, device):
    """Two ways to one gradient: made in the forward pass, and recomputed."""
    inputs = CASES["half ignored"]().to(torch.float32, device)
    weights = torch.rand(inputs.targets.shape, device=device)
    valid = inputs.targets != IGNORE
    a, b = leaves(inputs.hidden, inputs.weight), leaves(inputs.hidden, inputs.weight)
    fused = ek.position_loss(*a, inputs.targets, weights=weights, backend=backend)
    tokens = ek.linear_cross_entropy(*b, inputs.targets, backend=backend)
    mean = (tokens * weights).sum() / (weights * valid).sum()
    assert torch.allclose(fused.token_loss, tokens, rtol=1e-5, atol=1e-6)
    assert torch.allclose(fused.loss, mean)
    fused.loss.backward()
    mean.backward()
    for x, y in zip(a, b):
        assert torch.allclose(x.grad, y.grad, rtol=1e-4, atol=1e-6)


def test_shapes(backend, device):
    """Any leading shape; only what requires a gradient gets one."""
    weight = torch.randn(23, 8, device=device, requires_grad=True)
    hidden = torch.randn(2, 3, 4, 8, device=device)
    targets = torch.randint(23, (2, 3, 4), device=device)
    loss = ek.linear_cross_entropy(hidden, weight, targets, backend=backend)
    assert loss.shape == (2, 3, 4)
    loss.sum().backward()
    flat = ek.linear_cross_entropy(hidden.view(-1, 8), weight.detach(), targets.view(-1), backend=backend)
    assert torch.equal(flat, loss.detach().view(-1)) and not flat.requires_grad
    empty = ek.linear_cross_entropy(hidden[:0], weight, targets[:0], backend=backend)
    assert empty.shape == (0, 3, 4)


def test_opcheck(backend, device):
    inputs = ordinary(B=1, T=5, D=16, V=33).to(torch.float32, device)
    hidden, weight = leaves(inputs.hidden.flatten(0, 1), inputs.weight)
    targets = inputs.targets.flatten()
    torch.library.opcheck(
        torch.ops.emergence_kernels.linear_cross_entropy, (hidden, weight, targets, IGNORE, 1e-3, 5.0, backend)
    )
    rows = torch.rand(3, 5, device=device)
    torch.library.opcheck(
        torch.ops.emergence_kernels.linear_cross_entropy_backward,
        (hidden.detach(), weight.detach(), targets, *rows, IGNORE, 1e-3, 5.0, True, True, backend),
    )


def test_whole_graph(backend, device):
    inputs = ordinary(T=7).to(torch.float32, device)

    def step(hidden, weight):
        return (ek.linear_cross_entropy(hidden * 1.0, weight, inputs.targets, softcap=5.0, backend=backend) ** 2).sum()

    eager, compiled = [], []
    for results, run in ((eager, step), (compiled, torch.compile(step, fullgraph=True, backend="aot_eager"))):
        hidden, weight = leaves(inputs.hidden, inputs.weight)
        loss = run(hidden, weight)
        loss.backward()
        results += [loss, hidden.grad, weight.grad]
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(eager, compiled))


def test_wrong_arguments(device):
    hidden, weight = torch.randn(2, 3, 8, device=device), torch.randn(11, 8, device=device)
    targets = torch.zeros(2, 3, dtype=torch.int64, device=device)
    with pytest.raises(ValueError, match="softcap must be positive"):
        ek.linear_cross_entropy(hidden, weight, targets, softcap=0.0)
    with pytest.raises(ValueError, match="targets have shape"):
        ek.linear_cross_entropy(hidden, weight, targets[:, :2])
    with pytest.raises(ValueError, match="weight must be"):
        ek.linear_cross_entropy(hidden, weight[0], targets)


def test_tf32_products(triton_only, device):
    """Where torch's setting allows them: the error of 10 bits of mantissa, neither more nor less."""
    if not COMPILED:
        pytest.skip("the interpreter multiplies in float32")
    inputs = ordinary(B=1, T=70, D=72, V=150)
    usual = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        loss = ek.linear_cross_entropy(
            inputs.hidden.to(device), inputs.weight.to(device), inputs.targets.to(device), backend="triton"
        )
    finally:
        torch.set_float32_matmul_precision(usual)
    exact = token_losses(inputs.hidden.double(), inputs.weight.double(), inputs.targets)[0]
    assert 1e-5 < (loss.cpu().double() - exact).norm() / exact.norm() < 2e-3
