"""What holds for every operation: empty inputs, changed outputs, second derivatives, autocast, meta tensors, extremes."""

import re
from functools import partial

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import emergence_kernels as ek

B, T, H, D, F = 2, 6, 2, 16, 32


def angles(positions):
    return torch.ones(positions, D // 2), torch.zeros(positions, D // 2)


def heads(op):
    """Of q, k and v side by side."""
    return lambda qkv, **options: op(*qkv.unflatten(-1, (3 * H, D)).split([H, H, H], 2), **options)


def rotary(x, **options):
    return ek.rotary(x.unflatten(-1, (3 * H, D)), *(t.to(x.device) for t in angles(x.shape[1])), **options)


def rotary_attention(x, **options):
    return ek.rotary_attention(x, *(t.to(x.device) for t in angles(x.shape[1])), heads=H, **options)


def projected_attention(x, w, **options):
    return ek.projected_attention(x, w, *(t.to(x.device) for t in angles(x.shape[1])), heads=H, **options)


def loss_of(op):
    def run(x, w, **options):
        return op(x, w, torch.zeros(x.shape[:-1], dtype=torch.long, device=x.device), **options)

    return run


# name: the operation, the features of x, shapes of the weights
OPERATIONS = {
    "rms_norm": (ek.rms_norm, D, [(D,)]),
    "swiglu": (ek.swiglu, 2 * F, []),
    "feed_forward": (ek.feed_forward, D, [(2 * F, D), (D, F)]),
    "rotary": (rotary, 3 * H * D, []),
    "attention": (heads(ek.attention), 3 * H * D, []),
    "rotary_attention": (rotary_attention, 3 * H * D, []),
    "projected_attention": (projected_attention, D, [(3 * H * D, D)]),
    "linear_cross_entropy": (loss_of(ek.linear_cross_entropy), D, [(F, D)]),
    "position_loss": (lambda *given, **options: loss_of(ek.position_loss)(*given, **options).loss, D, [(F, D)]),
    "fp8_linear": (ek.fp8_linear, D, [(F, D)]),
}
NAMES = list(OPERATIONS)


def given(name, device, dtype=torch.float32, lead=(B, T)):
    op, features, weights = OPERATIONS[name]
    x, *parameters = (torch.randn(*shape, device=device, dtype=dtype) for shape in ((*lead, features), *weights))
    return op, x, parameters


def skip_unless_offered(name, backend):
    if backend == "cuda" and "attention" in name:
        pytest.skip("16 bits only: tests of its own")
    if name == "fp8_linear" and backend != "torch":
        pytest.skip("bfloat16 on tensor cores")


@pytest.mark.parametrize("lead", [(0, 3), (2, 0), (0, 0)])
@pytest.mark.parametrize("name", NAMES)
def test_empty_batches_have_empty_gradients(name, lead, backend, device):
    """Upstream gradients are expanded, so their strides are 0."""
    skip_unless_offered(name, backend)
    op, x, parameters = given(name, device, lead=lead)
    tracked = [t.requires_grad_() for t in (x, *parameters)]
    grads = torch.autograd.grad(op(*tracked, backend=backend).sum(), tracked)
    assert all(grad.shape == t.shape and not grad.any() for grad, t in zip(grads, tracked))


@pytest.mark.parametrize("name", NAMES)
def test_second_derivatives_raise_or_are_right(name, backend, device):
    """By Hessian-vector products, which reach the first gradient by way of the inputs alone: missing parts raised nothing."""
    skip_unless_offered(name, backend)
    op, x, parameters = given(name, device)
    leaves = [each.requires_grad_() for each in (x, *parameters)]

    def gradients(*leaves, **options):
        x, *parameters = leaves
        return torch.autograd.grad(op(x, *parameters, backend=backend).square().sum(), leaves, **options)

    direction = [torch.randn_like(leaf) for leaf in leaves]
    try:
        products = torch.autograd.grad(gradients(*leaves, create_graph=True), leaves, direction)
    except RuntimeError as error:
        assert re.search("first derivatives only|is not implemented", str(error))  # the second is PyTorch's own
        return
    assert backend == "torch", "only PyTorch's own operations have second derivatives"
    high, low = (
        gradients(*((leaf.detach() + step * moved).requires_grad_() for leaf, moved in zip(leaves, direction)))
        for step in (0.01, -0.01)
    )
    for product, above, below in zip(products, high, low):
        numeric = (above - below) / 0.02
        assert (product - numeric).norm() <= 0.05 * numeric.norm()


@pytest.mark.parametrize("name", ["rms_norm", "swiglu", "feed_forward", "rotary", "fp8_linear"])
def test_outputs_may_be_changed_in_place(name, backend, device):
    """But attention's, which its backward pass reads."""
    skip_unless_offered(name, backend)
    op, x, parameters = given(name, device)
    x.requires_grad_()
    y = op(x, *parameters, backend=backend)
    (wanted,) = torch.autograd.grad(y.sum(), x)
    y = op(x, *parameters, backend=backend)
    y += 1
    (got,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(got, wanted)


@pytest.mark.parametrize("name", ["attention", "feed_forward", "linear_cross_entropy", "position_loss", "rms_norm"])
def test_autocast_leaves_float64(name, device):
    op, x, parameters = given(name, device, torch.float64)
    plain = op(x, *parameters)
    with torch.autocast(device.type, torch.bfloat16):
        assert torch.equal(op(x, *parameters), plain) and plain.dtype == torch.float64


@pytest.mark.parametrize("name", NAMES)
def test_meta_tensors_have_shapes(name, device):
    op, x, parameters = given(name, device)
    meta = op(*(t.to("meta") for t in (x, *parameters)), backend="torch")
    real = op(x, *parameters, backend="torch")
    assert meta.shape == real.shape and meta.dtype == real.dtype


@pytest.mark.parametrize("name", NAMES)
def test_fake_tensors_have_shapes_and_gradients(name, backend, device):
    """What a memory estimate runs: a program without compiler, of tensors without values."""
    skip_unless_offered(name, backend)
    with FakeTensorMode():
        op, x, parameters = given(name, device)
        leaves = [each.requires_grad_() for each in (x, *parameters)]
        result = op(x, *parameters, backend=backend)
        grads = torch.autograd.grad(result.sum(), leaves)
    op, x, parameters = given(name, device)
    real = op(x, *parameters, backend=backend)
    assert (result.shape, result.dtype, result.device) == (real.shape, real.dtype, real.device)
    assert [grad.shape for grad in grads] == [leaf.shape for leaf in leaves]


def test_norm_under_autocast_promotes_to_the_residual(backend, device):
    """A branch in 16 bits beside a residual stream in float32, as PyTorch adds them."""
    x, residual, weight = torch.randn(4, D).bfloat16(), torch.randn(4, D), torch.randn(D)
    x, residual, weight = (t.to(device) for t in (x, residual, weight))
    with torch.autocast(device.type, torch.bfloat16):
        y, total = ek.rms_norm(x, weight, residual=residual, backend=backend)
    assert torch.equal(total, x.float() + residual) and y.dtype == torch.float32
    assert torch.allclose(y, ek.rms_norm(x.float() + residual, weight, backend="torch"), atol=1e-5)


@pytest.mark.parametrize("size", [1e-15, 1e15, 1e18])
def test_norm_of_tiny_and_huge_rows(size, backend, device):
    """dx is scaled by 1 / size: powers of it must not leave float32's range."""
    if backend == "torch" and device.type == "cuda":
        pytest.skip("by PyTorch's autograd, which squares")
    torch.manual_seed(0)
    x, weight, dy = torch.randn(5, D), torch.randn(D), torch.randn(5, D)
    results = []
    for scale, dtype in ((size, torch.float32), (size, torch.float64)):
        wide = (x * scale).to(device, dtype).requires_grad_()
        run = partial(ek.rms_norm, backend=backend) if dtype == torch.float32 else partial(ek.rms_norm, backend="torch")
        y = run(wide, weight.to(device, dtype), eps=0.0)
        (dx,) = torch.autograd.grad(y, wide, dy.to(device, dtype))
        results.append(dx.double() * scale)
    assert torch.allclose(*results, rtol=1e-4, atol=1e-5)


def test_entropy_beside_logits_that_are_far_below(backend, device):
    hidden = torch.ones(1, 2, 1, device=device)
    weight = torch.tensor([[0.0], [-1.0], [-3e38]], device=device)
    entropy = ek.position_loss(hidden, weight, torch.zeros(1, 2, dtype=torch.long, device=device), backend=backend)
    p = torch.tensor([0.0, -1.0], dtype=torch.float64).softmax(0)
    wanted = torch.full((2,), -(p * p.log()).sum())
    assert torch.allclose(entropy.positions.entropy_sum.cpu().double(), wanted.double(), atol=1e-5)
