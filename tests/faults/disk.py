"""The disk under a process, seen and made to fail by disk_shim.c, which must be preloaded.

The fork server of the tests preloads it; a script that is started by hand calls `ensure` first.
"""

import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).with_name("disk_shim.c")
FOREVER = 1 << 60


def library() -> Path | None:
    """The compiled shim; None where there is no C compiler, or this is not Linux."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if sys.platform != "linux" or not compiler:
        return None
    digest = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:12]
    path = Path(__file__).parents[2] / "build" / f"disk-shim-{digest}.so"
    if not path.is_file():
        path.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            produced = Path(folder) / "shim.so"
            command = [compiler, "-O1", "-shared", "-fPIC", "-o", str(produced), str(SOURCE), "-ldl", "-lpthread"]
            if subprocess.run(command, capture_output=True).returncode:
                return None
            produced.rename(path)
    return path


def preloaded() -> bool:
    """Whether this process has the shim under it."""
    return hasattr(ctypes.CDLL(None), "disk_start")


def ensure() -> None:
    """Start this script again with the shim preloaded, unless it is."""
    if preloaded():
        return
    path = library()
    if path is None:
        sys.exit("wants Linux and a C compiler")
    os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | {"LD_PRELOAD": str(path)})


def _function(name: str, *types, returns=None):
    function = getattr(ctypes.CDLL(None), name)
    function.argtypes, function.restype = types, returns
    return function


def start(place: Path, trace: Path | None = None) -> None:
    """From now on operations under `place` are counted, and written to `trace`."""
    given = os.fsencode(trace) if trace else b""
    _function("disk_start", ctypes.c_char_p, ctypes.c_char_p)(os.fsencode(place), given)


def stop() -> None:
    _function("disk_stop")()


def fail(number: int, error: int = 0, *, seconds: float = 0.0, count: int = 1) -> None:
    """Operations `number` (from 0) to number + count - 1 of this process fail with `error`, or first hang for `seconds`."""
    fail_at = _function("disk_fail", ctypes.c_long, ctypes.c_long, ctypes.c_int, ctypes.c_double)
    fail_at(number, min(number + count, FOREVER), error, seconds)


def count() -> int:
    """Operations of this process that change something, since `start`."""
    return _function("disk_count", returns=ctypes.c_long)()


def failed() -> str:
    """The operation that was the first to fail, and its file; empty where none was."""
    return os.fsdecode(_function("disk_last", returns=ctypes.c_char_p)())


def mark(text: str) -> None:
    """A note in the trace."""
    _function("disk_mark", ctypes.c_char_p)(text.encode())


def jump(seconds: float) -> None:
    """From now on the clock of the wall is wrong by up to so many seconds, by others each time it is read."""
    _function("disk_jump", ctypes.c_double)(seconds)


@dataclass(frozen=True)
class Operation:
    """One record of a trace."""

    name: str  # create, open, empty, write, truncate, fsync, unsynced, close, rename, link, unlink, rmdir, mkdir, mark
    process: int
    count: int  # what `fail` calls it, if it changes something
    descriptor: int
    number: int  # offset of a write, size of a truncate
    data: bytes
    path: str
    other: str  # where a rename or link leads


def read_trace(path: Path) -> list[Operation]:
    """The operations of a trace, in their order."""
    operations = []
    with open(path, "rb") as file:
        while line := file.readline():
            name, process, count, descriptor, number, size, first, second = os.fsdecode(line[:-1]).split("\t")
            data = file.read(int(size))
            operations.append(
                Operation(name, int(process), int(count), int(descriptor), int(number), data, first, second)
            )
    return operations
