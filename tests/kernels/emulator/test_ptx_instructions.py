"""The executor of PTX by itself: instructions against closed forms, and wrong programs against the race detector."""

import math
from fractions import Fraction

import pytest
import torch
from ptx_executor import LaunchError, Program
from ptx_reader import PtxError
from ptx_snippets import map_lanes, run, text

from emergence_kernels.backends import build

pytestmark = pytest.mark.skipif(build.host_compiler() is None, reason="g++ is not on the path")
LANES = torch.arange(32, dtype=torch.int32)


def bits(values: list[int]) -> torch.Tensor:
    """32-bit patterns."""
    return torch.tensor([v - (1 << 32) if v >> 31 else v for v in values], dtype=torch.int32)


def awkward(n: int) -> torch.Tensor:
    """Floats: halves of the last place of bfloat16 and float16 on either side of even, denormals, limits, what is no number."""
    special = bits(
        [
            0,
            1 << 31,
            0x3F808000,
            0x3F818000,
            0x3F808001,
            0x3F801000,
            0x3F803000,
            0x3F801001,
            0x7F7FFFFF,
            0x7F800000,
            0xFF800000,
            0x7FC00000,
            0x00000001,
            0x007FFFFF,
            0x33000000,
            0x33000001,
            0x33800000,
            0x477FEFFF,
            0x477FF000,
            0x38800000,
            0x387FE000,
        ]
    ).view(torch.float32)
    return torch.cat([special, torch.randn(n - len(special)) * 10.0 ** torch.randint(-8, 5, (n - len(special),))])


# ---- numbers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, dtype", [("bf16", torch.bfloat16), ("f16", torch.float16)])
def test_conversions_round_to_nearest_even(name, dtype):
    x = awkward(256)
    single = map_lanes(f"cvt.rn.{name}.f32 %rs1, %f1;", x, out=torch.int16, registers="f1 rs1").view(dtype)
    assert torch.equal(single[~x.isnan()], x[~x.isnan()].to(dtype)) and single[x.isnan()].isnan().all()
    back = map_lanes(f"cvt.f32.{name} %f1, %rs1;", x.to(dtype).view(torch.int16), out=torch.float32, registers="rs1 f1")
    assert torch.equal(back.nan_to_num(7.0), x.to(dtype).float().nan_to_num(7.0))
    both = map_lanes(f"cvt.rn.{name}x2.f32 %r1, %f1, %f2;", x, x.flip(0), out=torch.int32, registers="f1 f2 r1")
    low, high = both.view(dtype).view(-1, 2).unbind(1)
    assert torch.equal(high.nan_to_num(7.0), single.nan_to_num(7.0)), "the first operand is the upper half"
    assert torch.equal(low.nan_to_num(7.0), single.flip(0).nan_to_num(7.0))


def rounded(exact: Fraction, mantissa: int, least: int) -> float:
    """To `mantissa` bits, ties to even; least: the exponent of the smallest denormal."""
    if exact == 0:
        return 0.0
    exponent = max(math.floor(math.log2(abs(exact))) - mantissa, least)
    exponent += 1 if abs(exact) / Fraction(2) ** exponent >= 2 ** (mantissa + 1) else 0
    return float(round(exact / Fraction(2) ** exponent) * Fraction(2) ** exponent)


@pytest.mark.parametrize(
    "name, dtype, mantissa, least", [("bf16", torch.bfloat16, 7, -133), ("f16", torch.float16, 10, -24)]
)
def test_16_bit_arithmetic_rounds_once(name, dtype, mantissa, least):
    """The sum of a product and a number near half of its last place: two roundings would go the wrong way."""
    n = 512
    a, b = (torch.randn(n).to(dtype) for _ in range(2))
    c = (torch.randn(n) * 2.0 ** torch.randint(-14, 5, (n,))).to(dtype)
    operands = [t.view(torch.int16) for t in (a, b, c)]
    exact = {
        "fma.rn": [Fraction(x) * Fraction(y) + Fraction(z) for x, y, z in zip(a.tolist(), b.tolist(), c.tolist())],
        "mul": [Fraction(x) * Fraction(y) for x, y in zip(a.tolist(), b.tolist())],
        "add": [Fraction(x) + Fraction(y) for x, y in zip(a.tolist(), b.tolist())],
        "sub": [Fraction(x) - Fraction(y) for x, y in zip(a.tolist(), b.tolist())],
    }
    for what, values in exact.items():
        third = ", %rs3" if what == "fma.rn" else ""
        got = map_lanes(
            f"{what}.{name} %rs4, %rs1, %rs2{third};", *operands, out=torch.int16, registers="rs1 rs2 rs3 rs4"
        )
        assert got.view(dtype).tolist() == [rounded(v, mantissa, least) for v in values], what
        pairs = [t.view(torch.int32) for t in operands]
        third = ", %r3" if what == "fma.rn" else ""
        packed = map_lanes(f"{what}.{name}x2 %r4, %r1, %r2{third};", *pairs, out=torch.int32, registers="r1 r2 r3 r4")
        assert torch.equal(packed.view(torch.int16), got), what


def test_float32_arithmetic():
    x, y = awkward(256), awkward(256).roll(7)

    def of(instruction, registers="f1 f2 f3"):
        return map_lanes(f"{instruction} %f3, %f1, %f2;", x, y, out=torch.float32, registers=registers).nan_to_num(7.0)

    assert torch.equal(of("add.f32"), (x + y).nan_to_num(7.0)) and torch.equal(of("mul.f32"), (x * y).nan_to_num(7.0))
    assert torch.equal(of("max.f32"), torch.fmax(x, y).nan_to_num(7.0)), "a number wins over what is none"
    assert torch.equal(of("max.NaN.f32"), torch.maximum(x, y).nan_to_num(7.0))
    small = x.abs() < torch.finfo(torch.float32).tiny
    flushed = map_lanes("fma.rn.ftz.f32 %f2, %f1, 0f3F800000, 0f00000000;", x, out=torch.float32, registers="f1 f2")
    assert (flushed[small] == 0).all() and torch.equal(flushed[~small].nan_to_num(7.0), x[~small].nan_to_num(7.0))
    fused = map_lanes("fma.rn.f32 %f3, %f1, %f1, %f2;", x, y, out=torch.float32, registers="f1 f2 f3")
    assert torch.equal(fused.nan_to_num(7.0), (x.double() * x.double() + y.double()).float().nan_to_num(7.0))
    exponents = torch.tensor([3.0, -127.0, -150.0, 128.0])
    power = map_lanes("ex2.approx.ftz.f32 %f2, %f1;", exponents, out=torch.float32, registers="f1 f2")
    assert power.tolist() == [8.0, 0.0, 0.0, math.inf]


def test_comparisons_of_what_is_not_a_number():
    x = torch.tensor([1.0, 2.0, math.nan, 1.0])
    y = torch.tensor([2.0, 1.0, 1.0, 1.0])
    for name, wanted in {
        "lt": [1, 0, 0, 0],
        "ltu": [1, 0, 1, 0],
        "geu": [0, 1, 1, 1],
        "ne": [1, 1, 0, 0],
        "neu": [1, 1, 1, 0],
        "num": [1, 1, 0, 1],
    }.items():
        body = f"setp.{name}.f32 %p1, %f1, %f2; selp.b32 %r3, 1, 0, %p1;"
        assert map_lanes(body, x, y, out=torch.int32, registers="f1 f2 r3").tolist() == wanted, name


INTEGERS = [0, 1, -1, 7, -7, 31, 32, 33, 255, 0x7FFFFFFF, -0x80000000, 0x12345678, -0x12345678]
TRUNCATED = {"div": lambda a, b: int(Fraction(a, b)), "rem": lambda a, b: a - b * int(Fraction(a, b))}


@pytest.mark.parametrize(
    "instruction, exact",
    [
        ("add.s32", lambda a, b: a + b),
        ("sub.s32", lambda a, b: a - b),
        ("mul.lo.s32", lambda a, b: a * b),
        ("mul.hi.s32", lambda a, b: a * b >> 32),
        ("div.s32", TRUNCATED["div"]),
        ("rem.s32", TRUNCATED["rem"]),
        ("div.u32", lambda a, b: (a % 2**32) // (b % 2**32)),
        ("min.u32", lambda a, b: min(a % 2**32, b % 2**32)),
        ("max.s32", max),
        ("shr.s32", lambda a, b: a >> min(b % 2**32, 31)),
        ("shr.u32", lambda a, b: a % 2**32 >> min(b % 2**32, 32)),
        ("shl.b32", lambda a, b: a << min(b % 2**32, 32)),
        ("xor.b32", lambda a, b: a ^ b),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_integers(instruction, exact):
    pairs = [(a, b) for a in INTEGERS for b in INTEGERS if b or not instruction.startswith(("div", "rem"))]
    a, b = (torch.tensor(side, dtype=torch.int32) for side in zip(*pairs))
    got = map_lanes(f"{instruction} %r3, %r1, %r2;", a, b, out=torch.int32, registers="r1 r2 r3")
    assert [v % 2**32 for v in got.tolist()] == [exact(x, y) % 2**32 for x, y in pairs]


def test_products_and_addresses_in_64_bits():
    a, b = torch.tensor([1 << 30, -(1 << 30), -1], dtype=torch.int32), torch.tensor([8, 8, -1], dtype=torch.int32)
    wide = map_lanes("mul.wide.s32 %rd9, %r1, %r2;", a, b, out=torch.int64, registers="r1 r2 rd9")
    assert wide.tolist() == [1 << 33, -(1 << 33), 1]
    added = map_lanes(
        "mov.b64 %rd8, -5; mad.wide.s32 %rd9, %r1, %r2, %rd8;", a, b, out=torch.int64, registers="r1 r2 rd9"
    )
    assert added.tolist() == [(1 << 33) - 5, -(1 << 33) - 5, -4]
    unsigned = map_lanes("mul.wide.u32 %rd9, %r1, %r2;", a, b, out=torch.int64, registers="r1 r2 rd9")
    assert unsigned.tolist()[2] % 2**64 == (2**32 - 1) ** 2


def test_fields_of_bits():
    word = bits([0x12345678, 0xF0000001])
    field = lambda body: [v % 2**32 for v in map_lanes(body, word, out=torch.int32, registers="r1 r3").tolist()]  # noqa: E731
    assert field("bfe.u32 %r3, %r1, 4, 8;") == [0x67, 0x00]
    assert field("bfe.s32 %r3, %r1, 28, 4;") == [1, 2**32 - 1]
    assert field("bfi.b32 %r3, %r1, 0, 8, 4;") == [0x800, 0x100]
    assert field("prmt.b32 %r3, %r1, 0xAABBCCDD, 0x7210;") == [0xAA345678, 0xAA000001]
    assert field("prmt.b32 %r3, %r1, 0, 0x888B;") == [0x00000000, 0x000000FF], "the sign of a byte"
    assert field("lop3.b32 %r3, %r1, 0xFF, 0xF0F0, 0xEA;") == [0x12345678 & 0xFF | 0xF0F0, 0xF0F1]  # (a & b) | c
    assert field("shf.l.wrap.b32 %r3, %r1, %r1, 8;") == [0x34567812, 0x000001F0]
    assert field("mov.b32 {%rs1, %rs2}, %r1; mov.b32 %r3, {%rs2, %rs1};") == [0x56781234, 0x0001F000]


# ---- warps -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "instruction, source, valid",
    [
        ("shfl.sync.up.b32 %r2|%p1, %r1, 3, 0, -1", lambda i: i - 3, lambda i: i >= 3),
        ("shfl.sync.down.b32 %r2|%p1, %r1, 5, 31, -1", lambda i: i + 5, lambda i: i + 5 < 32),
        ("shfl.sync.bfly.b32 %r2|%p1, %r1, 16, 31, -1", lambda i: i ^ 16, lambda i: True),
        ("shfl.sync.idx.b32 %r2|%p1, %r1, 9, 31, -1", lambda i: 9, lambda i: True),
        # Segments of eight lanes: bits 8 to 12 say which bits of the lane are the segment's.
        ("shfl.sync.idx.b32 %r2|%p1, %r1, 2, 6175, -1", lambda i: i // 8 * 8 + 2, lambda i: True),
        ("shfl.sync.down.b32 %r2|%p1, %r1, 3, 6175, -1", lambda i: i + 3, lambda i: i % 8 + 3 < 8),
    ],
)
def test_shuffles_and_their_predicates(instruction, source, valid):
    body = f"{instruction}; selp.b32 %r3, 100, 0, %p1; add.s32 %r4, %r2, %r3;"
    got = map_lanes(body, LANES, out=torch.int32, registers="r1 r4").tolist()
    assert got == [source(i) + 100 if valid(i) else i for i in range(32)]


def test_one_lane_is_elected():
    got = map_lanes("elect.sync %r2|%p1, -1; selp.b32 %r3, 1, 0, %p1;", LANES, out=torch.int32, registers="r1 r3")
    assert got.sum() == 1


MATRICES = """
    // 256 halves of a, 128 of b: 16 bytes a lane, and 8
    mul.wide.u32 %rd10, %r0, 16; add.s64 %rd11, %rd0, %rd10; ld.global.v4.b32 {%r1, %r2, %r3, %r4}, [%rd11];
    mov.u32 %r10, memory; shl.b32 %r11, %r0, 4; add.s32 %r12, %r10, %r11; st.shared.v4.b32 [%r12], {%r1, %r2, %r3, %r4};
    mul.wide.u32 %rd10, %r0, 8; add.s64 %rd11, %rd1, %rd10; ld.global.v2.b32 {%r1, %r2}, [%rd11];
    shl.b32 %r13, %r0, 3; add.s32 %r14, %r10, %r13; st.shared.v2.b32 [%r14+512], {%r1, %r2};
    bar.sync 0;
    // a (16, 16) by rows: matrices are the upper left, lower left, upper right and lower right
    and.b32 %r20, %r0, 15; shl.b32 %r20, %r20, 5; shr.u32 %r21, %r0, 4; shl.b32 %r21, %r21, 4; add.s32 %r20, %r20, %r21;
    add.s32 %r20, %r20, %r10; ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r1, %r2, %r3, %r4}, [%r20];
    // b (16, 8) by rows: transposed on the way
    and.b32 %r22, %r0, 15; shl.b32 %r22, %r22, 4; add.s32 %r22, %r22, %r10;
    ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%r5, %r6}, [%r22+512];
    mov.f32 %f1, 0f00000000;
    mma.sync.aligned.m16n8k16.row.col.f32.KIND.KIND.f32 
        {%f2, %f3, %f4, %f5}, {%r1, %r2, %r3, %r4}, {%r5, %r6}, {%f1, %f1, %f1, %f1};
    // c (16, 8): lane 4 g + t has columns 2 t and 2 t + 1 of rows g and g + 8
    mul.wide.u32 %rd10, %r0, 8; add.s64 %rd11, %rd2, %rd10;
    st.global.v2.f32 [%rd11], {%f2, %f3}; st.global.v2.f32 [%rd11+256], {%f4, %f5};
"""


@pytest.mark.parametrize("kind, dtype", [("bf16", torch.bfloat16), ("f16", torch.float16)])
def test_matrices_multiply(kind, dtype):
    a, b, c = torch.randint(-8, 9, (16, 16)).to(dtype), torch.randint(-8, 9, (16, 8)).to(dtype), torch.zeros(16, 8)
    run(MATRICES.replace("KIND", kind), a, b, c, shared=768)
    assert torch.equal(c, a.float() @ b.float())


def test_tf32_matrices_multiply():
    """Fragments by the formulas of the PTX ISA, from memory without ldmatrix; the lower 13 bits do not count."""
    a, b, c = torch.randn(16, 8), torch.randn(8, 8), torch.zeros(16, 8)
    lane = torch.arange(32)
    g, t = lane // 4, lane % 4
    fragments = torch.stack([a[g, t], a[g + 8, t], a[g, t + 4], a[g + 8, t + 4], b[t, g], b[t + 4, g]], 1).contiguous()
    loads = " ".join(f"ld.global.b32 %r{i + 1}, [%rd11+{4 * i}];" for i in range(6))
    body = f"""mul.wide.u32 %rd10, %r0, 24; add.s64 %rd11, %rd0, %rd10; {loads} mov.f32 %f1, 0f00000000;
        mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32
        {{%f2, %f3, %f4, %f5}}, {{%r1, %r2, %r3, %r4}}, {{%r5, %r6}}, {{%f1, %f1, %f1, %f1}};
        mul.wide.u32 %rd10, %r0, 8; add.s64 %rd11, %rd1, %rd10;
        st.global.v2.f32 [%rd11], {{%f2, %f3}}; st.global.v2.f32 [%rd11+256], {{%f4, %f5}};"""
    run(body, fragments, c)
    short = [(x.view(torch.int32) & -8192).view(torch.float32).double() for x in (a, b)]
    assert torch.allclose(c.double(), short[0] @ short[1], atol=1e-6)


@pytest.mark.parametrize("way", ["", ".trans"])
def test_stmatrix_undoes_ldmatrix(way):
    x, y = torch.randn(32, 8).half(), torch.zeros(32, 8).half()
    body = f"""
        mul.wide.u32 %rd10, %r0, 16; add.s64 %rd11, %rd0, %rd10; ld.global.v4.b32 {{%r1, %r2, %r3, %r4}}, [%rd11];
        mov.u32 %r10, memory; shl.b32 %r11, %r0, 4; add.s32 %r12, %r10, %r11; st.shared.v4.b32 [%r12], {{%r1, %r2, %r3, %r4}};
        bar.sync 0;
        ldmatrix.sync.aligned.m8n8.x4{way}.shared.b16 {{%r1, %r2, %r3, %r4}}, [%r12];
        stmatrix.sync.aligned.m8n8.x4.shared.b16 [%r12+512], {{%r1, %r2, %r3, %r4}};
        bar.sync 0;
        ld.shared.v4.b32 {{%r1, %r2, %r3, %r4}}, [%r12+512];
        add.s64 %rd11, %rd1, %rd10; st.global.v4.b32 [%rd11], {{%r1, %r2, %r3, %r4}};"""
    run(body, x, y, shared=1024)
    assert torch.equal(y, x if not way else x.view(4, 8, 8).transpose(1, 2).reshape(32, 8))


# ---- what is wrong -----------------------------------------------------------------------------------------------------

# A word of shared memory for each thread at %r12, its neighbour's at %r13.
TO_SHARED = """mov.u32 %r10, memory; shl.b32 %r11, %r0, 2; add.s32 %r12, %r10, %r11;
    xor.b32 %r13, %r11, 4; add.s32 %r13, %r13, %r10;"""
COPY = """mul.wide.u32 %rd10, %r0, 4; add.s64 %rd11, %rd0, %rd10;
    cp.async.ca.shared.global [%r12], [%rd11], 4; cp.async.commit_group;"""


@pytest.mark.parametrize(
    "body, objection",
    [
        ("ld.global.b32 %r1, [%rd0+128];", "read outside the tensors of the launch"),
        ("st.global.b32 [%rd0+-4], %r0;", "write outside the tensors of the launch"),
        ("ld.global.v2.b32 {%r1, %r2}, [%rd0+4];", "not aligned to the 8 bytes"),
        ("ld.global.v4.b32 {%r1, %r2, %r3, %r4}, [%rd0+8];", "not aligned to the 16 bytes"),
        ("st.global.b32 [%rd0], %r0;", "race in global memory"),
        (TO_SHARED + "ld.shared.b32 %r1, [%r12];", "read before this block wrote it"),
        (TO_SHARED + "ld.shared.b32 %r1, [%r12+1024];", "shared address out of bounds"),
        (TO_SHARED + "ld.shared.v2.b32 {%r1, %r2}, [%r10+4];", "shared address not aligned to the 8 bytes"),
        (TO_SHARED + "st.shared.b32 [%r12], %r0; ld.shared.b32 %r1, [%r13];", "race in shared memory|read before"),
        (TO_SHARED + "st.shared.b32 [%r12], %r0; bar.sync 0; ld.shared.b32 %r1, [%r13];", None),
        (TO_SHARED + "setp.eq.s32 %p1, %r0, 3; @%p1 bra end; bar.sync 0; end:", "never reach"),
        (TO_SHARED + COPY + "ld.shared.b32 %r1, [%r12]; cp.async.wait_group 0;", "nobody has waited"),
        (
            TO_SHARED + COPY + "cp.async.wait_group 1; ld.shared.b32 %r1, [%r12]; cp.async.wait_group 0;",
            "nobody has waited",
        ),
        (
            TO_SHARED + COPY + "cp.async.wait_group 0; ld.shared.b32 %r1, [%r13];",
            "race in|nobody has waited|read before",
        ),
        (TO_SHARED + COPY + "cp.async.wait_group 0; bar.sync 0; ld.shared.b32 %r1, [%r13];", None),
        (TO_SHARED + COPY, "before all that it set in motion is done"),
        (
            "setp.lt.s32 %p1, %r0, 7; @%p1 bra other; shfl.sync.idx.b32 %r2, %r0, 0, 31, -1; bra end; other: "
            "shfl.sync.idx.b32 %r2, %r0, 1, 31, -1; end:",
            "execute different instructions",
        ),
        ("mov.b32 %r1, 0; div.u32 %r2, %r0, %r1;", "division by zero"),
    ],
)
def test_what_the_race_detector_objects_to(body, objection):
    values = torch.zeros(32, dtype=torch.int32)
    if objection is None:
        return run(body, values, shared=1024)
    with pytest.raises(LaunchError, match=objection):
        run(body, values, shared=1024)


WRITTEN = """
    mov.u32 %r10, memory; shl.b32 %r11, %r0, 4; add.s32 %r12, %r10, %r11; mov.b32 %r1, 0;
    st.shared.v4.b32 [%r12], {%r1, %r1, %r1, %r1}; st.shared.v4.b32 [%r12+2048], {%r1, %r1, %r1, %r1};
    st.shared.v4.b32 [%r12+4096], {%r1, %r1, %r1, %r1}; st.shared.v4.b32 [%r12+6144], {%r1, %r1, %r1, %r1};
    mov.f32 %f1, 0f3F800000; mov.b32 %r30, %f1; mov.b32 %r31, %r30; mov.b32 %r32, %r30; mov.b32 %r33, %r30;
"""
ISSUE = """
    and.b32 %r14, %r10, 0x3ffff; shr.u32 %r14, %r14, 4; cvt.u64.u32 %rd9, %r14;
    mov.b64 %rd8, 4611686293305294848; or.b64 %rd9, %rd9, %rd8; mov.pred %p1, -1; wgmma.fence.sync.aligned;
    wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%r30, %r31, %r32, %r33}, %rd9, %rd9, %p1, 1, 1, 0, 0;
    wgmma.commit_group.sync.aligned;
"""
FENCE, WAIT = "fence.proxy.async.shared::cta; bar.sync 0;", "wgmma.wait_group.sync.aligned 0;"


@pytest.mark.parametrize(
    "body, objection",
    [
        (WRITTEN + FENCE + ISSUE + WAIT + "add.f32 %f2, %r30, %r31;", None),
        # a copy of the register
        (
            WRITTEN + FENCE + ISSUE + "mov.b32 %r40, %r30;" + WAIT + "add.f32 %f2, %r40, %r31;",
            None,
        ),
        (
            WRITTEN + FENCE + ISSUE + "add.f32 %f2, %r30, %r31;" + WAIT,
            "a register is used that an asynchronous product has",
        ),
        (
            WRITTEN + FENCE + ISSUE + WAIT.replace("0;", "1;") + "add.f32 %f2, %r30, %r31;" + WAIT,
            "asynchronous product has",
        ),
        (WRITTEN + "bar.sync 0;" + ISSUE + WAIT, "no fence.proxy.async passed on"),
        (WRITTEN + FENCE.replace("bar.sync 0;", "") + ISSUE + WAIT, "race in shared memory|no fence.proxy.async"),
        (WRITTEN + FENCE + ISSUE.replace("wgmma.fence.sync.aligned;", "") + WAIT, "no wgmma.fence in between"),
        (WRITTEN + FENCE + ISSUE + "st.shared.b32 [%r12], %r1;" + WAIT, "race in shared memory"),
    ],
)
def test_what_the_race_detector_objects_to_in_products(body, objection):
    out = torch.zeros(128, 2)
    body = body + "mul.wide.u32 %rd10, %r0, 8; add.s64 %rd11, %rd0, %rd10; st.global.v2.b32 [%rd11], {%r30, %r33};"
    if objection is None:
        run(body, out, threads=128, shared=8192)
        assert (out == 1).all()
        return
    with pytest.raises(LaunchError, match=objection):
        run(body, out, threads=128, shared=8192)


def test_the_same_value_from_several_threads():
    """Triton's threads all store what they hold copies of: that is no race in its code, and one in ours."""
    same, own = (TO_SHARED + f"mov.b32 %r1, {what}; st.shared.b32 [%r10], %r1;" for what in ("5", "%r0"))
    run(same, torch.zeros(1), shared=64, tiles=True)
    with pytest.raises(LaunchError, match="race in shared memory"):
        run(same, torch.zeros(1), shared=64)
    with pytest.raises(LaunchError, match="race in shared memory"):
        run(own, torch.zeros(1), shared=64, tiles=True)


@pytest.mark.parametrize(
    "body, message",
    [
        ("add.s31 %r1, %r0, 1;", "line 4: no such instruction is emulated: add.s31"),
        ("ld.global.weird.b32 %r1, [%rd0];", "line 4: ld.global.weird.b32: modifier .weird is not known"),
        ("ld.global.v2.b32 %r1, [%rd0];", "operands do not fit"),
        ("add.s32 %r1, %r0, %nobody;", "line 4: .* what is %nobody"),
        ("bra nowhere;", "no label nowhere"),
        ("setp.lt.s32 %p1|%p2, %r0, 1;", "two results are not understood"),
        ("call (%r1), something, (%r0);", "what is|no such instruction"),
    ],
)
def test_what_is_not_understood_is_refused_with_its_line(body, message):
    with pytest.raises(PtxError, match=message):
        Program.of("\n" + text(body, 1))


def test_scopes_of_labels_and_registers():
    """As inline assembly has them: the same names again and again."""
    block = """{ .reg .pred p; .reg .b32 x; mov.b32 x, %r1;
        again: add.s32 x, x, 1; setp.lt.s32 p, x, LIMIT; @p bra again; mov.b32 %r1, x; }"""
    body = block.replace("LIMIT", "10") + block.replace("LIMIT", "40")
    assert map_lanes(body, LANES, out=torch.int32, registers="r1 r1").tolist() == [40] * 32
