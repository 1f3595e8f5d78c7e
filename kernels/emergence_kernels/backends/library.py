"""Finds and loads the compiled libraries: "cuda" for GPUs, "cpu" for CPUs.

They are in libraries/ (`make install` tries to build the CPU's, `make cuda` the GPU's), or at EMERGENCE_CUDA_LIBRARY and
EMERGENCE_CPU_LIBRARY. A library of kind "emulated" in the place of "cuda" runs the GPU's
source on CPU tensors: for tests, as TRITON_INTERPRET is.
"""

import ctypes
import os
import re
from functools import cache
from pathlib import Path
from typing import Any

import torch

from .tracing import constant_while_tracing

VARIABLES = {"cuda": "EMERGENCE_CUDA_LIBRARY", "cpu": "EMERGENCE_CPU_LIBRARY"}


def _library(backend: str) -> tuple[str | None, str | None]:
    """(what it was built for, why it is missing): one of them is None. A process loads one library per backend."""
    named = os.environ.get(VARIABLES[backend])
    if (loaded := _LOADED.get((backend, named))) is not None:
        return loaded
    from . import build  # not above: python -m would warn that it was imported before it runs

    path = Path(named or build.library(backend))
    if not path.is_file():
        return None, f"{VARIABLES[backend]} names no file: {path}" if named else f"it is not built ({_remedy(backend)})"
    _LOADED[backend, named] = _load(path)
    return _LOADED[backend, named]


_LOADED: dict[tuple[str, str | None], tuple[str | None, str | None]] = {}


def _remedy(backend: str) -> str:
    from . import build

    return f"python -m emergence_kernels.backends.build {backend}" if build.sources(backend) else build.REINSTALL


def _load(path: Path) -> tuple[str | None, str | None]:
    try:
        torch.ops.load_library(str(path))
        read = ctypes.CDLL(str(path)).emergence_build
    except (OSError, AttributeError) as error:
        return None, f"{path} cannot be loaded: {' '.join(str(error).split())}"
    read.restype = ctypes.c_char_p
    built = read().decode()
    return (None, reason) if (reason := _other_source(path, built)) else (built, None)


def _other_source(path: Path, built: str) -> str | None:
    """The reason why a library is not that of the source beside this package, or None. It may lack an operation."""
    from . import build

    kind = next((kind for kind in ("emulated", "cpu") if built.startswith(f"{kind},")), "cuda")
    now = build.fingerprint(kind)
    if now is None or built.endswith(f"csrc {now}"):
        return None
    return f"{path} was built from another version of csrc/: build it again ({_remedy(kind)} --out {path})"


def operations(backend: str) -> Any:
    """The raw operations of a backend for which unsupported_reason is None."""
    return torch.ops.emergence_cpu if backend == "cpu" else torch.ops.emergence_cuda


def describe(backend: str) -> str:
    """One line for the user: what the library was built for, or why there is none."""
    built, missing = _library(backend)
    return built or f"not available: {missing}"


@constant_while_tracing  # files are read while a graph is traced, not in it
def unsupported_reason(backend: str, device: torch.device) -> str | None:
    """The reason why the library cannot run on `device`, or None."""
    built, missing = _library(backend)
    if built is None:
        return missing
    if backend == "cpu" or built.startswith("emulated"):
        return None if device.type == "cpu" else f"the library is for CPU tensors, and these are on {device.type}"
    if device.type != "cuda":
        return f"the tensors are on {device.type}, and it needs a CUDA device"
    major, minor = torch.cuda.get_device_capability(device)
    if not runs_on(built.split(",")[0].split(), major, minor):
        return f"it is built for {built.split(',')[0]}, not for sm_{major}{minor}"
    return _old_driver(built, _driver())


@constant_while_tracing
def is_hopper(device: torch.device) -> bool:
    """Whether kernels for sm_90a run on a CUDA device: on 9.0 alone."""
    return torch.cuda.get_device_capability(device) == (9, 0)


@cache
def _driver() -> tuple[int, int] | None:
    """The newest CUDA version that the driver supports, or None where unknown."""
    try:
        driver, version = ctypes.CDLL("libcuda.so.1"), ctypes.c_int()
        if driver.cuDriverGetVersion(ctypes.byref(version)):
            return None
    except (OSError, AttributeError):
        return None
    return version.value // 1000, version.value % 1000 // 10


# The first driver for all of a CUDA's versions: they differ in features, and machine code runs on the oldest (CUDA's minor
# version compatibility).
DRIVERS = {11: 450, 12: 525, 13: 580}


@cache
def _old_driver(built: str, driver: tuple[int, int] | None) -> str | None:
    """The reason why a driver cannot run a library, or None. It would load, and fail at its first launch."""
    release = re.search(r"release (\d+)\.(\d+)", built)
    if release is None or driver is None or driver[0] >= (major := int(release[1])):
        return None
    newer = f"the driver to {DRIVERS[major]} or later" if major in DRIVERS else "the driver"
    return (
        f"it is built with CUDA {release[1]}.{release[2]}, and the driver supports CUDA {driver[0]}.{driver[1]}: "
        f"update {newer}, or rebuild with CUDA {driver[0]} ({_remedy('cuda')})"
    )


def runs_on(architectures: list[str], major: int, minor: int) -> bool:
    """Code for sm_80 runs on 8.0 and all later 8.x; code for sm_90a on 9.0 alone."""
    for name in architectures:
        number = name.removeprefix("sm_")
        exact = number.endswith("a")
        of_major, of_minor = int(number.rstrip("a")[:-1]), int(number.rstrip("a")[-1])
        if of_major == major and (of_minor == minor or (of_minor < minor and not exact)):
            return True
    return False
