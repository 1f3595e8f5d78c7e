"""attention against a float64 oracle written out with a full matrix of scores."""

import importlib
import importlib.machinery
import importlib.util
import math
import sys
import types
from functools import partial

import pytest
import torch
from attention_cases import documents, make, plain
from compiled import COMPILED
from kernel_checks import assert_as_good, leaves, narrow, of_attention

import emergence_kernels as ek
from emergence_kernels.attention.document_ranges import overlapping_and_equal_blocks, overlapping_blocks
from emergence_kernels.attention.options import Options

# name: (B, T, H, G, D), causal, documents, window, layout
CASES = {
    "head dim 64": ((1, 48, 2, 2, 64), True, None, None, "plain"),
    "head dim 80": ((1, 37, 2, 1, 80), True, None, None, "plain"),
    "head dim 96": ((1, 33, 1, 1, 96), True, None, None, "plain"),
    "head dim 128": ((1, 32, 2, 1, 128), True, None, None, "plain"),
    "odd head dim": ((1, 19, 2, 2, 20), True, None, None, "plain"),
    "prime length": ((2, 43, 3, 1, 16), True, None, None, "plain"),
    "one token": ((2, 1, 2, 1, 16), True, None, None, "plain"),
    "full": ((1, 53, 2, 2, 16), False, None, None, "plain"),
    "full, even": ((1, 64, 2, 1, 16), False, None, None, "plain"),
    "GQA": ((1, 40, 6, 2, 16), True, None, None, "plain"),
    "MQA": ((1, 40, 4, 1, 16), True, None, None, "plain"),
    "documents": ((2, 70, 2, 1, 16), True, "packed", None, "plain"),
    "documents in any order": ((1, 70, 2, 1, 16), True, "random", None, "plain"),
    "full documents": ((1, 70, 2, 1, 16), False, "packed", None, "plain"),
    "window": ((1, 90, 2, 1, 16), True, None, 21, "plain"),
    "window of one": ((1, 35, 2, 1, 16), True, None, 1, "plain"),
    "wide window": ((1, 35, 2, 1, 16), True, None, 1000, "plain"),
    "full window": ((1, 90, 2, 1, 16), False, None, 17, "plain"),
    "window and documents": ((2, 70, 2, 1, 16), True, "packed", 11, "plain"),
    "peaked": ((1, 40, 2, 1, 16), True, None, None, "peaked"),
    "heads first": ((2, 34, 2, 2, 16), True, None, None, "heads first"),
    "expanded": ((2, 34, 2, 2, 16), True, None, None, "expanded"),
    "one projection": ((2, 34, 2, 2, 16), True, None, None, "one projection"),
}


# Loops of several blocks, as compilers pipeline them.
LONG = {
    "several blocks": ((1, 300, 2, 1, 64), True, None, None, "plain"),
    "several blocks, 128": ((1, 270, 2, 1, 128), True, None, None, "plain"),
    "several blocks, 80": ((1, 200, 2, 1, 80), True, None, None, "one projection"),
    "several blocks, full": ((1, 389, 1, 1, 64), False, None, None, "plain"),
    "exact blocks": ((1, 384, 2, 1, 64), True, None, None, "heads first"),
    "exact blocks, full, 128": ((1, 256, 1, 1, 128), False, None, None, "plain"),
    "exact blocks, 32": ((1, 256, 2, 1, 32), True, None, None, "plain"),
    "several blocks, GQA": ((1, 200, 6, 2, 64), True, None, None, "plain"),
    "several documents": ((2, 300, 2, 1, 64), True, "packed", None, "plain"),
    "several documents, 128": ((1, 300, 2, 1, 128), True, "random", None, "plain"),
    "several windows": ((1, 400, 2, 1, 64), True, None, 130, "plain"),
    "several windows, full, 128": ((1, 300, 1, 1, 128), False, None, 40, "plain"),
    "windows and documents, 128": ((2, 270, 2, 1, 128), True, "packed", 77, "plain"),
}
NARROW = ("head dim 80", "GQA", "window and documents", "peaked", "full")  # the masks are tested in float32
TRIED = [(case, torch.float32) for case in CASES] + [(case, torch.bfloat16) for case in NARROW]
if COMPILED:
    CASES |= LONG
    TRIED += [(case, dtype) for case in LONG for dtype in (torch.bfloat16, torch.float16)]


@pytest.mark.parametrize("case, dtype", TRIED, ids=str)
def test_against_float64(case, dtype, backend, device):
    shape, causal, kind, window, layout = CASES[case]
    dtype = of_attention(backend, dtype)
    q, k, v = make(shape, layout, dtype, device)
    if backend == "cuda" and shape[-1] % 8:
        with pytest.raises(ek.BackendError, match="head dim 20 is not a multiple of 8"):
            ek.attention(q, k, v, backend=backend)
        return
    ids = documents(kind, *shape[:2], device)
    options = dict(causal=causal, document_ids=ids, window=window, scale=0.3 if case == "GQA" else None)
    upstream = torch.randn(q.shape, device=device).to(dtype)
    tracked = [t.detach().requires_grad_() for t in (q, k, v)]
    out = ek.attention(*tracked, backend=backend, **options)
    assert out.shape == q.shape and out.dtype == dtype
    got = [out.detach(), *torch.autograd.grad(out, tracked, upstream)]
    results = []
    for kept in (torch.float64, dtype):
        copies = leaves(q, k, v, dtype=kept)
        other = plain(*copies, **options)
        results.append([other.detach(), *torch.autograd.grad(other, copies, upstream.to(kept))])
    for name, *three in zip(("out", "dq", "dk", "dv"), got, *results):
        # ds = p * (dp - delta) cancels to 0 where a query sees one key only.
        # Scores of 70 carry an eps of 70 into exp2 where they are scaled by log2(e), and PyTorch's by a power of two.
        floor = 8.0 if layout == "peaked" else 2.0
        assert_as_good(name, *three, floor=floor, terms=upstream.float().norm().item())


@pytest.mark.parametrize("causal", [True, False])
def test_every_window(causal, fused, device):
    """Of every remainder of a block of 32: neither a key nor a query more or less than there are within it."""
    T, D = (75, 16) if fused != "cuda" else (140, 64)
    q, k, v = make((1, T, 1, 1, D), "plain", of_attention(fused), device)
    upstream, copies = torch.randn_like(q), leaves(q, k, v, dtype=torch.float64)
    windows = range(1, 38) if fused != "cuda" or COMPILED else (2, 17, 66)  # emulated: 5 s each
    for window in windows:
        tracked = [t.detach().requires_grad_() for t in (q, k, v)]
        out = ek.attention(*tracked, causal=causal, window=window, backend=fused)
        exact = plain(*copies, causal=causal, window=window)
        got = [out, *torch.autograd.grad(out, tracked, upstream)]
        wanted = [exact, *torch.autograd.grad(exact, copies, upstream.double())]
        atol = 2e-5 if out.dtype == torch.float32 else 5e-2
        assert all(torch.allclose(a.double(), b, atol=atol) for a, b in zip(got, wanted)), window


@pytest.mark.parametrize("scale", [-0.4, 0.0])
def test_scales_that_are_not_positive(scale, backend, device):
    dtype = of_attention(backend)
    tracked = [t.requires_grad_() for t in make((1, 37, 2, 1, 64), "plain", dtype, device)]
    results = []
    for kept in (None, torch.float64, dtype):
        copies = tracked if kept is None else leaves(*tracked, dtype=kept)
        out = ek.attention(*copies, scale=scale, backend=backend) if kept is None else plain(*copies, scale=scale)
        upstream = torch.ones_like(out)
        results.append([out.detach(), *torch.autograd.grad(out, copies, upstream)])
    for name, *three in zip(("out", "dq", "dk", "dv"), *results):
        assert_as_good(name, *three, terms=upstream.float().norm().item())


def test_documents_whose_ids_differ_above_32_bits(backend, device):
    q = torch.randn(1, 8, 2, 16).to(device, of_attention(backend))
    ids = torch.arange(8, device=device)[None] // 3
    near, far = (ek.attention(q, q, q, document_ids=these, backend=backend) for these in (ids, ids << 32))
    assert torch.equal(near, far) and not torch.equal(near, ek.attention(q, q, q, backend=backend))


def test_upstream_gradients(backend, device):
    """Zero, and expanded as from .sum(); the caller's tensors are not written."""
    dtype = of_attention(backend)
    q, k, v = (t.requires_grad_() for t in make((1, 21, 2, 1, 16), "plain", dtype, device))
    out = ek.attention(q, k, v, backend=backend)
    assert not any(g.any() for g in torch.autograd.grad(out, (q, k, v), torch.zeros_like(out), retain_graph=True))
    upstream = torch.tensor(0.5, device=device).expand(out.shape)
    got = torch.autograd.grad(out, (q, k, v), upstream)
    copies = leaves(q, k, v, dtype=torch.float64)
    exact = torch.autograd.grad(plain(*copies), copies, upstream.double())
    atol = 1e-5 if dtype == torch.float32 else 2e-2
    assert all(torch.allclose(a.double(), b, atol=atol) for a, b in zip(got, exact))


def test_deterministic_and_second_backward(backend, device):
    q, k, v = (t.requires_grad_() for t in make((1, 40, 4, 2, 16), "plain", narrow(backend), device))
    out = ek.attention(q, k, v, deterministic=True, backend=backend)
    upstream = torch.randn_like(out)
    first = torch.autograd.grad(out, (q, k, v), upstream, retain_graph=True)
    second = torch.autograd.grad(out, (q, k, v), upstream)
    assert all(torch.equal(a, b) for a, b in zip(first, second))
    again = ek.attention(q, k, v, deterministic=True, backend=backend)
    assert torch.equal(out, again)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(out, (q, k, v), upstream)


def test_torch_may_ask_for_determinism(device, monkeypatch):
    q = torch.randn(1, 9, 2, 16, device=device, requires_grad=True)
    op, seen = importlib.import_module("emergence_kernels.attention.op"), []
    monkeypatch.setattr(op, "_attention", lambda *inputs: seen.append(inputs[7]) or inputs[:1])
    monkeypatch.setattr(op, "resolve_backend", lambda *_: "cuda")
    ek.attention(q, q, q)
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    ek.attention(q, q, q)
    assert seen == [False, True]


def test_lse_is_kept(fused, device):
    module = "compiled" if fused == "cuda" else fused
    forward = importlib.import_module(f"emergence_kernels.attention.{module}").forward
    q, k, v = make((1, 37, 2, 2, 16), "plain", of_attention(fused), device)
    _, lse = forward(q, k, v, Options())
    scores = torch.einsum("bthd,bshd->bhts", q.double(), k.double()) / 4
    hidden = torch.ones(37, 37, device=device).triu(1).bool()
    exact = torch.logsumexp(scores.masked_fill(hidden, float("-inf")), -1)
    base = 1.0 if fused == "cpu" else math.log(2)
    assert torch.allclose(lse.double() * base, exact, atol=1e-5)


def test_ranges_of_many_sequences_are_launched(triton_only, monkeypatch):
    """A grid's second and third axes end at 65,535."""
    from emergence_kernels.attention import triton_document_ranges

    grids = []

    class Kernel:
        def __getitem__(self, grid):
            grids.append((*grid, 1, 1)[:3])
            return lambda *_, **__: None

    monkeypatch.setattr(triton_document_ranges, "_ranges_kernel", Kernel())
    triton_document_ranges.block_ranges(torch.zeros(70000, 130, dtype=torch.int32), 64, 64, equal=True)
    assert grids[0][0] < 2**31 and max(grids[0][1:]) <= 65535 and grids[0][0] * grids[0][1] * grids[0][2] == 3 * 70000


def test_ranges_of_documents():
    ids = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 2, 2, 2]])
    assert overlapping_blocks(ids, 4, 2).tolist() == [[[0, 4], [1, 5], [3, 5]]]
    shuffled = torch.tensor([[3, 0, 3, 1]])  # a safe bound: the block (3, 0) may share an id with everything
    assert overlapping_blocks(shuffled, 2, 2).tolist() == [[[0, 2], [0, 2]]]
    packed = torch.tensor([[0, 0, 0, 0, 0, 1, 1, 1, 1]])
    assert overlapping_and_equal_blocks(packed, 2, 2)[0].tolist() == [
        [0, 3, 0, 2],
        [0, 3, 0, 2],
        [0, 5, 5, 5],
        [2, 5, 3, 5],
        [2, 5, 3, 5],
    ]
    apart = torch.tensor([[0, 0, 1, 1, 0, 0]])  # the blocks of id 0 have another one in between: none is named
    first, last = overlapping_and_equal_blocks(apart, 2, 2)[0, 0, 2:].tolist()
    assert first >= last


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("B, T", [(2, 70), (1, 1), (1, 321)])
def test_ranges_in_one_launch(B, T, dtype, triton_only, device, monkeypatch):
    """Equal to the reductions of document_ranges.py, of which the test above has values worked out by hand."""
    from emergence_kernels.attention import triton_document_ranges
    from emergence_kernels.attention.triton_document_ranges import block_ranges

    monkeypatch.setattr(triton_document_ranges, "AT_A_TIME", 128)  # several turns of the loop
    torch.manual_seed(T)
    extremes = torch.tensor([torch.iinfo(dtype).min, torch.iinfo(dtype).max], dtype=dtype)
    kinds = [documents("packed", B, T, device), torch.randint(-3, 3, (B, T)), extremes[torch.randint(2, (B, T))]]
    for ids in (kind.to(device, dtype) for kind in kinds):
        for rows, columns in ((128, 128), (192, 64), (64, 32)):
            for equal, reference in ((True, overlapping_and_equal_blocks), (False, overlapping_blocks)):
                assert torch.equal(block_ranges(ids, rows, columns, equal=equal), reference(ids, rows, columns))


def test_opcheck(fused, device):
    q, k, v = (t.requires_grad_() for t in make((1, 17, 2, 1, 16), "plain", of_attention(fused), device))
    ids = documents("packed", 1, 17, device)
    torch.library.opcheck(torch.ops.emergence_kernels.attention, (q, k, v, True, None, ids, 5, True, fused))
    lse = torch.rand(1, 2, 17, device=device)
    arguments = [t.detach() for t in (torch.randn_like(q), q, k, v, q, lse)]
    torch.library.opcheck(torch.ops.emergence_kernels.attention_backward, (*arguments, True, None, ids, 5, True, fused))


def test_whole_graph(backend, device):
    start = make((1, 17, 2, 1, 16), "plain", of_attention(backend), device)

    def step(q, k, v):
        return (ek.attention(q * 1.0, k, v, window=6, backend=backend) ** 2).sum()

    eager, compiled = [], []
    for results, run in ((eager, step), (compiled, torch.compile(step, fullgraph=True, backend="aot_eager"))):
        tensors = leaves(*start)
        loss = run(*tensors)
        loss.backward()
        results += [loss, *(t.grad for t in tensors)]
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(eager, compiled))


def test_flash_by_sdpa(device, monkeypatch):
    """The flash backend's calls, where a CPU has such kernels: layout, grouping, scale, whole graphs."""
    from emergence_kernels.attention import flash as flash_backend

    monkeypatch.setattr(flash_backend, "generation", lambda q: None)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    q, k, v = make((2, 33, 4, 4, 16), "plain", dtype, device)
    for causal in (True, False):

        def run(q, k, v, causal=causal):
            return flash_backend.attention(q, k, v, causal=causal, scale=0.3, window=None, deterministic=False)

        exact = plain(*(t.double() for t in (q, k, v)), causal=causal, scale=0.3)
        for each in (run, torch.compile(run, fullgraph=True, backend="aot_eager")):
            assert (each(q, k, v).double() - exact).norm() <= 0.01 * exact.norm()


@pytest.mark.parametrize(
    "capability, version, off, good",
    [
        ((9, 0), 91900, "", True),
        ((9, 0), 91500, "", False),
        ((10, 0), 92000, "", True),
        ((10, 3), 92000, "", False),
        ((8, 0), 91900, "", False),
        ((12, 0), 91900, "", False),
        ((9, 0), None, "", False),
        ((9, 0), 91900, "by torch", False),
        ((9, 0), 91900, "by the environment", False),
    ],
)
def test_cudnn_is_forced_only_where_pytorch_prefers_it(capability, version, off, good, monkeypatch):
    from emergence_kernels.attention import flash as flash_backend

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: version)
    if off == "by the environment":
        monkeypatch.setenv("TORCH_CUDNN_SDPA_DEPRIORITIZED", "1")
    usual = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(off != "by torch")
    try:
        assert flash_backend._good_cudnn(torch.device("cuda")) is good
    finally:
        torch.backends.cuda.enable_cudnn_sdp(usual)
    assert not flash_backend._good_cudnn(torch.device("cpu"))


@pytest.mark.parametrize("cudnn", [True, False])
def test_cudnn_comes_first_where_it_is_good(cudnn, monkeypatch):
    """Unless set_priority is given, PyTorch tries the kernels in an order of its own."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    from emergence_kernels.attention import flash as flash_backend

    orders = []

    def kernels(order, **options):
        orders.append((order, options))
        return sdpa_kernel([SDPBackend.MATH])

    monkeypatch.setattr(flash_backend, "generation", lambda q: None)
    monkeypatch.setattr(flash_backend, "_good_cudnn", lambda device: cudnn)
    monkeypatch.setattr(flash_backend, "sdpa_kernel", kernels)
    q = torch.randn(1, 4, 2, 16)
    flash_backend.attention(q, q, q, causal=True, scale=None, window=None, deterministic=False)
    order = [SDPBackend.CUDNN_ATTENTION] * cudnn + [SDPBackend.FLASH_ATTENTION]
    assert orders == [(order, {"set_priority": True})]


GOOD = "flash_attn_func = None\n"
COMPILED_BY = "import a_stand_in_for_cutlass\n"
FLASH_ATTN = {
    "none": ({}, (), "not installed"),
    "2": ({"flash_attn/__init__.py": GOOD}, (2,), "not installed for this device"),  # nothing of 4, which is absent
    "2 of another torch": (
        {"flash_attn/__init__.py": "raise OSError('undefined symbol')"},
        (),
        "OSError: undefined symbol",
    ),
    "half of 4": ({"flash_attn/cute/__init__.py": COMPILED_BY + GOOD}, (), "No module named 'a_stand_in_for_cutlass'"),
    "4": ({"flash_attn/cute/__init__.py": COMPILED_BY + GOOD, "a_stand_in_for_cutlass.py": ""}, (4,), ""),
    "3 of another torch, 2": (
        {"flash_attn_interface.py": "raise ImportError('libc10.so')", "flash_attn/__init__.py": GOOD},
        (2,),
        "flash-attn 3 cannot be imported: ImportError: libc10.so",
    ),
    "all": (
        {
            "flash_attn_interface.py": GOOD,
            "flash_attn/__init__.py": GOOD,
            "flash_attn/cute/__init__.py": COMPILED_BY + GOOD,
            "a_stand_in_for_cutlass.py": "",
        },
        (3, 4, 2),
        "",
    ),
}


@pytest.mark.parametrize("case", FLASH_ATTN)
def test_flash_attn_that_cannot_be_imported_is_skipped(case, tmp_path, monkeypatch):
    """With a reason. The fourth generation is part of a package that only the second completes."""
    from emergence_kernels.attention import flash as flash_backend

    files, generations, reason = FLASH_ATTN[case]
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    modules = dict(sys.modules)
    for name in [name for name in modules if name.startswith(("flash_attn", "a_stand_in"))]:
        del sys.modules[name]
    flash_backend.import_error.cache_clear()
    try:
        assert flash_backend.installed() == generations
        assert flash_backend.generation(torch.empty(1, 4, 2, 64)) == (generations or (None,))[0]
        assert reason in flash_backend.missing()
    finally:
        flash_backend.import_error.cache_clear()
        for name in set(sys.modules) - set(modules):
            if name.startswith(("flash_attn", "a_stand_in")):
                del sys.modules[name]
        sys.modules.update(modules)


@pytest.mark.parametrize(
    "capability, D, compiling, taken",
    [
        (8, 64, False, 2),
        (9, 64, False, 3),
        (10, 64, False, 4),
        (10, 256, False, 2),
        (10, 64, True, 2),
        (12, 64, False, 2),
    ],
)
def test_the_generation_that_fits_is_taken(capability, D, compiling, taken, monkeypatch):
    """And called by its own interface."""
    from emergence_kernels.attention import flash as flash_backend

    seen = {}

    def module(generation):
        def flash_attn_func(q, k, v, **options):
            seen.update(generation=generation, **options)
            return (q, None) if generation == 4 else q

        return types.SimpleNamespace(flash_attn_func=flash_attn_func)

    for generation, name in ((2, "flash_attn"), (3, "flash_attn_interface"), (4, "flash_attn.cute")):
        monkeypatch.setitem(sys.modules, name, module(generation))
    monkeypatch.setattr(flash_backend, "import_error", lambda generation: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (capability, 0))
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
    q = torch.randn(1, 4, 2, D)
    run = partial(flash_backend.attention, q, q, q, scale=0.5, deterministic=True)
    assert run(causal=True, window=None) is q
    everything = (None, None) if taken == 4 else (-1, -1)
    wanted = dict(generation=taken, softmax_scale=0.5, causal=True, window_size=everything, deterministic=True)
    assert seen == wanted
    run(causal=True, window=3)
    assert seen["window_size"] == (2, 0)
    run(causal=False, window=3)
    assert seen["window_size"] == (2, 2)


def test_what_flash_refuses(monkeypatch):
    from emergence_kernels.attention import flash as flash_backend
    from emergence_kernels.attention.flash import unsupported_reason

    monkeypatch.setattr(flash_backend, "generation", lambda q: None)

    assert "CUDA" in unsupported_reason(
        torch.empty(1, 2, 1, 64, dtype=torch.bfloat16, device="meta"), None, None, False
    )

    class OnCuda(torch.Tensor):
        device = torch.device("cuda")

    def on_cuda(dtype=torch.bfloat16, D=64, plan=None, window=None, deterministic=False, causal=True):
        q = torch.empty(1, 2, 1, D, dtype=dtype).as_subclass(OnCuda)
        return unsupported_reason(q, plan, window, deterministic, causal)

    assert on_cuda() is None
    assert "float32" in on_cuda(torch.float32)
    assert "60" in on_cuda(D=60)
    assert "window" in on_cuda(window=3) and "deterministic" in on_cuda(deterministic=True)
    plan = ek.DocumentPlan(torch.zeros(1, 2), cu_seqlens=torch.tensor([0, 2]))
    assert "not installed" in on_cuda(plan=plan)
    monkeypatch.setattr(flash_backend, "generation", lambda q: 4)
    assert on_cuda(plan=plan) is None and on_cuda(window=3, deterministic=True) is None
    assert "adjacent=True" in on_cuda(plan=plan._replace(cu_seqlens=None))
    assert "window" in on_cuda(plan=plan, window=3) and "causal" in on_cuda(plan=plan, causal=False)
    assert "deterministic" in on_cuda(plan=plan, deterministic=True)


def test_wrong_arguments(device):
    q, k = torch.randn(2, 5, 4, 8, device=device), torch.randn(2, 5, 2, 8, device=device)
    for arguments, options, message in [
        ((q[0], k, k), {}, "q must be"),
        ((q, k, k[:, :, :1]), {}, "k has shape .* but v has"),
        ((q, k[:, :3], k[:, :3]), {}, "expected"),
        ((q[:, :, :3], k, k), {}, "must divide 3"),
        ((q, k.double(), k), {}, "dtype"),
        ((q, k, k), {"window": 0}, "at least 1"),
        ((q, k, k), {"document_ids": torch.zeros(2, 4, device=device)}, "document_ids have shape"),
        ((q, k, k), {"document_ids": torch.zeros(2, 5, device=device)}, "int32 or int64"),
    ]:
        with pytest.raises(ValueError, match=message):
            ek.attention(*arguments, **options)
    wide = torch.randn(1, 2, 1, 136, device=device)
    with pytest.raises(ek.BackendError, match="head dim 136 is more than 128"):
        ek.attention(wide, wide, wide, backend="triton")
    with pytest.raises(ek.BackendError, match="flash"):
        ek.attention(q, k, k, backend="flash")  # float32, on any device
    with pytest.raises(ek.BackendError, match="'cuda' cannot run: it supports bfloat16 and float16, not torch.float32"):
        ek.attention(q, k, k, backend="cuda")
    with pytest.raises(ek.BackendError, match="head dim 136 is not a multiple of 8 up to 128"):
        ek.attention(*(wide.bfloat16(),) * 3, backend="cuda")
