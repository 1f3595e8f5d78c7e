"""ldmatrix, mma.sync and cp.async as csrc/common/tensor_cores.h emulates them: layouts, and what the race detector objects to."""

import re
import subprocess

import pytest
from compiled import HARNESS

from emergence_kernels.backends import build


@pytest.fixture(scope="module")
def output(tmp_path_factory) -> dict[str, str]:
    """What tensor_cores_check.cpp says of each check."""
    if build.host_compiler() is None:
        pytest.skip("g++ is not on the path")
    program = tmp_path_factory.mktemp("tensor_cores") / "check"
    source = HARNESS / "tensor_cores_check.cpp"
    flags = ["-std=c++20", *build.FLAGS["emulated"], "-I", str(build.SOURCES)]
    subprocess.run([build.host_compiler(), *flags, str(source), "-o", str(program)], check=True)
    lines = subprocess.run([str(program)], capture_output=True, text=True, check=True).stdout.splitlines()
    return dict(line.split(": ", 1) for line in lines)


def test_fragments_are_those_of_a_product(output):
    names = [f"{dtype}, {way}" for dtype in ("bfloat16", "float16") for way in ("columns", "rows")]
    assert [output[name] for name in names] == ["ok"] * 4


def test_copies_land(output):
    assert output["proper"] == output["zeros"] == "ok"


def test_additions_need_no_order(output):
    assert output["additions"] == "ok"


@pytest.mark.parametrize(
    "use, objection",
    [
        ("no wait", "race in shared memory: a copy to it is on its way"),
        ("no barrier", "race in shared memory|read before this block wrote it"),
        ("one of two", "race in shared memory: a copy to it is on its way"),
        ("overwritten", "race in shared memory: a copy to it is on its way"),
        ("beyond", "outside a shared array"),
        ("left", "the block ends before all that it set in motion is done"),
        ("additions and a read", "race in global memory: a byte that is added to is read"),
        ("additions beyond", "addition outside the tensors of the launch"),
        ("additions between", "not aligned to the 16 bytes"),
    ],
)
def test_what_the_race_detector_objects_to(use, objection, output):
    assert re.search(objection, output[use])
