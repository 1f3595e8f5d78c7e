"""Runs PTX on CPU memory, by ptx/execute.cpp: the compilers' own code, under the emulator's race detector."""

import ctypes
import hashlib
import os
import struct
import subprocess
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

import ptx_reader

from emergence_kernels.backends import build

SOURCES = Path(__file__).with_name("ptx")
MAP_MAGIC = struct.pack("<Q", 0x70616D726F736E74)  # products.h
MAP_BYTES = 128


def tensor_map(fields: bytes) -> bytes:
    """In the place of a CUtensorMap: the fields of emulate_hopper.h's TensorMap, as they lie in memory."""
    return (MAP_MAGIC + fields).ljust(MAP_BYTES, b"\0")


class LaunchError(RuntimeError):
    """What the race detector objected to, and where."""


def compiled(name: str, command: Sequence[str], sources: Iterable[Path]) -> Path:
    """The file build/csrc/`name`, with a number before its suffix, that `command` makes: once, until it or the sources change.

    Raises:
        build.BuildError: what the compiler says.
    """
    seen = hashlib.sha256(repr(command).encode())
    for source in sorted(sources):
        seen.update(source.read_bytes())
    plain = build.SOURCES.parent / "build" / "csrc" / name
    path = plain.with_stem(f"{plain.stem}-{seen.hexdigest()[:16]}")
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_stem(f"{path.stem}.{os.getpid()}")  # whole or not at all
        done = subprocess.run([*command, "-o", str(partial)], capture_output=True, text=True)
        if done.returncode:
            raise build.BuildError(f"{Path(command[0]).name} failed: {done.stderr[-2000:]}")
        partial.replace(path)
    return path


@cache
def library() -> ctypes.CDLL:
    """The executor, compiled once a change (7 seconds)."""
    compiler = build.host_compiler()
    if compiler is None:
        raise build.BuildError("g++ is not on the path")
    flags = ["-std=c++20", "-O1", "-ffp-contract=off", "-fPIC", "-shared", "-fno-gnu-unique", "-Wall", "-Wextra"]
    command = [compiler, *flags, "-I", str(build.SOURCES), str(SOURCES / "execute.cpp")]
    headers = [*SOURCES.iterdir(), *(build.SOURCES / "emulator").glob("*.h")]
    loaded = ctypes.CDLL(str(compiled("ptx.so", command, headers)))
    loaded.ptx_load.restype = ctypes.c_void_p
    return loaded


class Program:
    """A kernel, ready to be launched."""

    def __init__(self, kernel: ptx_reader.Kernel):
        self.kernel = kernel
        error = ctypes.create_string_buffer(4096)
        self._handle = library().ptx_load(kernel.program.encode(), error, ctypes.c_size_t(len(error)))
        if not self._handle:
            raise ptx_reader.PtxError(f"{kernel.name}: {error.value.decode()}")

    @classmethod
    def of(cls, text: str, name: str | None = None) -> "Program":
        return cls(ptx_reader.read(text, name))

    def parameters(self, values: Sequence[bytes]) -> bytes:
        """The values as they lie in the parameter space; more parameters than values are zeros."""
        block = bytearray(self.kernel.parameter_bytes)
        if len(values) > len(self.kernel.parameters):
            raise LaunchError(f"{len(values)} values for {len(self.kernel.parameters)} parameters")
        for parameter, value in zip(self.kernel.parameters, values):
            if len(value) != parameter.bytes:
                raise LaunchError(f"{parameter.name} has {parameter.bytes} bytes, not {len(value)}")
            block[parameter.offset : parameter.offset + len(value)] = value
        return bytes(block)

    def launch(
        self,
        grid: Sequence[int],
        block: Sequence[int],
        dynamic_shared: int,
        values: Sequence[bytes],
        ranges: Sequence[tuple[int, int]],
        *,
        tiles: bool = False,
    ) -> None:
        """ranges: (address, bytes) of the memory that the launch may touch. tiles: the code is Triton's (execute.cpp).

        Raises:
            LaunchError: the race detector objects.
        """
        given = self.parameters(values)
        space = (ctypes.c_ubyte * (len(given) + 128))()
        start = -(-ctypes.addressof(space) // 128) * 128
        ctypes.memmove(start, given, len(given))
        spans = [(a, n) for a, n in ranges if a and n]
        addresses = (ctypes.c_void_p * max(1, len(spans)))(*(a for a, _ in spans))
        sizes = (ctypes.c_uint64 * max(1, len(spans)))(*(n for _, n in spans))
        shapes = [(ctypes.c_uint32 * 3)(*shape) for shape in (grid, block)]
        error = ctypes.create_string_buffer(4096)
        failed = library().ptx_run(
            ctypes.c_void_p(self._handle),
            *shapes,
            ctypes.c_uint64(self.kernel.shared_bytes + dynamic_shared),
            ctypes.c_void_p(start),
            ctypes.c_uint64(len(given)),
            ctypes.c_uint64(len(spans)),
            addresses,
            sizes,
            int(tiles),
            error,
            ctypes.c_size_t(len(error)),
        )
        if failed:
            raise LaunchError(f"{self.kernel.name}: {error.value.decode()}")
