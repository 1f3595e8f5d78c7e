"""Triton's compiled code: every operation compiled for sm_80 and sm_90, its PTX executed on the CPU under the referee.

The tests are those of the other modules of this folder, in processes of their own (conftest.py, EMERGENCE_TEST_PTX). What the
interpreter cannot show is tried here: specialised arguments, vectors and their alignment, pipelined loops, the barriers that
Triton puts in, tensor cores, wgmma and TMA.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from emergence_kernels.compiled import build
from support import ROOT

pytest.importorskip("triton")
HERE = Path(__file__).parent
KERNELS = {
    "_forward_kernel", "_backward_kernel", "_rotary_kernel", "_delta_kernel", "_dkdv_kernel", "_dq_kernel",
    "_statistics_kernel", "_combine_kernel", "_rescale_kernel", "_gradient_kernel", "_scale_kernel",
}  # fmt: skip
# Of each module: a choice of its cases that is quick.
QUICK = {
    "rms_norm": "prime or expanded or strided or unused",
    "rotary": "float64",
    "position_loss": "float64 and (bfloat16 or float16) and (edges or confident or strided) or descriptors or bits_repeat",
    "linear_cross_entropy": "float64 and bfloat16",
    "attention": "float64 and bfloat16 or prime or deterministic",
}


def environment(arch: int) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return kept | {
        "EMERGENCE_TEST_PTX": str(arch),
        "TRITON_CACHE_DIR": str(ROOT / "build" / "triton-ptx"),  # its "binaries" are PTX
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "kernels"))),
    }


def run(modules: list[str], arch: int, choice: str) -> dict[str, int]:
    """-> how often each kernel was launched."""
    if build.host_compiler() is None:
        pytest.skip("g++ is not on the path")
    files = [str(HERE / f"test_kernel_{module}.py") for module in modules]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files, "-k", choice]
    done = subprocess.run(command, env=environment(arch), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and re.search(r"\d+ passed", done.stdout), (done.stdout + done.stderr)[-4000:]
    return json.loads(re.search(r"^launched: (.*)$", done.stdout, re.M)[1])


@pytest.mark.parametrize("arch", [80, 90])
def test_compiled_for(arch):
    choice = " or ".join(f"{module} and ({cases})" for module, cases in QUICK.items())
    assert set(run(list(QUICK), arch, f"(triton or descriptors) and ({choice})")) >= KERNELS


@pytest.mark.slow
@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("module", QUICK)
def test_every_case_compiled_for(module, arch):
    assert run([module], arch, "triton or descriptors or many_rows")
