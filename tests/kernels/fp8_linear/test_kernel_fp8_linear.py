"""fp8_linear against float64: its operands value by value, its products of those operands, and what rounding costs."""

import pytest
import torch
from kernel_checks import placed
from torch import Tensor

import emergence_kernels as ek
from emergence_kernels.fp8_linear import reference
from emergence_kernels.fp8_linear.op import fp8_fits

pytest.importorskip("triton")
BACKENDS = ["torch", "triton"]
LARGEST = 448.0  # of e4m3


def of_backend(name: str):
    if name == "torch":
        return reference
    from emergence_kernels.fp8_linear import triton

    return triton


def operands(x_NK: Tensor) -> tuple[Tensor, Tensor]:
    """e4m3 values and scales of the definition, row by row: the power of two is searched for in float64."""
    values, scales = [], []
    for row in x_NK.double():
        power = -126
        while row.abs().max() > LARGEST * 2.0**power:
            power += 1
        scales.append(2.0**power)
        values.append((row / 2.0**power).float().to(torch.float8_e4m3fn))
    return torch.stack(values), torch.tensor(scales, device=x_NK.device)


def make(layout: str) -> Tensor:
    if layout == "prime":
        return torch.randn(5, 131)
    if layout == "wide":
        return torch.randn(2, 16384 + 48)  # more than registers hold
    if layout == "strided rows":
        return torch.randn(6, 2, 48)[:, 0]
    if layout == "strided features":
        return torch.randn(40, 5).t()
    if layout == "expanded":
        return torch.randn(1, 40).expand(5, 40)
    if layout == "every value":  # of bfloat16 within a row's range, ties and e4m3's subnormals among them
        values = torch.arange(1 << 15, dtype=torch.int16).view(torch.bfloat16).float()
        return values[(values > 2.0**-12) & (values <= LARGEST)][None] * torch.tensor([[1.0], [-1.0], [2.0**40]])
    if layout == "edges of a scale":  # 1.75 is 448 / 2^8: the next value needs twice the scale
        return torch.tensor([[1.75, 1.0], [1.7578125, 1.0], [1.9921875, -1.0], [2.0, 0.5], [-1.75, 0.0], [0.0, 0.0]])
    if layout == "huge and tiny":
        sizes = [3.3e38, 2.0**100, 1.0, 1e-4, 2.0**-110, 2.0**-117, 2.0**-118, 2.0**-126, 2.0**-130, 0.0]
        return torch.randn(10, 32).clamp(-1, 1) * torch.tensor(sizes)[:, None]
    raise AssertionError(layout)


LAYOUTS = ["prime", "wide", "strided rows", "strided features", "expanded"]
LAYOUTS += ["every value", "edges of a scale", "huge and tiny"]


def same(got: tuple[Tensor, Tensor], wanted: tuple[Tensor, Tensor]) -> bool:
    """Equal, where a zero's sign does not matter."""
    return torch.equal(got[0].float(), wanted[0].float()) and torch.equal(got[1], wanted[1])


@pytest.mark.parametrize("chosen", BACKENDS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_have_the_defined_values(layout, chosen, device):
    x_NK = placed(make(layout), torch.bfloat16, device)
    assert same(of_backend(chosen).quantize_rows(x_NK), operands(x_NK))


@pytest.mark.parametrize("chosen", BACKENDS)
@pytest.mark.parametrize("N, K", [(48, 80), (16, 16), (144, 16), (208, 272)])
def test_columns_are_the_rows_of_the_transpose(N, K, chosen, device):
    w_NK = placed(torch.randn(N, K) * torch.logspace(-6, 6, K), torch.bfloat16, device)
    assert same(of_backend(chosen).quantize_columns(w_NK), operands(w_NK.t()))


@pytest.mark.parametrize("chosen", BACKENDS)
@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_a_row_that_is_not_finite_stays_so(value, chosen, device):
    """Its results are NaN, and no others: what skips a step that is not finite sees it. A conversion that saturates hides it."""
    x, w = torch.randn(3, 32, device=device).bfloat16(), torch.randn(16, 32, device=device).bfloat16()
    x[1, 5] = value
    y = ek.fp8_linear(x, w, backend=chosen)
    assert y[1].isnan().all() and y[[0, 2]].isfinite().all()
    x, w[3, 7] = x.nan_to_num(0, 0, 0).requires_grad_(), value
    y = ek.fp8_linear(x, w, backend=chosen)
    (dx,) = torch.autograd.grad(y, x, torch.ones_like(y))
    others = [k for k in range(32) if k != 7]
    assert y[:, 3].isnan().all() and y[:, :3].isfinite().all() and y[:, 4:].isfinite().all()
    assert dx[:, 7].isnan().all() and dx[:, others].isfinite().all()


def exact(x: Tensor, w: Tensor, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """y, dx and dW in float64, of operands rounded as defined."""

    def rounded(rows: Tensor) -> Tensor:
        values, scales = operands(rows)
        return values.double() * scales[:, None].double()

    return rounded(x) @ rounded(w).t(), rounded(dy) @ rounded(w.t()).t(), dy.double().t() @ x.double()


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("chosen", BACKENDS)
def test_products_are_those_of_the_rounded_operands(chosen, held, device):
    """Beyond the operands' rounding the result is rounded once: 2^-9 of each value; sums are float32, on tensor cores shorter."""
    M, N, K = 19, 48, 112
    x, w, dy = (torch.randn(*shape, device=device).bfloat16() for shape in ((M, K), (N, K), (M, N)))
    x, dy = x * torch.logspace(-3, 3, M, device=device).bfloat16()[:, None], dy * 1e-6
    x.requires_grad_()
    w.requires_grad_()
    quantized = ek.quantize_weight(w, backend=chosen) if held else None
    y = ek.fp8_linear(x, w, quantized, backend=chosen)
    assert y.dtype == torch.bfloat16
    got = y, *torch.autograd.grad(y, (x, w), dy)
    of_sums = 2.0**-11 if device.type == "cuda" else 2.0**-20  # of the terms' magnitudes
    magnitudes = exact(x.detach().abs(), w.detach().abs(), dy.abs())
    for name, ours, wanted, terms in zip(("y", "dx", "dW"), got, exact(x.detach(), w.detach(), dy), magnitudes):
        error = (ours.double() - wanted).abs()
        assert (error <= 2.0**-8 * wanted.abs() + of_sums * terms).all(), name


@pytest.mark.parametrize("chosen", BACKENDS)
def test_rounding_costs_what_e4m3_must(chosen, device):
    """Against the product of what was given, in float64: two roundings to 4 bits, of relative root mean square 2.6% each."""
    x, w, dy = (torch.randn(*shape, device=device).bfloat16() for shape in ((24, 512), (80, 512), (24, 80)))
    x.requires_grad_()
    y = ek.fp8_linear(x, w, backend=chosen)
    (dx,) = torch.autograd.grad(y, x, dy)
    wide = x.detach().double()
    for ours, wanted in ((y, wide @ w.double().t()), (dx, dy.double() @ w.double())):
        error = (ours.double() - wanted).norm() / wanted.norm()
        assert 0.03 < error < 0.045


@pytest.mark.parametrize("chosen", BACKENDS)
def test_the_main_gradient_is_not_rounded(chosen, device):
    """dW of what was given, added in float32 over micro-batches of any layout; the weight has no gradient of its own."""
    w = torch.randn(32, 48, device=device).bfloat16().requires_grad_()
    main_grad, wanted = torch.zeros(32, 48, device=device), torch.zeros(32, 48, dtype=torch.float64, device=device)
    for _ in range(5):
        x = torch.randn(3, 7, 48, device=device).bfloat16().requires_grad_()
        dy = torch.randn(7, 3, 32, device=device).bfloat16().transpose(0, 1)  # not contiguous
        y = ek.fp8_linear(x, w, main_grad=main_grad, backend=chosen)
        y.backward(dy)
        assert w.grad is None and x.grad.shape == x.shape
        wanted += dy.reshape(-1, 32).double().t() @ x.detach().reshape(-1, 48).double()
    assert (main_grad.double() - wanted).norm() <= 1e-6 * wanted.norm()


@pytest.mark.parametrize("chosen", BACKENDS)
def test_a_held_weight_is_overwritten_in_place(chosen, device):
    """What a CUDA graph has captured stays where it is."""
    first, second = (torch.randn(32, 48, device=device).bfloat16() for _ in range(2))
    held = ek.quantize_weight(first, backend=chosen)
    places = [t.data_ptr() for t in held]
    again = ek.quantize_weight(second, held, backend=chosen)
    assert [t.data_ptr() for t in again] == places
    fresh = ek.quantize_weight(second, backend=chosen)
    assert all(torch.equal(a.float(), b.float()) for a, b in zip(again, fresh))


def test_gradients_that_are_not_needed_are_not_computed(device):
    x, w = torch.randn(4, 16, device=device).bfloat16(), torch.randn(32, 16, device=device).bfloat16()
    (dw,) = torch.autograd.grad(ek.fp8_linear(x, w.requires_grad_()).sum(), w)
    assert torch.equal(dw, x.sum(0).expand(32, 16)) or (dw - x.float().sum(0)).norm() <= 0.01 * dw.norm()
    (dx,) = torch.autograd.grad(ek.fp8_linear(x.requires_grad_(), w.detach()).sum(), x)
    assert dx.shape == x.shape


@pytest.mark.parametrize("chosen", BACKENDS)
def test_no_rows(chosen, device):
    x, w = torch.randn(0, 16, device=device).bfloat16().requires_grad_(), torch.randn(32, 16, device=device).bfloat16()
    y = ek.fp8_linear(x, w, backend=chosen)
    assert y.shape == (0, 32) and torch.autograd.grad(y.sum(), x)[0].shape == (0, 16)


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("chosen", BACKENDS)
def test_opcheck_and_whole_graph(chosen, held, device):
    x = torch.randn(2, 3, 16, device=device).bfloat16().requires_grad_()
    w = torch.randn(32, 16, device=device).bfloat16().requires_grad_()
    quantized = ek.quantize_weight(w, backend=chosen) if held else None
    if not held:  # opcheck multiplies its arguments, which PyTorch cannot do in e4m3
        torch.library.opcheck(torch.ops.emergence_kernels.fp8_linear, (x, w, *(None,) * 5, chosen))
    step = torch.compile(
        lambda x, w: ek.fp8_linear(x * 1.0, w, quantized, backend=chosen), fullgraph=True, backend="aot_eager"
    )
    upstream = torch.randn(2, 3, 32, device=device).bfloat16()
    got = torch.autograd.grad(step(x, w), (x, w), upstream)
    wanted = torch.autograd.grad(ek.fp8_linear(x, w, backend="torch"), (x, w), upstream)
    assert all(torch.allclose(a, b, rtol=1e-2, atol=1e-2) for a, b in zip(got, wanted))


def test_wrong_arguments(device):
    x, w = torch.randn(4, 16, device=device).bfloat16(), torch.randn(32, 16, device=device).bfloat16()
    with pytest.raises(ValueError, match="multiples of 16"):
        ek.fp8_linear(x[:, :8], w[:, :8])
    with pytest.raises(ValueError, match="expected"):
        ek.fp8_linear(x[:, :8], w)
    with pytest.raises(ValueError, match="has dtype"):
        ek.fp8_linear(x.float(), w)
    with pytest.raises(ek.BackendError, match="it has no fp8_linear"):
        ek.fp8_linear(x, w, backend="flash")
    with pytest.raises(ek.BackendError, match="bfloat16"):
        ek.fp8_linear(x.float(), w.float(), backend="triton")
    assert fp8_fits(16, 32) and not fp8_fits(8, 16) and not fp8_fits(16, 24)
