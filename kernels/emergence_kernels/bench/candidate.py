"""One way to compute one case, and what is measured of it."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

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


def candidates(
    op: Callable[..., Tensor | tuple[Tensor, ...]],
    plain: Callable[..., Tensor | tuple[Tensor, ...]],
    leaves: tuple[Tensor, ...],
    backends: list[str],
    suite: str,
    peers: Iterable[tuple[str, Forward]] = (),
) -> list[Callable[[], Candidate]]:
    """`op` by each backend, `plain` eager and compiled, and the peers. op and plain take the leaves; op a backend too."""
    runs: list[tuple[str, Forward]] = [*peers, ("torch eager", partial(plain, *leaves))]
    if suite != "tiny":
        runs.append(("torch.compile", partial(torch.compile(plain, dynamic=False), *leaves)))
    runs += [(f"emergence {b}", partial(op, *leaves, backend=b)) for b in backends]
    return [partial(Candidate, name, run, leaves) for name, run in sorted(runs, key=peers_first)]


def errors_of(
    plain: Callable[..., Tensor | tuple[Tensor, ...]],
    names: Iterable[str],
    leaves: tuple[Tensor, ...],
    upstream: Tensor,
    results: tuple[Tensor, ...],
    wide: torch.dtype = torch.float64,
) -> dict[str, float]:
    """Errors of the results (outputs, then gradients) by name, against `plain` of the leaves as they are, in `wide`."""
    copies = [t.detach().to(wide).requires_grad_() for t in leaves]
    out = plain(*copies)
    exact = out if isinstance(out, tuple) else (out,)
    wanted = (*exact, *torch.autograd.grad(exact, copies, (upstream.to(wide),) * len(exact)))
    return {name: relative(got, want.detach()) for name, got, want in zip(names, results, wanted)}


def constant(value: Tensor | None) -> Callable[[], Tensor | None]:
    """A function of no arguments that returns `value`."""
    return lambda: value


def relative(ours: Tensor, exact: Tensor) -> float:
    return ((ours.double() - exact).norm() / exact.norm().clamp_min(1e-300)).item()
