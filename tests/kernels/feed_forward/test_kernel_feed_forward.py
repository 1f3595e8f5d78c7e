"""SwiGLU in the products round it, on Hopper: without a GPU the kernels' source in csrc/emulator, on an H100 compiled."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import emulated_barriers
import pytest
import torch
from kernel_checks import assert_as_good

from emergence_kernels.feed_forward import compiled

CUDA = torch.cuda.is_available()
pytestmark = pytest.mark.usefixtures("hopper")
HALVES = (torch.bfloat16, torch.float16)
# (N, K, F). Tiles have 128 rows and 128 features forward, 256 backward; steps along k have 64.
SHAPES = {
    "one row": (1, 8, 8),
    "exact": (128, 64, 256),
    "ragged": (300, 200, 200),
    "wide": (140, 72, 520),
    "deep": (70, 1096, 136),
}


def silu_times(gate_up):
    gate, up = gate_up.chunk(2, -1)
    return gate * torch.sigmoid(gate) * up


def gradient(dh, gate_up):
    gate, up = gate_up.chunk(2, -1)
    s = torch.sigmoid(gate)
    return torch.cat([dh * up * s * (1 + gate * (1 - s)), dh * gate * s], -1)


def drawn(shape, dtype, device):
    """x (N, K), weight (2F, K), down_weight (K, F), gate_up (N, 2F)."""
    N, K, F = shape
    shapes = ((N, K, 1.0), (2 * F, K, K**-0.5), (K, F, K**-0.5), (N, 2 * F, 1.0))
    return [(torch.randn(n, m, device=device) * scale).to(dtype) for n, m, scale in shapes]


def check_forward(x, weight):
    gate_up, y = compiled.forward(x, weight)
    assert gate_up.dtype == y.dtype == x.dtype and y.shape == (x.shape[0], weight.shape[0] // 2)
    assert_as_good("gate_up", gate_up, x.double() @ weight.double().T, x @ weight.T)
    exact = silu_times(gate_up.double())  # of what is returned, so that one rounding is all that may differ
    assert_as_good("y", y, exact, exact.to(y.dtype), factor=1.0, floor=0.05)


def check_backward(dy, weight, gate_up):
    got = compiled.backward(dy, weight, gate_up)
    assert got.shape == gate_up.shape and got.dtype == dy.dtype
    exact = dy.double() @ weight.double()
    plain = (dy @ weight).double()
    assert_as_good("d_gate_up", got, gradient(exact, gate_up.double()), gradient(plain, gate_up.double()).to(dy.dtype))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_forward_against_float64(shape, dtype, device):
    x, weight, _, _ = drawn(SHAPES[shape], dtype, device)
    check_forward(x, weight)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_backward_against_float64(shape, dtype, device):
    dy, _, weight, gate_up = drawn(SHAPES[shape], dtype, device)
    check_backward(dy, weight, gate_up)


def test_rounding_of_the_gradient_in_between(device):
    """dh is rounded to 16 bits before SwiGLU's gradient: whole numbers below 256 are exact sums, so every bit is known."""
    N, D, F = 64, 64, 128
    dy, weight = torch.randint(-8, 9, (N, D)).double(), torch.randint(-8, 9, (D, F)).double()
    gate_up = torch.zeros(N, 2 * F).bfloat16()
    gate_up[:, F:] = 2.0  # gate 0: d_gate = dh up / 2 = dh
    got = compiled.backward(*(t.bfloat16().to(device) for t in (dy, weight, gate_up)))
    assert torch.equal(got[:, :F].cpu(), (dy @ weight).bfloat16()) and not got[:, F:].any()
    assert ((dy @ weight).abs() > 256).any()


@pytest.mark.parametrize("layout", ["wide rows", "shifted", "transposed", "expanded"])
def test_strides(layout, device):
    """Rows further apart than they are long are read in place; what TMA cannot read is copied first."""
    N, K, F = 70, 72, 136
    x, weight, down, gate_up = drawn((N, K, F), torch.bfloat16, device)

    def placed(t):
        n, m = t.shape
        if layout == "wide rows":
            return torch.full((n, m + 16), float("nan"), dtype=t.dtype, device=device)[:, 8 : m + 8].copy_(t)
        if layout == "shifted":
            return torch.full((n, m + 3), float("nan"), dtype=t.dtype, device=device)[:, 1 : m + 1].copy_(t)
        if layout == "transposed":
            return t.T.contiguous().T
        return t[:1].expand(n, m)

    check_forward(placed(x), placed(weight))
    check_backward(placed(x), placed(down), placed(gate_up))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_large_gates_and_nan(dtype, device):
    """Every finite gate gives what float64 does, however large; a NaN stays in its row."""
    largest = torch.finfo(dtype).max
    some = torch.tensor(
        [0.0, -0.0, 1.0, -1.0, 80.0, -80.0, 89.0, -89.0, 1000.0, -1000.0, largest, -largest], device=device
    )
    F = 16
    gate_up = torch.ones(2, 2 * F, device=device)
    gate_up[0, : len(some)] = some
    gate_up[1, 3] = float("nan")
    gate_up = gate_up.to(dtype)
    x = torch.eye(2, 8, device=device).to(dtype)
    weight = torch.zeros(2 * F, 8, device=device, dtype=dtype)
    weight[:, 0] = gate_up[0]
    got, y = compiled.forward(x[:1], weight)
    assert torch.equal(got, gate_up[:1])
    exact = silu_times(gate_up[:1].double())
    assert torch.isfinite(y).all() and torch.allclose(y.double(), exact, rtol=2 * torch.finfo(dtype).eps, atol=1e-30)
    x[1, 0] = float("nan")
    got, y = compiled.forward(x, weight)
    assert torch.isfinite(y[0]).all() and got[1].isnan().all() and y[1].isnan().all()

    dy, down = torch.eye(2, 8, device=device).to(dtype), torch.ones(8, F, device=device).to(dtype)
    d = compiled.backward(dy, down, gate_up)
    exact = gradient(torch.ones(1, F, device=device).double(), gate_up[:1].double())
    assert torch.allclose(d[:1].double(), exact, rtol=2 * torch.finfo(dtype).eps, atol=2e-6)
    where = d[1].isnan().nonzero().flatten().tolist()
    assert where == [3, F + 3]


def test_wrong_shapes_are_refused(device):
    x, weight, down, gate_up = drawn((8, 16, 24), torch.bfloat16, device)
    with pytest.raises(RuntimeError, match=r"weight must be \(48, 16\)"):
        compiled.forward(x, weight.float())
    with pytest.raises(RuntimeError, match="multiples of 8"):
        compiled.forward(x, weight[:36])
    with pytest.raises(RuntimeError, match=r"gate_up must be \(8, 48\)"):
        compiled.backward(x, down, gate_up[:4])
    with pytest.raises(RuntimeError, match="bfloat16 and float16"):
        compiled.forward(x.float(), weight.float())
    assert compiled.forward(x[:0], weight)[1].shape == (0, 24)


def test_what_is_taken(device):
    def reason(dtype=torch.bfloat16, K=64, F=64, of_weight=None):
        shapes = ((1, K, dtype), (2 * F, K, of_weight or dtype), (K, F, dtype))
        return compiled.unsupported_reason(*(torch.empty(n, m, dtype=t, device=device) for n, m, t in shapes))

    assert reason() is None and reason(torch.float16, 8, 8) is None
    assert "float32" in reason(torch.float32) and "12, 64 and 12" in reason(K=12) and "64, 20 and 64" in reason(F=20)
    assert "torch.bfloat16 and torch.float32" in reason(of_weight=torch.float32)


def test_a_context_is_bound_before_tensors_are_encoded(device, monkeypatch):
    """By a thread whose first work on a GPU it is, as autograd's in a process's first backward pass: else the driver says 201."""
    dy, _, weight, gate_up = drawn(SHAPES["exact"], torch.bfloat16, device)
    got = torch.empty_like(gate_up)
    arguments = dy, weight, gate_up, got
    with ThreadPoolExecutor(1) as first:
        first.submit(torch.ops.emergence_cuda.linear_swiglu_backward, *arguments).result()
    assert torch.equal(got, compiled.backward(dy, weight, gate_up))
    if not CUDA:
        monkeypatch.setenv("EMERGENCE_EMULATE_DROP", "a context is bound before a tensor is encoded")
        with pytest.raises(RuntimeError, match="cuTensorMapEncodeTiled says 201"):
            torch.ops.emergence_cuda.linear_swiglu_backward(*arguments)


# ---- thread orders, races, fences -------------------------------------------------------------------------------------


def run_forward() -> Iterator[torch.Tensor]:
    """Three blocks of two tiles: round the ring of stages and the slots."""
    torch.manual_seed(0)
    x, weight, _, _ = drawn((260, 64, 136), torch.bfloat16, "cpu")
    yield from compiled.forward(x, weight)


def run_backward() -> Iterator[torch.Tensor]:
    torch.manual_seed(0)
    dy, _, weight, gate_up = drawn((260, 64, 264), torch.bfloat16, "cpu")
    yield compiled.backward(dy, weight, gate_up)


RUNS = {"forward.cu": run_forward, "backward.cu": run_backward}


ORDERS = emulated_barriers.Orders(RUNS)


@pytest.mark.parametrize("seeds", [(1,), pytest.param(range(2, 12), marks=pytest.mark.slow)], ids=["first", "more"])
@pytest.mark.parametrize("source", RUNS)
def test_results_do_not_depend_on_the_order_of_threads(source, seeds, emulated, monkeypatch):
    ORDERS.check_seeds(source, seeds, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("source", RUNS)
def test_every_barrier_wait_and_fence_is_needed(source, emulated, monkeypatch):
    """Each skipped in turn: the emulator reports it, or a result differs."""
    ORDERS.usual(source)
    headers = ("products.h",) if source == "backward.cu" else ("products.h", "slabs.h")
    reasons = emulated_barriers.written(*(f"cuda/feed_forward/{name}" for name in (*headers, source)))
    reasons -= {"no block ends while another still reaches it"}  # of clusters
    assert reasons <= emulated_barriers.met() and len(reasons) >= 15, f"not met: {reasons - emulated_barriers.met()}"
    assert not emulated_barriers.not_missed(reasons, lambda: ORDERS.same(source), monkeypatch)


# ---- on the hardware --------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA, reason="needs a CUDA device")
@pytest.mark.parametrize("shape", [(16384, 1024, 3584), (4000, 2048, 5504), (1000, 776, 1000)], ids=str)
def test_no_races_at_size(shape, device):
    """The same bits twenty times, into outputs full of NaN, and as good as cuBLAS."""
    x, weight, down, gate_up = drawn(shape, torch.bfloat16, device)
    check_forward(x, weight)
    check_backward(x, down, gate_up)
    ops, first = torch.ops.emergence_cuda, None
    for _ in range(20):
        out = [torch.full(s, float("nan"), dtype=x.dtype, device=device) for s in (gate_up.shape, gate_up.shape)]
        y = torch.full((shape[0], shape[2]), float("nan"), dtype=x.dtype, device=device)
        ops.linear_swiglu(x, weight, out[0], y)
        ops.linear_swiglu_backward(x, down, gate_up, out[1])
        first = first or [*out, y]
        assert all(torch.equal(a, b) for a, b in zip(first, [*out, y]))
