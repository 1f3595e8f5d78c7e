"""Where the kernels run: compiled on a CUDA device if there is one, else in Triton's interpreter on the CPU."""

import os
import shutil
import sys
from pathlib import Path

import pytest
import torch

from emergence_kernels.cuda_backend import build, library

CUDA = torch.cuda.is_available()
# The interpreter must be chosen before Triton is first imported. If some other test module was quicker,
# test_kernel_interpreter.py runs this folder in a process of its own.
TOO_LATE = not CUDA and "triton" in sys.modules and os.environ.get("TRITON_INTERPRET") != "1"
if not CUDA:
    os.environ["TRITON_INTERPRET"] = "1"
os.environ.pop("EMERGENCE_KERNELS_BACKEND", None)
if not CUDA:  # the CUDA kernels' own source, on the CPU
    os.environ[library.VARIABLE] = str(Path(__file__).parents[2] / "build" / "cuda" / "emulated.so")


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cuda" if CUDA else "cpu")


@pytest.fixture(scope="session")
def cuda_library() -> str | None:
    """Why there is no CUDA library to test, or None. On a CPU it is compiled first: 10 seconds, once a change."""
    if CUDA:
        return library.why_not(torch.device("cuda"))
    if shutil.which("g++") is None:
        return "g++ is not here to compile the emulation"
    build.build(Path(os.environ[library.VARIABLE]), emulate=True)
    return library.why_not(torch.device("cpu"))


def pytest_generate_tests(metafunc) -> None:
    """`backend`: all that have the module's operation. `fused`: those with kernels of our own for rows."""
    if "fused" in metafunc.fixturenames:
        metafunc.parametrize("fused", ["triton", "cuda"], indirect=True)
    elif "backend" in metafunc.fixturenames:
        without = ("attention", "rotary")
        rows = not any(name in metafunc.module.__name__ for name in without)
        metafunc.parametrize("backend", ["torch", "triton", *(["cuda"] if rows else [])], indirect=True)


@pytest.fixture
def backend(request) -> str:
    return _checked(request)


@pytest.fixture
def fused(request) -> str:
    return _checked(request)


def _checked(request) -> str:
    if request.param == "triton":
        request.getfixturevalue("triton_only")
    elif request.param == "cuda" and (reason := request.getfixturevalue("cuda_library")):
        pytest.skip(reason)
    return request.param


@pytest.fixture
def triton_only() -> str:
    pytest.importorskip("triton")
    if TOO_LATE:
        pytest.skip("Triton was imported uninterpreted: run in a process of its own (test_kernel_interpreter.py)")
    return "triton"


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
