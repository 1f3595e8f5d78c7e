"""One way to compute one case, and what is measured of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

Forward = Callable[[], Tensor | tuple[Tensor, ...]]


@dataclass
class Candidate:
    """forward() returns the tensor that is differentiated, or several, each by the same upstream gradient."""

    name: str
    forward: Forward
    leaves: tuple[Tensor, ...]
    note: str = ""

    def both(self, upstream: Tensor | None) -> tuple[Tensor, ...]:
        out = self.forward()
        if isinstance(out, tuple):
            return *out, *torch.autograd.grad(out, self.leaves, (upstream,) * len(out))
        return out, *torch.autograd.grad(out, self.leaves, upstream)


@dataclass
class Case:
    """A shape, its candidates, and how to turn milliseconds into rates. FLOPs and bytes are those the problem needs,
    whoever computes it: one formula for all candidates."""

    op: str
    shape: dict[str, int | str | bool]
    candidates: Sequence[Callable[[], Candidate]]  # made one at a time: each may hold memory
    flops: dict[str, float] = field(default_factory=dict)  # of "forward" and "both"
    bytes: dict[str, float] = field(default_factory=dict)
    formula: str = ""
    upstream: Callable[[], Tensor | None] = lambda: None
    # Errors of (out, gradients...) against float64, as name -> relative norm.
    errors: Callable[[tuple[Tensor, ...]], dict[str, float]] | None = None


def peers_first(run: tuple[str, Forward]) -> tuple[bool, bool]:
    """Sorts what is measured. The CUDA kernels last: an error of theirs is every later candidate's."""
    return run[0].startswith("emergence"), run[0] == "emergence cuda"


def constant(value: Tensor | None) -> Callable[[], Tensor | None]:
    """A function of no arguments that returns `value`."""
    return lambda: value


def relative(ours: Tensor, exact: Tensor) -> float:
    return ((ours.double() - exact).norm() / exact.norm().clamp_min(1e-300)).item()
