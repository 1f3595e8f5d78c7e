"""The CUDA kernels as nvcc compiles them for sm_80 and sm_90a: no warnings, no spills, the instructions that are meant."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from compiled import HARNESS

from emergence_kernels.backends import build, library

pytestmark = [pytest.mark.slow, pytest.mark.skipif(build.nvcc() is None, reason="no nvcc")]
VERBOSE = {"archs": build.ARCHITECTURES, "extra": ("-Xptxas", "-v")}


@pytest.fixture(scope="module")
def cuda(tmp_path_factory) -> tuple[Path, str]:
    """The library, and what the compiler says of its kernels."""
    out = tmp_path_factory.mktemp("built") / "emergence_cuda.so"
    return out, build.build("cuda", out, **VERBOSE)


def _cuobjdump() -> str | None:
    """The toolkit's, else Triton's."""
    spec = importlib.util.find_spec("triton")
    of_triton = Path(spec.origin).parent / "backends" / "nvidia" / "bin" if spec and spec.origin else None
    return shutil.which("cuobjdump") or shutil.which("cuobjdump", path=of_triton)


def test_nvcc_compiles_without_warnings_or_spills(cuda):
    """For sm_80 and sm_90a, warnings being errors. Loads without a GPU, and reports its architectures."""
    out, output = cuda
    for arch in ("sm_80", "sm_90a"):
        kernels = set(re.findall(rf"Compiling entry function '(\S+)' for '{arch}'", output))
        assert sum("statistics" in name for name in kernels) == 11, (
            "float32 to three types, 16 bits to one, two without"
        )
        for part, forms in (("mma_forward", 1), ("keys_kernel", 2), ("queries_kernel", 1)):
            assert sum(part in name for name in kernels) == 6 * forms, "two types, three widths"
        assert {
            part
            for part in (
                "gradient_kernel",
                "forward_kernel",
                "backward_kernel",
                "backward_packs",
                "sum_shares",
                "position_sums",
            )
            if not any(part in name for name in kernels)
        } == set()
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", output)
    assert len(spills) > 50 and all(pair == ("0", "0") for pair in spills), "registers are spilled"
    # A launch asks for more than 48 KB where it wants 32 itself (torch_glue.h): what kernels declare must fit in between.
    assert max((int(size) for size in re.findall(r"(\d+) bytes smem", output)), default=0) <= 16 << 10
    if cuobjdump := _cuobjdump():
        for arch in ("sm_80", "sm_90a"):
            listing = subprocess.run(
                [cuobjdump, "-sass", "-arch", arch, str(out)], capture_output=True, text=True
            ).stdout
            functions = re.split(r"\n\s*Function : ", listing)[1:]
            rows = [f for f in functions if re.match(r"\S*(rows_hopper|statistics_kernel|gradient_kernel)", f)]
            assert len(rows) >= 21 and not any("STG.E.U16" in f for f in rows), "packs are stored whole"
            attending = [f for f in functions if re.match(r"\S*mma_\S*(forward|keys|queries)_kernel", f)]
            assert len(attending) == 24
            # tensor cores, loads of matrices as they are and transposed, asynchronous copies
            for function in attending:
                assert all(
                    what in function for what in ("HMMA.16816.F32", "LDSM.16.M88.4", "LDSM.16.MT88.4", "LDGSTS")
                ), arch
    code = (
        "import torch\n"
        "from emergence_kernels.backends import library\n"
        "print(library.describe('cuda')); print(library.unsupported_reason('cuda', torch.device('cpu')))\n"
        "print(torch.ops.emergence_cuda.loss_rows.default._schema)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {library.VARIABLES["cuda"]: str(out)},
        capture_output=True,
        text=True,
    )
    assert "sm_80 sm_90a, Cuda compilation tools, release" in done.stdout, done.stderr
    assert "needs a CUDA device" in done.stdout and "emergence_cuda::loss_rows(Tensor z" in done.stdout


def test_nvcc_compiles_products_that_overlap(cuda, tmp_path):
    """No spills; no products that ptxas had to serialise or help with fences; the exponentials are not moved past waits."""
    out, output = cuda
    assert "product_kernel" not in output, "a test's kernel is not for the library"
    output += build.build("checks", tmp_path / "checks.so", **VERBOSE)
    # A digit, the name's length, comes before it: feed_forward has a linear_swiglu_backward_hopper
    for name, count in (("forward_hopper", 6), ("backward_hopper", 12), ("product_kernel", 60)):
        assert len(re.findall(rf"Compiling entry function '\S*\d{name}\S*' for 'sm_90a'", output)) == count
    assert "C75" not in output and "serialized" not in output
    assert set(re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", output)) == {("0", "0")}
    if (tool := _cuobjdump()) is None:
        pytest.skip("no disassembler")
    command = [tool, "-arch", "sm_90a", "-sass", str(out)]
    code = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    checked = 0
    for part in code.split("Function : ")[1:]:
        name = part.split("\n")[0]
        if not re.search(r"\d(for|back)ward_hopper", name):
            continue
        assert "HGMMA" in part and "UTMALDG" in part and "USETMAXREG" in part and not re.search(r"\b(STL|LDL)\b", part)
        # Between the wait for scores and the next wait, where the other product is on its way.
        during = part.partition("DEPBAR.LE gsb0, 0x1")[2].partition("DEPBAR")[0]
        assert during.count("MUFU.EX2") >= (64 if "forward" in name else 32), f"exponentials come too late: {name}"
        checked += 1
    assert checked == 6 + 12


def test_nvcc_compiles_swiglu_in_the_products(cuda):
    """As many registers as a consumer takes, and none spilled."""
    parts = cuda[1].split("Compiling entry function ")[1:]
    parts = [part for part in parts if re.match(r"'\S*linear_swiglu\S*' for 'sm_90a'", part)]
    assert len(parts) == 4
    for part in parts:
        assert "0 bytes spill stores, 0 bytes spill loads" in part and "Used 168 registers" in part


def forms(ptx: str) -> tuple[set, set, set]:
    """Copies; products of 64 x 128 bfloat16 and whether b is transposed; (swizzle, stride, leading offset) of descriptors."""
    copies = {  # a block that is no cluster's may name its shared memory either way
        copy.replace("shared::cta.global", "shared::cluster.global")
        for copy in re.findall(r"cp\.async\.bulk\.tensor[\w.:]+", ptx)
    }
    products = set(re.findall(r"(wgmma\.mma_async\S*m64n128k16\.f32\.bf16\.bf16) [^;]*, 1, 1(?:, 0)?, (\d);", ptx))
    fields = set()
    for number in map(int, re.findall(r"\b46\d{17}\b", ptx)):
        fields.add((number >> 62, number >> 32 & 0x3FFF, number >> 16 & 0x3FFF))
    return copies, products, fields


def test_instructions_and_descriptors_match_triton(tmp_path):
    """An error common to kernels and emulator would show against Triton's code for Hopper."""
    pytest.importorskip("triton")
    script = HARNESS / "hopper_by_triton.py"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ours = tmp_path / "ours.ptx"
    include = ["-I", str(build.SOURCES), "-isystem", str(build.torch_folder() / "include")]
    flags = [*build.COMMON, *build.FLAGS["cuda"], "-arch=sm_90a", '-DEMERGENCE_BUILD=""', *include]
    source = str(build.SOURCES / "cuda/attention/hopper_forward.cu")
    subprocess.run([build.nvcc(), *flags, "-ptx", source, "-o", str(ours)], check=True)
    copies, products, fields = forms(ours.read_text())
    their_copies, their_products, their_fields = forms(done.stdout)
    assert copies == their_copies and len(copies) == 1
    assert products == their_products and len(products) == 2
    by_swizzle = {field for field in fields if field[0] == 1}
    # Rows of k: stride 1024 bytes, the leading offset without meaning. Columns: slabs of 128 rows of 128 bytes.
    assert (1, 64, 1024) in by_swizzle & their_fields
    assert {field[:2] for field in by_swizzle} == {field[:2] for field in their_fields} == {(1, 64)}
