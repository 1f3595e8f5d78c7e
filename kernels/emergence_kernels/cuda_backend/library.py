"""Finds and loads the compiled library.

It lies beside this file (`make cuda`, or a prebuilt wheel), or where EMERGENCE_CUDA_LIBRARY says. A library built with
--emulate runs the same source on CPU tensors: for tests, as TRITON_INTERPRET is.
"""

import ctypes
import os
from functools import cache
from pathlib import Path

import torch

from ..tracing import constant_while_tracing
from .build import LIBRARY

VARIABLE = "EMERGENCE_CUDA_LIBRARY"


def _library() -> tuple[str | None, str | None]:
    """(what it was built for, why it is not there): one of them is None."""
    path = Path(os.environ.get(VARIABLE) or LIBRARY)
    if not path.is_file():
        return None, f"{VARIABLE} names no file: {path}" if os.environ.get(VARIABLE) else "it is not built (make cuda)"
    return _load(path)


@cache
def _load(path: Path) -> tuple[str | None, str | None]:
    try:
        torch.ops.load_library(str(path))
        read = ctypes.CDLL(str(path)).emergence_cuda_build
    except (OSError, AttributeError) as error:
        return None, f"{path} cannot be loaded: {' '.join(str(error).split())}"
    read.restype = ctypes.c_char_p
    return read().decode(), None


def describe() -> str:
    """One line for people: what the library was built for, or why there is none."""
    built, missing = _library()
    return built or f"not available: {missing}"


def emulated() -> bool:
    """Whether the library runs the kernels' source on a CPU."""
    return (_library()[0] or "").startswith("emulated")


@constant_while_tracing  # files are looked at while a graph is traced, not in it
def why_not(device: torch.device) -> str | None:
    """The reason why the library cannot run on `device`, or None."""
    built, missing = _library()
    if built is None:
        return missing
    if emulated():
        return None if device.type == "cpu" else f"the library is an emulation for CPU tensors, and these are on {device.type}"
    if device.type != "cuda":
        return f"the tensors are on {device.type}, and it needs a CUDA device"
    major, minor = torch.cuda.get_device_capability(device)
    if not runs_on(built.split(",")[0].split(), major, minor):
        return f"it is built for {built.split(',')[0]}, not for sm_{major}{minor}"
    return None


def runs_on(architectures: list[str], major: int, minor: int) -> bool:
    """Code for sm_80 runs on 8.0 and all later 8.x; code for sm_90a on 9.0 alone."""
    for name in architectures:
        number = name.removeprefix("sm_")
        exact = number.endswith("a")
        of_major, of_minor = int(number.rstrip("a")[:-1]), int(number.rstrip("a")[-1])
        if of_major == major and (of_minor == minor or (of_minor < minor and not exact)):
            return True
    return False
