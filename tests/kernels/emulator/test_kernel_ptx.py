"""The compilers' code, executed on the CPU under the race detector: Triton's for sm_80 and sm_90, nvcc's of csrc/.

The tests are those of the other modules of tests/kernels, in processes of their own (conftest.py: EMERGENCE_TEST_PTX and
EMERGENCE_TEST_NVCC). What interpreter and emulator cannot show is tried here: of Triton specialised arguments, vectors and their
alignment, pipelined loops, the barriers that it puts in, wgmma and TMA; of nvcc the inline assembly, as it is spelled.
"""

import contextlib
import json
import re
from pathlib import Path

import pytest
import torch
from compiled import HARNESS

from emergence_kernels.backends import build
from support import ROOT, run_python

HERE = Path(__file__).parents[1]
TRITON_KERNELS = {
    "_forward_kernel",
    "_backward_kernel",
    "_rotary_kernel",
    "_delta_kernel",
    "_dkdv_kernel",
    "_dq_kernel",
    "_ranges_kernel",
    "_swiglu_kernel",
    "_swiglu_backward_kernel",
    "_join_kernel",
    "_statistics_kernel",
    "_combine_kernel",
    "_loss_rows_kernel",
    "_scale_kernel",
    "_sum_shares_kernel",
    "_adamw_kernel",
}
# Of each module a choice of its cases that is quick.
TRITON = {
    "rms_norm": "prime or strided and bfloat16 or unused",
    "rotary": "float64",
    "rotary_attention": "composition and plain or every_rotation and partial",
    "swiglu": "float64 and (prime or packs or odd or expanded) or extreme",
    "adamw": "float64s",
    "position_loss": "float64 and (bfloat16 and (edges or off or blocks) or float16 and (confident or strided)) or descriptors "
    "or logits or bits_repeat or not_a_number",
    "linear_cross_entropy": "float64 and bfloat16 and (edges or confident or transposed or off) or tf32",
    "attention": "float64 and bfloat16 and (several and GQA or exact and 128 or window and documents and not windows) "
    "or float64 and prime or deterministic",
    "attention_scores": "float64 and bfloat16 and (softcap and not tiny and not huge or sinks and not extreme or alibi)",
}
NVCC_KERNELS = {
    "80": {
        "statistics_kernel",
        "gradient_kernel",
        "position_sums_kernel",
        "forward_kernel",
        "backward_kernel",
        "backward_packs_kernel",
        "sum_shares_kernel",
        "rotary_kernel",
        "swiglu_kernel",
        "swiglu_backward_kernel",
        "terms_kernel",
        "keys_kernel",
        "queries_kernel",
        "dq_kernel",
    },
    "90a": {"product_kernel", "forward_hopper", "delta_kernel", "backward_hopper", "dq_kernel"},
}
NVCC = {
    "80": {
        "rms_norm": "prime",
        "rotary": "float64",
        "swiglu": "float64 and (prime or packs or odd or expanded) or extreme",
        "position_loss": "float64 and bfloat16 and (edges or confident or strided) or not_a_number",
        "linear_cross_entropy": "float64 and bfloat16 and (edges or strided)",
        "attention": "float64 and (GQA or peaked or wide or exact) or deterministic",
        "compiled": "rms_norm_shapes or bit_for_bit",
    },
    "90a": {
        "hopper": "every_form and bfloat16 or float64 and (documents and order or 128 and float16 or GQA or one)",
        "rotary_attention": "rotate_back and (head or each)",
    },
}
OBJECTIONS = (
    "race",
    "read before this block",
    "nobody has waited",
    "no fence.",
    "no wgmma.",
    "without fence",
    "before all that it set",
    "waits for more threads",
    "more arrivals",
    "never reach",
    "overlap",
    "while a product",
)
ALONE = "(triton or descriptors or many_rows or tf32)"  # what Triton's backend is tried in
NOT_OF_LAUNCHES = "not order_of and not barrier and not nvcc and not assembler and not another and not the_cpu"


@pytest.fixture(autouse=True)
def compilers():
    if torch.cuda.is_available():
        pytest.skip("on a GPU the other modules run the compiled code itself")
    if build.host_compiler() is None:
        pytest.skip("g++ is not on the path")


@pytest.fixture
def nvcc():
    if build.nvcc() is None:
        pytest.skip("nvcc is not on the path")


def process(command: list[str], **variables: str) -> str:
    cache = ROOT / "build" / "triton-ptx"  # Triton's "binaries" are PTX here
    with contextlib.chdir(ROOT):
        # Beside nvcc's kernels Triton's are interpreted, which must be said before the fork server's first import of them.
        fresh = "EMERGENCE_TEST_NVCC" in variables
        done = run_python(*command, timeout=590, fresh=fresh, TRITON_CACHE_DIR=str(cache), **variables)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout


def run(modules: list[str], choice: str, **variables: str) -> set[str]:
    """-> the kernels that were launched."""
    files = [str(*HERE.rglob(f"test_kernel_{module}.py")) for module in modules]
    output = process(["-m", "pytest", "-q", "-p", "no:cacheprovider", *files, "-k", choice], **variables)
    assert re.search(r"\d+ passed", output)
    return set(json.loads(re.search(r"^launched: (.*)$", output, re.M)[1]))


def chosen(modules: dict[str, str]) -> str:
    return "(" + " or ".join(f"test_kernel_{module}.py and ({cases})" for module, cases in modules.items()) + ")"


# ---- Triton ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["80", "90"])
def test_triton_compiled_for(arch):
    pytest.importorskip("triton")
    assert run(list(TRITON), f"{ALONE} and {chosen(TRITON)}", EMERGENCE_TEST_PTX=arch) >= TRITON_KERNELS


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["80", "90"])
@pytest.mark.parametrize("module", TRITON)
def test_every_case_of_triton(module, arch):
    pytest.importorskip("triton")
    assert run([module], ALONE, EMERGENCE_TEST_PTX=arch)


# ---- nvcc --------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("arch", NVCC)
def test_nvcc_compiled_for(arch, nvcc):
    choice = f"{chosen(NVCC[arch])} and {NOT_OF_LAUNCHES}" + (" and cuda" if arch == "80" else "")
    assert run(list(NVCC[arch]), choice, EMERGENCE_TEST_NVCC=arch) >= NVCC_KERNELS[arch]


@pytest.mark.slow
@pytest.mark.parametrize("arch, module", [(arch, module) for arch in NVCC for module in NVCC[arch]])
def test_every_case_of_nvcc(arch, module, nvcc):
    assert run([module], NOT_OF_LAUNCHES + (" and cuda" if arch == "80" else ""), EMERGENCE_TEST_NVCC=arch)


# ---- faults ------------------------------------------------------------------------------------------------------------


def faults(*arguments: str) -> list[dict]:
    rows = [json.loads(line) for line in process([str(HARNESS / "ptx_faults.py"), *arguments]).splitlines()]
    for row in rows:
        row["kind"] = row["what"].split(".")[0] + (".wait" if "wait" in row["what"] else "")
    return rows


def missed(rows: list[dict], kind: str) -> int:
    """How many of a kind could be left out and nobody objected."""
    kinds = [row for row in rows if row["kind"] == kind]
    assert kinds, f"no {kind}"
    for row in kinds:
        assert row["objection"] is None or any(known in row["objection"] for known in OBJECTIONS), row
    return sum(row["objection"] is None for row in kinds)


@pytest.mark.slow
@pytest.mark.parametrize("arch, case", [("80", "loss"), ("90", "attention")])
def test_triton_needs_what_orders_its_threads(arch, case):
    """Of barriers and fences it puts in more than are needed; a missing wait is found each time."""
    pytest.importorskip("triton")
    rows = faults("triton", arch, case)
    assert missed(rows, "cp.wait") == 0 and missed(rows, "bar") <= len(rows) // 4
    if arch == "90":
        assert missed(rows, "wgmma.wait") == missed(rows, "wgmma") == 0


@pytest.mark.slow  # of the source they are tested quickly: test_every_barrier_is_needed
@pytest.mark.parametrize("arch, case", [("80", "attention"), ("90a", "hopper")])
def test_our_code_needs_what_orders_its_threads(arch, case, nvcc):
    """As nvcc leaves it. At head dim 64 of sm_80 one barrier orders nothing: values are in registers. On Hopper of 81 places six
    are missed by nobody: in the source every one is (test_every_barrier_is_needed), and why not here is not known. The blocks of
    threads run one after another, so that the first takes nearly all blocks of rows."""
    rows = faults("nvcc", arch, case)
    if arch == "80":
        assert missed(rows, "cp.wait") == 0 and missed(rows, "bar") == 1
    else:
        counts = {kind: missed(rows, kind) for kind in {row["kind"] for row in rows}}
        assert counts == {"fence": 4, "bar": 2, "mbarrier.wait": 0, "wgmma": 0, "wgmma.wait": 0}
