"""Where kernels run in tests: compiled on a CUDA device if there is one, else in Triton's interpreter on the CPU.

With EMERGENCE_TEST_PTX=80 or 90 Triton compiles for sm_80 or sm_90, and the PTX runs on the CPU (ptx_driver.py); of the
backends only "triton" is tested then. With EMERGENCE_TEST_NVCC=80 or 90a the CUDA kernels are the PTX that nvcc makes of them
(ptx_of_nvcc.py), and only "cuda" is tested. test_kernel_ptx.py starts processes of either kind.
"""

import importlib.util
import json
import os
import sys
from pathlib import Path

import pytest
import torch

import emergence_kernels as ek
from emergence_kernels.backends import build, library
from emergence_kernels.backends.dispatch import IMPLEMENTED
from support import locked

sys.path.insert(0, str(Path(__file__).with_name("harness")))
from compiled import COMPILED, CUDA, NVCC, PTX  # noqa: E402

os.environ.pop("EMERGENCE_KERNELS_BACKEND", None)
os.environ[build.WERROR_VARIABLE] = "1"
ELSEWHERE = []  # keeps the callback of EMERGENCE_TEST_NVCC
# Compiled here, from the sources as they are. Without a GPU the CUDA kernels' own source runs on the CPU.
BUILT = build.SOURCES.parent / "build" / "csrc"
if PTX:
    import ptx_driver

    ptx_driver.install(PTX)
elif not COMPILED and importlib.util.find_spec("triton"):
    import quick_interpreter

    quick_interpreter.install()
KINDS = {"cpu": "cpu"} | ({} if CUDA else {"cuda": "emulated"})
for _backend, _kind in KINDS.items():
    os.environ[library.VARIABLES[_backend]] = str(BUILT / f"{_kind}.so")


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cuda" if CUDA else "cpu")


def _build(kind: str) -> str | None:
    """Compile a library (two minutes after a change; by one worker); return the reason why it cannot be built, or None."""
    BUILT.mkdir(parents=True, exist_ok=True)
    with locked(BUILT / f"{kind}.lock"):
        try:
            build.build(kind, BUILT / f"{kind}.so")
        except build.BuildError as error:
            return str(error)
    return None


# Before any test: runs of the command line in other tests must not find it part of the time.
CPU_LIBRARY = None if PTX or NVCC else _build("cpu")


def _library(backend: str) -> str | None:
    """The reason why there is no library to test, or None."""
    if backend in KINDS and (reason := CPU_LIBRARY if backend == "cpu" else _build(KINDS[backend])):
        return reason
    if backend == "cuda" and NVCC:
        import ptx_of_nvcc

        ELSEWHERE.append(ptx_of_nvcc.Elsewhere(Path(os.environ[library.VARIABLES["cuda"]]), NVCC))
    return library.unsupported_reason(backend, torch.device("cuda" if backend == "cuda" and CUDA else "cpu"))


@pytest.fixture(scope="session")
def cuda_library() -> str | None:
    return _library("cuda")


@pytest.fixture(scope="session")
def cpu_library() -> str | None:
    return _library("cpu")


@pytest.fixture
def hopper(cuda_library) -> None:
    """Hopper's CUDA kernels run here: in the emulator, or on such a GPU."""
    if cuda_library:
        pytest.skip(cuda_library)
    if CUDA and torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("not a Hopper GPU")


@pytest.fixture
def emulated() -> None:
    if CUDA:
        pytest.skip("the order of a GPU's threads cannot be set")


def pytest_generate_tests(metafunc) -> None:
    """`backend`: all that have the module's operation. `fused`: those with kernels of our own. `compiled`: in C++."""
    module = metafunc.module.__name__
    names = ["triton"] if PTX else ["cuda"] if NVCC else ["triton", "cuda"]
    alone = PTX or NVCC
    names += ["cpu"] if "attention_scores" not in module and not CUDA and not alone else []
    if "compiled" in metafunc.fixturenames:
        metafunc.parametrize("compiled", ["cuda", *([] if CUDA or NVCC else ["cpu"])], indirect=True)
    elif "fused" in metafunc.fixturenames:
        metafunc.parametrize("fused", names, indirect=True)
    elif "backend" in metafunc.fixturenames:
        metafunc.parametrize("backend", names if alone else ["torch", *names], indirect=True)


def pytest_collection_modifyitems(items) -> None:
    """Of "cpu" only float32 is there to test."""
    parameters = [getattr(getattr(item, "callspec", None), "params", {}) for item in items]
    items[:] = [
        item
        for item, parameters_of_item in zip(items, parameters)
        if "cpu" not in (parameters_of_item.get("backend"), parameters_of_item.get("compiled"))
        or {parameters_of_item.get("dtype", torch.float32), *parameters_of_item.get("types", ())} == {torch.float32}
    ]


@pytest.fixture
def backend(request) -> str:
    return _checked(request)


@pytest.fixture
def fused(request) -> str:
    return _checked(request)


@pytest.fixture
def compiled(request) -> str:
    return _checked(request)


def _checked(request) -> str:
    if request.param == "triton":
        request.getfixturevalue("triton_only")
    operations = _operations(Path(request.module.__file__).parent.name)
    if operations and not any(request.param in IMPLEMENTED[operation] for operation in operations):
        pytest.skip(f"{request.param} has no {operations[0]}")
    if request.param in ("cuda", "cpu") and (reason := request.getfixturevalue(f"{request.param}_library")):
        pytest.skip(reason)
    return request.param


def _operations(folder: str) -> list[str]:
    """Those of a folder of emergence_kernels, whose tests have a folder of that name."""
    return [name for name in IMPLEMENTED if getattr(ek, name).__module__.split(".")[1] == folder]


@pytest.fixture
def triton_only() -> str:
    pytest.importorskip("triton")
    return "triton"


def pytest_terminal_summary(terminalreporter) -> None:
    if PTX:
        terminalreporter.write_line("launched: " + json.dumps(ptx_driver.launches))
    if ELSEWHERE:
        terminalreporter.write_line("launched: " + json.dumps(sys.modules["ptx_of_nvcc"].launches))


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
