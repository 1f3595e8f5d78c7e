"""Where the kernels run: compiled on a CUDA device if there is one, else in Triton's interpreter on the CPU."""

import os
import sys

import pytest
import torch

CUDA = torch.cuda.is_available()
# The interpreter must be chosen before Triton is first imported. If some other test module was quicker,
# test_kernel_interpreter.py runs this folder in a process of its own.
TOO_LATE = not CUDA and "triton" in sys.modules and os.environ.get("TRITON_INTERPRET") != "1"
if not CUDA:
    os.environ["TRITON_INTERPRET"] = "1"
os.environ.pop("EMERGENCE_KERNELS_BACKEND", None)


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cuda" if CUDA else "cpu")


@pytest.fixture(params=["torch", "triton"])
def backend(request) -> str:
    if request.param == "triton":
        pytest.importorskip("triton")
        if TOO_LATE:
            pytest.skip("Triton was imported uninterpreted: run in a process of its own (test_kernel_interpreter.py)")
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
