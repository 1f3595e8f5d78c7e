"""Barriers, waits and fences of emulated kernels, by the race that each prevents: each must be missed when it is skipped."""

import ctypes
import functools
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from emergence_kernels.backends import build, library


class Orders:
    """Runs of kernels, by their source: do they have the results of the usual order in another, or with a barrier dropped?

    sums: of a source the places of results that are summed in any order, and so are close alone.
    """

    def __init__(self, runs: dict[str, Callable[[], Iterable[torch.Tensor]]], **sums: tuple[int, ...]) -> None:
        self.runs, self.sums = runs, sums
        self.usual = functools.cache(lambda source: list(runs[source]()))

    def same(self, source: str) -> bool:
        """Bit for bit, but for sums; it ends with the first result that differs."""
        added = self.sums.get(Path(source).stem, ())
        for index, (a, b) in enumerate(zip(self.usual(source), self.runs[source](), strict=True)):
            alike = torch.allclose(a.float(), b.float(), rtol=2**-7, atol=1e-4) if index in added else torch.equal(a, b)
            if not alike:
                return False
        return True

    def check_seeds(self, source: str, seeds: Iterable[int], monkeypatch) -> None:
        self.usual(source)
        for seed in seeds:
            monkeypatch.setenv("EMERGENCE_EMULATE_SEED", str(seed))
            assert self.same(source)


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
