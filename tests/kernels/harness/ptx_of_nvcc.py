"""Launches of csrc/'s kernels, taken to the PTX that nvcc made of them.

The host code is that of the emulated library: operators, checks, grids and arguments. Its launches come here instead of to the
kernels that g++ compiled (emulate.h, elsewhere), and the PTX of the kernel of the same name is executed, inline assembly and all.
"""

import ctypes
import re
import subprocess
from collections import Counter
from functools import cache
from pathlib import Path

import ptx_executor
import ptx_reader

from emergence_kernels.backends import build

launches = Counter()  # by kernel
MAP_FIELDS = 96  # bytes of emulate_hopper.h's TensorMap
_TYPE = ctypes.CFUNCTYPE(
    ctypes.c_void_p,
    ctypes.c_void_p,
    ctypes.POINTER(ctypes.c_uint),
    ctypes.c_size_t,
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.POINTER(ctypes.c_void_p),
    ctypes.POINTER(ctypes.c_size_t),
    ctypes.c_size_t,
)


@cache
def ptx(path: Path, arch: str) -> str:
    """Of a file of csrc/cuda or csrc/checks, as the library is compiled."""
    include = ["-I", str(build.SOURCES), "-isystem", str(build.torch_folder() / "include")]
    flags = [*build.COMMON, *build.FLAGS["cuda"], f"-arch=sm_{arch}", '-DEMERGENCE_BUILD=""', *include]
    command = [build.nvcc(), *flags, "-ptx", str(path)]
    return ptx_executor.compiled(f"{path.stem}-{arch}.ptx", command, [*build.headers("cuda"), path]).read_text()


def demangled(names: list[str]) -> list[str]:
    """Readable, and the same whichever compiler mangled them."""
    done = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True)
    result = []
    for line in done.stdout.splitlines():
        line = re.sub(r"\(anonymous namespace\)|\b_GLOBAL__N__\w+", "unnamed", line)
        line = re.sub(r"\bunit_\w+::", "", line)  # build.py, where several sources are one translation unit
        line = (
            line.replace("CUtensorMap_st", "emulate::TensorMap")
            .replace("__nv_bfloat16", "bf16")
            .replace("__half", "_Float16")
        )
        result.append(line)
    return result


@cache
def programs(function: str, arch: str) -> dict[str, str]:
    """Entries of the files that define such a function: readable name -> (text, name)."""
    programs_by_name = {}
    for source in build.sources("emulated"):
        if re.search(rf"\b{function}\(", source.read_text()):
            text = ptx_reader.without_comments(ptx(source, arch))
            names = list(ptx_reader.kernels(text))
            programs_by_name |= {readable: (text, name) for readable, name in zip(demangled(names), names)}
    return programs_by_name


@cache
def program(kernel: str, arch: str) -> ptx_executor.Program:
    return ptx_executor.Program.of(*programs(short(kernel), arch)[kernel])


def short(kernel: str) -> str:
    """The function's own name."""
    return re.search(r"(\w+)[<(]", kernel)[1]


class Elsewhere:
    """What an emulated library calls in the place of its kernels."""

    def __init__(self, library: Path, arch: str):
        self.arch, self.failure = arch, None
        self.used: dict[str, ptx_executor.Program] = {}
        loaded = ctypes.CDLL(str(library))
        listed = subprocess.run(["nm", str(library)], capture_output=True, text=True, check=True).stdout
        symbols = {parts[2]: int(parts[0], 16) for parts in map(str.split, listed.splitlines()) if len(parts) == 3}
        known = "emergence_launch_elsewhere"
        self.base = ctypes.cast(getattr(loaded, known), ctypes.c_void_p).value - symbols[known]
        names = [name for name in symbols if name.startswith("_ZN")]
        self.kernels = {symbols[name]: readable for name, readable in zip(names, demangled(names))}
        self.callback = _TYPE(self.launch)
        getattr(loaded, known)(self.callback)

    def launch(self, kernel, shape, shared_bytes, ranges, count, values, sizes, parameters):
        try:
            self._launch(kernel, shape, shared_bytes, ranges, count, values, sizes, parameters)
        except Exception as error:
            self.failure = ctypes.create_string_buffer(f"{type(error).__name__}: {error}".encode())
            return ctypes.addressof(self.failure)
        return None

    def _launch(self, kernel, shape, shared_bytes, ranges, count, values, sizes, parameters):
        name = self.kernels[kernel - self.base]
        compiled = program(name, self.arch)
        given = [ctypes.string_at(values[i], sizes[i]) for i in range(parameters)]
        for i, wanted in enumerate(compiled.kernel.parameters):
            if wanted.bytes == ptx_executor.MAP_BYTES and len(given[i]) == MAP_FIELDS:
                given[i] = ptx_executor.tensor_map(given[i])
        pairs = (ctypes.c_uint64 * (2 * count)).from_address(ranges) if count else []
        spans = [(pairs[2 * i], pairs[2 * i + 1]) for i in range(count)]
        self.used[name] = compiled
        launches[short(name)] += 1
        compiled.launch(shape[:3], shape[3:6], shared_bytes, given, spans)
