"""Barriers, waits and fences of emulated kernels, by the race that each prevents: each must be missed when it is skipped."""

import ctypes
import os
import re
from collections.abc import Callable

from emergence_kernels.backends import build, library


def met() -> set[str]:
    """Those that launches of this process have come to."""
    read = ctypes.CDLL(os.environ[library.VARIABLES["cuda"]]).emergence_barriers
    read.restype = ctypes.c_char_p
    return set(read().decode().splitlines())


def written(*sources: str) -> set[str]:
    """Those in kernels of csrc/; the host's part of a source is left out."""
    text = "".join((build.SOURCES / source).read_text().split("// ---- host")[0] for source in sources)
    return set(re.findall(r'"([^"]{20,})"\)?;', text))


def not_missed(reasons: set[str], same: Callable[[], bool], monkeypatch) -> list[str]:
    """Those that can be skipped: neither does the emulator report it, nor is a result another one. Passing turns on orders
    nothing that is shared, and only saves time."""
    needless = []
    for reason in sorted(reasons):
        if "in turns" in reason:
            continue
        monkeypatch.setenv("EMERGENCE_EMULATE_DROP", reason)
        try:
            if same():
                needless.append(reason)
        except RuntimeError as error:
            assert "emulated launch" in str(error), error
    monkeypatch.delenv("EMERGENCE_EMULATE_DROP")
    return needless
