"""Forward, sums by position and backward of one micro-batch: eagerly, or replayed as one CUDA graph.

A decoder of 24 blocks launches some 1,500 kernels per micro-batch, each after 5 to 50 microseconds of Python: below about a
hundred thousand tokens per second a GPU hides that, above it waits. A graph launches them all at once. It is captured after a
first eager optimizer step, when all lazily created state exists, has static input tensors, and is replayed for every micro-batch
of that shape; collectives and the optimizer are outside of it. Capturing needs the whole run on one stream other than the
default: autograd accumulates a gradient on the stream on which its parameter was first used (`own_stream`).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from emergence_train.parallel.mesh import Group
from emergence_train.recorder.position_sums import PositionAccumulator


def own_stream(device: torch.device) -> None:
    """Make a new stream the current one."""
    if device.type == "cuda" and torch.cuda.current_stream(device) == torch.cuda.default_stream(device):
        torch.cuda.set_stream(torch.cuda.Stream(device))


class MicroBatch:
    """run(tokens, targets, ids, scale) -> [count, loss sum] of the micro-batch, its gradients added to the engine's.

    Args:
        engine: DeepSpeed's. accumulator: of the sums by position.
        weights: of the rank's positions, [T] or None. z_loss: coefficient.
        sequence: the ranks that share the sequences; tokens and targets are of this one's positions.
        graphs: capture and replay; the engine's reductions must not run inside (training.main_gradients sees to that).
        log: called with a line where capturing fails; everything then runs eagerly.
    """

    def __init__(
        self,
        engine: Any,
        accumulator: PositionAccumulator,
        weights: Tensor | None,
        z_loss: float,
        *,
        sequence: Group | None = None,
        graphs: bool = False,
        log: Callable[[str], None] = print,
    ) -> None:
        self.engine, self.accumulator, self.weights, self.z_loss = engine, accumulator, weights, z_loss
        self.shared = {"group": sequence} if sequence and sequence.size > 1 else {}
        self.graphs, self.log = graphs, log
        self.captured: _Captured | None = None
        self.warm = False  # lazily created state exists
        engine.module.captured = graphs

    def forward(self, tokens: Tensor, targets: Tensor, ids: Tensor | None) -> tuple[Tensor, Tensor]:
        """-> the loss, [count, loss sum]."""
        out = self.engine(tokens, targets, self.weights, ids, self.z_loss, **self.shared)
        return out.loss, self.accumulator.add(out.positions)[:2]

    def __call__(
        self,
        tokens: Tensor,
        targets: Tensor,
        ids: Tensor | None,
        scale: Tensor | None,
        at: Callable[[str], object] = str,
    ) -> Tensor:
        """at: called with the name of each operation at its start, for the watchdog."""
        given = (tokens, targets, ids, scale)
        if not (self.graphs and self.warm):
            return self._eagerly(*given, at)
        at("forward")  # and backward, in one
        if self.captured is None or not self.captured.fits(given):
            try:
                self.captured = _Captured(self._eagerly, given, list(self.engine.module.buffers()))
            except RuntimeError as error:
                self.graphs, self.captured = False, None
                self.log(f"CUDA graphs: capturing failed ({_first_cause(error)}); training continues without")
                return self._eagerly(*given, at)
        return self.captured.replay(given)

    def step_done(self) -> None:
        """Record an optimizer step: the state that a graph needs exists now."""
        self.warm = True

    def reset(self) -> None:
        """Drop the graph after a load of the engine's state: its tensors may have been replaced."""
        self.captured, self.warm = None, False

    def _eagerly(
        self,
        tokens: Tensor,
        targets: Tensor,
        ids: Tensor | None,
        scale: Tensor | None,
        at: Callable[[str], object] = str,
    ) -> Tensor:
        at("forward")
        loss, totals = self.forward(tokens, targets, ids)
        at("backward")
        self.engine.backward(loss if scale is None else loss * scale)
        return totals


def _first_cause(error: BaseException) -> str:
    """The first error of a chain: ending a failed capture raises another one."""
    while error.__context__ is not None:
        error = error.__context__
    return str(error).splitlines()[0] if str(error) else type(error).__name__


class _Captured:
    """A graph of run(*inputs) with static inputs and result."""

    def __init__(self, run: Callable[..., Tensor], given: tuple, kept: list[Tensor]) -> None:
        self.inputs = tuple(None if t is None else t.clone() for t in given)
        self.kept = kept  # tensors that the graph reads and the module may replace
        self.graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        # Relaxed: other threads (saving, NCCL's watchdog) may call CUDA meanwhile, and a kernel may be loaded when first used.
        with torch.cuda.graph(self.graph, stream=torch.cuda.current_stream(), capture_error_mode="relaxed"):
            self.result = run(*self.inputs)

    def fits(self, given: tuple) -> bool:
        return all((a is None) == (b is None) and (a is None or a.shape == b.shape) for a, b in zip(self.inputs, given))

    def replay(self, given: tuple) -> Tensor:
        for own, new in zip(self.inputs, given):
            if own is not None:
                own.copy_(new, non_blocking=True)
        self.graph.replay()
        return self.result
