"""Hopper's attention (TMA, wgmma, warp specialisation), called directly.

Without a GPU the kernels' own source runs in csrc/emulate_hopper.h, which does what the PTX ISA says of the asynchronous
instructions, as late and as early as it allows, and whose referee judges by happens-before. On an H100 the same tests run
the compiled kernels.
"""

import ctypes
import math
import os
import re
import subprocess
from pathlib import Path

import pytest
import torch
from kernel_checks import assert_as_good
from test_kernel_attention import documents, make, plain

from emergence_kernels.compiled import attention_hopper, build, library

CUDA = torch.cuda.is_available()
SOURCES = ("attention_hopper.cu", "hopper_check.cu")


@pytest.fixture(autouse=True)
def hopper(request):
    if reason := request.getfixturevalue("cuda_library"):
        pytest.skip(reason)
    if CUDA and torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("not a Hopper GPU")


@pytest.fixture
def emulated():
    if CUDA:
        pytest.skip("a GPU's threads cannot be told their order")


# ---- the instructions -------------------------------------------------------------------------------------------------


def product(a, b, d, transposed_a=False, transposed_b=False, registers=False):
    """d + a b by TMA and wgmma; a (64, 64), b (64, N)."""
    left = (a.T if transposed_a else a).contiguous().view(1, 64, 1, 64)
    right = (b if transposed_b else b.T).contiguous()
    right = right.view(1, right.shape[0], 1, right.shape[1])
    out = (d / 2).clone()
    torch.ops.emergence_cuda.hopper_product(left, right, out, transposed_a, transposed_b, registers)
    return out


@pytest.mark.parametrize("registers, transposed_a", [(False, False), (False, True), (True, False)])
@pytest.mark.parametrize("transposed_b", [False, True])
@pytest.mark.parametrize("N", [64, 128])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_products_in_every_form(registers, transposed_a, transposed_b, N, dtype, device):
    """Descriptors, swizzle and fragments: whole numbers, so nothing is rounded and every element must be right."""
    a, b = (torch.randint(-8, 9, shape).to(device, dtype) for shape in ((64, 64), (64, N)))
    d = torch.randint(-9, 9, (64, N)).to(device, torch.float32)
    assert torch.equal(product(a, b, d, transposed_a, transposed_b, registers), a.float() @ b.float() + d)


# ---- attention --------------------------------------------------------------------------------------------------------

# name: (B, T, H, G, D), causal, documents, window, layout. Blocks have 192 queries (head dim 64) or 128, and 128 keys.
CASES = {
    "head dim 64": ((1, 200, 2, 2, 64), True, None, None, "plain"),
    "head dim 128": ((1, 270, 2, 1, 128), True, None, None, "plain"),
    "one token": ((2, 1, 2, 1, 64), True, None, None, "plain"),
    "round the ring": ((1, 690, 1, 1, 64), False, None, None, "plain"),
    "round the ring, 128": ((1, 515, 1, 1, 128), True, None, None, "plain"),
    "exact blocks": ((1, 384, 1, 1, 64), True, None, None, "plain"),
    "full": ((1, 331, 2, 2, 128), False, None, None, "plain"),
    "GQA": ((1, 140, 6, 2, 64), True, None, None, "plain"),
    "MQA": ((1, 130, 4, 1, 128), True, None, None, "plain"),
    "documents": ((2, 300, 2, 1, 64), True, "packed", None, "plain"),
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


def ids_of(kind, B, T, device):
    if kind == "long":  # some blocks of keys lie in one document with all of a block of queries
        return (torch.arange(T, device=device) >= T // 5).long().expand(B, T)
    return documents(kind, B, T, device)


def tried(case, dtype, device):
    shape, causal, kind, window, layout = CASES[case]
    q, k, v = make(shape, layout, dtype, device)
    ids = ids_of(kind, *shape[:2], device)
    return (q, k, v), dict(causal=causal, document_ids=ids, window=window, scale=0.3 if case == "GQA" else None)


@pytest.mark.parametrize(
    "case, dtype", [(c, torch.bfloat16) for c in CASES] + [(c, torch.float16) for c in NARROWEST], ids=str
)
def test_forward_against_float64(case, dtype, device):
    tensors, options = tried(case, dtype, device)
    out, lse = attention_hopper.forward(*tensors, **options)
    exact = plain(*(t.double() for t in tensors), **options)
    assert out.shape == tensors[0].shape and out.dtype == dtype
    assert_as_good("out", out, exact, plain(*tensors, **options))
    wanted = scores(*tensors, **options).logsumexp(-1)
    assert (lse.double() * math.log(2) - wanted).abs().max() <= 2e-6 * (1 + wanted.abs().max())


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


@pytest.mark.parametrize("scale", [-0.2, 0.0])
def test_scales_that_are_not_positive(scale, device):
    tensors = make((1, 140, 2, 1, 64), "plain", torch.bfloat16, device)
    out, _ = attention_hopper.forward(*tensors, True, scale, None, None)
    exact = plain(*(t.double() for t in tensors), scale=scale)
    assert_as_good("out", out, exact, plain(*tensors, scale=scale))


def test_ranges_of_documents():
    """[first, last) of blocks that may share an id, and of those that share a single one with all of the queries."""
    ids = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1, 1, 2]])
    assert attention_hopper.key_ranges(ids, 4, 2).tolist() == [[[0, 5, 5, 5], [1, 5, 2, 4], [1, 5, 5, 5]]]
    mixed = torch.tensor([[7, 7, 1, 9, 7, 7]])  # the blocks of 7 are not neighbours: every block gets its mask
    assert attention_hopper.key_ranges(mixed, 2, 2).tolist()[0][0] == [0, 3, 0, 0]


def test_what_is_taken():
    def why_not(dtype, D):
        return attention_hopper.why_not(torch.empty(1, 1, 1, D, dtype=dtype))

    assert why_not(torch.bfloat16, 64) is None and why_not(torch.float16, 128) is None
    assert "float32" in why_not(torch.float32, 64) and "80" in why_not(torch.bfloat16, 80)


# ---- thread orders, races, fences -------------------------------------------------------------------------------------


def everything() -> list[torch.Tensor]:
    """Each kernel on shapes that go round the ring and meet every barrier."""
    torch.manual_seed(0)
    out = []
    for D in (64, 128):
        q, k, v = make((1, 700, 1, 1, D), "plain", torch.bfloat16, "cpu")
        out += attention_hopper.forward(q, k, v, False, None, ids_of("long", 1, 700, "cpu"), None)
    a, b = (torch.randn(64, 64).bfloat16() for _ in range(2))
    return [*out, product(a, b, torch.zeros(64, 64), registers=True), product(a, b, torch.zeros(64, 64))]


def test_the_order_of_threads_and_of_what_is_asynchronous_does_not_matter(emulated, monkeypatch):
    """Bit for bit the same, whoever runs first and whenever copies and products happen."""
    usual = everything()
    for seed in range(1, 6):
        monkeypatch.setenv("EMERGENCE_EMULATE_SEED", str(seed))
        assert all(torch.equal(a, b) for a, b in zip(usual, everything()))


def test_every_barrier_wait_and_fence_is_needed(emulated, monkeypatch):
    """Each left out in turn: the emulator objects, or what a product had not yet written was read (NaN).

    Turns order nothing that is shared, and only save time.
    """
    usual = everything()
    read = ctypes.CDLL(os.environ[library.VARIABLES["cuda"]]).emergence_barriers
    read.restype = ctypes.c_char_p
    met = set(read().decode().splitlines())
    reasons = set()
    for name in SOURCES:
        reasons |= set(re.findall(r'"([^"]{20,})"\);', (build.SOURCES / name).read_text().split("using glue::Tensor")[0]))
    assert reasons - met == set() and len(reasons) > 20, "the shapes of everything() miss some"
    for reason in sorted(reasons):
        if "in turns" in reason:
            continue
        monkeypatch.setenv("EMERGENCE_EMULATE_DROP", reason)
        try:
            missed = all(torch.equal(a, b) for a, b in zip(usual, everything()))
        except RuntimeError as error:
            assert "emulated launch" in str(error)
            missed = False
        assert not missed, f"nobody missed: {reason}"


# ---- the compiled code ------------------------------------------------------------------------------------------------


def disassembler() -> Path | None:
    try:
        import triton
    except ImportError:
        return None
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    return tool if tool.is_file() else None


@pytest.mark.skipif(build.nvcc() is None, reason="no nvcc")
def test_nvcc_compiles_products_that_overlap(tmp_path):
    """No spills; no products that ptxas had to serialise or help with fences; the softmax stays before the wait after it."""
    out = tmp_path / "emergence_cuda.so"
    said = build.build("cuda", out, archs=build.ARCHITECTURES, extra=("-Xptxas", "-v"))
    kernels = re.findall(r"Compiling entry function '(\S*(?:forward_hopper|product_kernel)\S*)' for 'sm_90a'", said)
    assert len(kernels) == 4 + 24
    assert "C75" not in said and "serialized" not in said
    assert set(re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", said)) == {("0", "0")}
    if (tool := disassembler()) is None:
        pytest.skip("no disassembler")
    code = subprocess.run([str(tool), "-arch", "sm_90a", "-sass", str(out)], capture_output=True, text=True, check=True).stdout
    checked = 0
    for part in code.split("Function : ")[1:]:
        if "forward_hopper" not in part.split("\n")[0]:
            continue
        assert "HGMMA" in part and "UTMALDG" in part and "USETMAXREG" in part and not re.search(r"\b(STL|LDL)\b", part)
        before, _, after = part.partition("DEPBAR.LE gsb0, 0x1")
        during = after.partition("DEPBAR.LE gsb0, 0x0")[0]
        assert during.count("MUFU.EX2") >= 64, "the softmax no longer runs during the product of values"
        checked += 1
    assert checked == 4
