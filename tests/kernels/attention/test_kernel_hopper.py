"""Hopper's attention (TMA, wgmma, warp specialisation), called directly.

Without a GPU the kernels' source runs in csrc/emulator, which executes the asynchronous instructions after the PTX ISA, as late
and as early as it allows, and whose race detector uses happens-before. On an H100 the same tests run the
compiled kernels.
"""

import math
from collections.abc import Iterator

import emulated_barriers
import pytest
import torch
from attention_cases import documents, make, plain
from kernel_checks import assert_as_good, leaves

from emergence_kernels.attention import hopper as attention_hopper
from emergence_kernels.attention.document_ranges import overlapping_and_equal_blocks
from emergence_kernels.attention.options import Options, Saved
from emergence_kernels.backends import build

CUDA = torch.cuda.is_available()
pytestmark = pytest.mark.usefixtures("hopper")


@pytest.fixture(autouse=True)
def tall_blocks(request, monkeypatch):
    """Forward's blocks of 192 rows at head dim 64, which are for long sequences, at the short ones of these tests."""
    if "short_blocks" not in request.fixturenames:
        monkeypatch.setattr(attention_hopper, "LONG", 0)


@pytest.fixture(scope="session")
def checks_library(cuda_library) -> str | None:
    """Reason why csrc/checks is unavailable, or None. The emulated library has it; a GPU's is a separate library."""
    if not CUDA:
        return cuda_library
    try:
        build.build("checks")
    except build.BuildError as error:
        if not build.library("checks").is_file():
            return str(error)
    torch.ops.load_library(str(build.library("checks")))
    return None


@pytest.fixture
def short_blocks():
    """Of 128 rows, as they are chosen."""
    assert attention_hopper.rows_of_forward(64, 2048) == 128 < attention_hopper.rows_of_forward(64, 2049)


# ---- the instructions -------------------------------------------------------------------------------------------------


BY_COPY, BY_THREADS, IN_REGISTERS = range(3)


def product(a, b, d, transposed_a=False, transposed_b=False, way=BY_COPY):
    """d + a b by TMA and wgmma; a (64, 64), b (64, N). way: of the operand a."""
    left = (a.T if transposed_a else a).contiguous().view(1, 64, 1, 64)
    right = (b if transposed_b else b.T).contiguous()
    right = right.view(1, right.shape[0], 1, right.shape[1])
    out = (d / 2).clone()
    torch.ops.emergence_cuda.hopper_product(left, right, out, transposed_a, transposed_b, way)
    return out


@pytest.mark.parametrize(
    "way, transposed_a",
    [(BY_COPY, False), (BY_COPY, True), (BY_THREADS, False), (BY_THREADS, True), (IN_REGISTERS, False)],
)
@pytest.mark.parametrize("transposed_b", [False, True])
@pytest.mark.parametrize("N", [64, 128, 256])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_products_in_every_form(way, transposed_a, transposed_b, N, dtype, device, checks_library):
    """Descriptors, swizzle and fragments: whole numbers, so nothing is rounded and every element must be right."""
    if checks_library:
        pytest.skip(checks_library)
    a, b = (torch.randint(-8, 9, shape).to(device, dtype) for shape in ((64, 64), (64, N)))
    d = torch.randint(-9, 9, (64, N)).to(device, torch.float32)
    assert torch.equal(product(a, b, d, transposed_a, transposed_b, way), a.float() @ b.float() + d)


# ---- attention --------------------------------------------------------------------------------------------------------

# name: (B, T, H, G, D), causal, documents, window, layout. Blocks have 192 queries (head dim 64) or 128, and 128 keys.
CASES = {
    "head dim 64": ((1, 200, 2, 2, 64), True, None, None, "plain"),
    "head dim 128": ((1, 270, 2, 1, 128), True, None, None, "plain"),
    "one token": ((2, 1, 2, 1, 64), True, None, None, "plain"),
    "round the ring": ((1, 690, 1, 1, 64), False, None, None, "plain"),
    "round the ring, 128": ((1, 515, 1, 1, 128), True, None, None, "plain"),
    "exact blocks": ((1, 384, 1, 1, 64), True, None, None, "plain"),
    "full": ((1, 331, 1, 1, 128), False, None, None, "plain"),
    "GQA": ((1, 140, 6, 2, 64), True, None, None, "plain"),
    "MQA": ((1, 130, 4, 1, 128), True, None, None, "plain"),
    "documents": ((2, 300, 1, 1, 64), True, "packed", None, "plain"),
    "long documents": ((1, 700, 1, 1, 128), True, "long", None, "plain"),
    "documents in any order": ((1, 270, 2, 1, 128), True, "random", None, "plain"),
    "full documents": ((1, 270, 2, 1, 64), False, "packed", None, "plain"),
    "window": ((1, 500, 1, 1, 64), True, None, 130, "plain"),
    "window of one": ((1, 135, 2, 1, 64), True, None, 1, "plain"),
    "wide window": ((1, 135, 2, 1, 128), True, None, 1000, "plain"),
    "full window": ((1, 400, 1, 1, 128), False, None, 40, "plain"),
    "window and documents": ((2, 270, 2, 1, 64), True, "packed", 11, "plain"),
    "peaked": ((1, 140, 2, 1, 64), True, None, None, "peaked"),
    "heads first": ((2, 134, 2, 2, 64), True, None, None, "heads first"),
    "expanded": ((2, 134, 2, 2, 64), True, None, None, "expanded"),
    "one projection": ((2, 134, 2, 2, 64), True, None, None, "one projection"),
}
NARROWEST = ("head dim 64", "head dim 128", "documents", "full window")
# Of the backward pass that adds parts of dq in any order, which differs in nothing but dq.
ADDED = ("head dim 64", "head dim 128", "one token", "GQA", "documents", "full window", "expanded")


def ids_of(kind, B, T, device):
    if kind == "long":  # some blocks of keys lie in one document with all of a block of queries
        return (torch.arange(T, device=device) >= T // 5).long().expand(B, T)
    return documents(kind, B, T, device)


def tried(case, dtype, device):
    shape, causal, kind, window, layout = CASES[case]
    q, k, v = make(shape, layout, dtype, device)
    ids = ids_of(kind, *shape[:2], device)
    return (q, k, v), dict(causal=causal, document_ids=ids, window=window, scale=0.3 if case == "GQA" else None)


@pytest.mark.parametrize("case", [case for case, (shape, *_) in CASES.items() if shape[-1] == 64])
def test_short_blocks_against_float64(case, device, short_blocks):
    test_forward_against_float64(case, torch.bfloat16, device)


@pytest.mark.parametrize(
    "case, dtype", [(c, torch.bfloat16) for c in CASES] + [(c, torch.float16) for c in NARROWEST], ids=str
)
def test_forward_against_float64(case, dtype, device):
    tensors, options = tried(case, dtype, device)
    out, lse = attention_hopper.forward(*tensors, Options(**options))
    exact = plain(*(t.double() for t in tensors), **options)
    assert out.shape == tensors[0].shape and out.dtype == dtype
    assert_as_good("out", out, exact, plain(*tensors, **options))
    wanted = scores(*tensors, **options).logsumexp(-1)
    assert (lse.double() * math.log(2) - wanted).abs().max() <= 2e-6 * (1 + wanted.abs().max())


@pytest.mark.parametrize(
    "case, dtype, deterministic",
    [
        pytest.param(c, t, d, id=f"{c}-{t}-{'deterministic' if d else 'added'}", marks=marks)
        for t, cases in ((torch.bfloat16, CASES), (torch.float16, NARROWEST))
        for c in cases
        for d in (True, False)
        for marks in [[] if d or c in ADDED or CUDA else [pytest.mark.slow]]
    ],
)
def test_backward_against_float64(case, dtype, deterministic, device):
    tensors, options = tried(case, dtype, device)
    upstream = torch.randn(tensors[0].shape, device=device).to(dtype)
    out, lse = attention_hopper.forward(*tensors, Options(**options))
    got = attention_hopper.backward(
        upstream, Saved(*tensors, out, lse), Options(**options, deterministic=deterministic)
    )
    results = []
    for kept in (torch.float64, dtype):
        copies = leaves(*tensors, dtype=kept)
        results.append(torch.autograd.grad(plain(*copies, **options), copies, upstream.to(kept)))
    for name, *three in zip(("dq", "dk", "dv"), got, *results):
        # ds = p * (dp - delta) cancels to 0 where a query sees one key only, and out was rounded before delta.
        alone = case in ("one token", "window of one")
        rounded = torch.finfo(dtype).eps / torch.finfo(torch.float32).eps * 0.1
        assert_as_good(name, *three, terms=rounded * upstream.float().norm().item() if alone else 0.0)


def scores(q, k, v, causal, document_ids, window, scale):
    """(B, H, T, T) in float64, -inf where hidden; the masks are plain()'s, of values that say which keys a query sees."""
    B, T, H, D = q.shape
    ones = torch.zeros(B, T, 1, D, dtype=torch.float64, device=q.device)
    marks = torch.eye(T, dtype=torch.float64, device=q.device).view(1, T, 1, T).expand(B, T, 1, T)
    seen = plain_weights(ones, ones, marks, causal, document_ids, window) > 0
    k = k.repeat_interleave(H // k.shape[2], dim=2)
    s = torch.einsum("bthd,bshd->bhts", q.double(), k.double()) * (D**-0.5 if scale is None else scale)
    return s.masked_fill(~seen, -math.inf)


def plain_weights(q, k, marks, causal, document_ids, window):
    return plain(q, k, marks, causal=causal, document_ids=document_ids, window=window).permute(0, 2, 1, 3)


@pytest.mark.parametrize("deterministic", [False, True], ids=["added", "deterministic"])
@pytest.mark.parametrize("scale", [-0.2, 0.0])
def test_scales_that_are_not_positive(scale, deterministic, device):
    tensors = make((1, 140, 2, 1, 64), "plain", torch.bfloat16, device)
    out, lse = attention_hopper.forward(*tensors, Options(scale=scale))
    exact = plain(*(t.double() for t in tensors), scale=scale)
    assert_as_good("out", out, exact, plain(*tensors, scale=scale))
    upstream = torch.randn_like(out)
    got = attention_hopper.backward(
        upstream, Saved(*tensors, out, lse), Options(scale=scale, deterministic=deterministic)
    )
    results = []
    for kept in (torch.float64, torch.bfloat16):
        copies = leaves(*tensors, dtype=kept)
        results.append(torch.autograd.grad(plain(*copies, scale=scale), copies, upstream.to(kept)))
    for name, *three in zip(("dq", "dk", "dv"), got, *results):
        assert_as_good(name, *three)


def test_ranges_of_documents():
    """[first, last) of blocks that may share an id, and of those that share a single one with all of the queries."""
    ids = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1, 1, 2]])
    assert overlapping_and_equal_blocks(ids, 4, 2).tolist() == [[[0, 5, 5, 5], [1, 5, 2, 4], [1, 5, 5, 5]]]
    mixed = torch.tensor([[7, 7, 1, 9, 7, 7]] * 2)  # the blocks of 7 are not neighbours: every block gets its mask
    assert overlapping_and_equal_blocks(mixed, 2, 2).tolist()[1][0] == [0, 3, 0, 0]


def test_what_is_taken():
    def unsupported_reason(dtype, D):
        return attention_hopper.unsupported_reason(torch.empty(1, 1, 1, D, dtype=dtype))

    assert unsupported_reason(torch.bfloat16, 64) is None and unsupported_reason(torch.float16, 128) is None
    assert "float32" in unsupported_reason(torch.float32, 64) and "80" in unsupported_reason(torch.bfloat16, 80)


# ---- thread orders, races, fences -------------------------------------------------------------------------------------


def run_forward() -> Iterator[torch.Tensor]:
    """On shapes that wrap around every ring and execute every barrier: of many blocks of keys, and of one alone."""
    torch.manual_seed(0)
    for T, H in ((450, 2), (100, 8)):
        for D in (64, 128):
            tensors = make((1, T, H, 1, D), "plain", torch.bfloat16, "cpu")
            yield from attention_hopper.forward(*tensors, Options(False, None, ids_of("long", 1, T, "cpu")))


def run_backward() -> Iterator[torch.Tensor]:
    """Six gradients that must be the same to the bit, then dq, whose parts are added in any order, and dk and dv."""
    torch.manual_seed(0)
    T, ids = 200, ids_of("long", 1, 200, "cpu")
    for deterministic in (True, False):
        for D in (64, 128):
            tensors = make((1, T, 2, 2, D), "plain", torch.bfloat16, "cpu")
            upstream, result, lse = torch.randn(1, T, 2, D).bfloat16(), tensors[0] * 0.3, torch.full((1, 2, T), 8.5)
            options = Options(False, None, ids, None, deterministic)
            yield from attention_hopper.backward(upstream, Saved(*tensors, result, lse), options)


def run_products() -> Iterator[torch.Tensor]:
    torch.manual_seed(0)
    a, b = (torch.randn(64, 64).bfloat16() for _ in range(2))
    for way in (BY_COPY, BY_THREADS, IN_REGISTERS):
        yield product(a, b, torch.zeros(64, 64), way=way)


RUNS = {
    "cuda/attention/hopper_forward.cu": run_forward,
    "cuda/attention/hopper_backward.cu": run_backward,
    "checks/hopper_check.cu": run_products,
}


ORDERS = emulated_barriers.Orders(RUNS, hopper_backward=(6, 9))


@pytest.mark.parametrize("seeds", [(1,), pytest.param(range(2, 9), marks=pytest.mark.slow)], ids=["first", "more"])
@pytest.mark.parametrize("source", RUNS)
def test_results_do_not_depend_on_the_order_of_threads(source, seeds, emulated, monkeypatch):
    """The same bits in any order of threads, copies and products; sums in any order are close."""
    ORDERS.check_seeds(source, seeds, monkeypatch)


@pytest.mark.parametrize(
    "source", [pytest.param(source, marks=[pytest.mark.slow] if "attention" in source else []) for source in RUNS]
)
def test_every_barrier_wait_and_fence_is_needed(source, emulated, monkeypatch):
    """Each skipped in turn: the emulator reports it, or a result was read before its product wrote it (NaN)."""
    ORDERS.usual(source)
    header = source.replace(".cu", ".h")
    reasons = emulated_barriers.written(source, *([header] if (build.SOURCES / header).is_file() else []))
    assert reasons <= emulated_barriers.met() and len(reasons) >= 9, f"not met: {reasons - emulated_barriers.met()}"
    assert not emulated_barriers.not_missed(reasons, lambda: ORDERS.same(source), monkeypatch)
