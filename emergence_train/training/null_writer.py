"""What a session records with: this writer writes nothing, recording.RunWriter does."""

from typing import Any

import torch

from emergence_train.evaluation.at_checkpoint import Scores
from emergence_train.training.console import Console
from emergence_train.training.observers import Step


class NullWriter:
    """The recorder of ranks other than 0, which writes nothing."""

    @property
    def best(self) -> int | None:
        """The step of the lowest iid loss."""
        return None

    def restore(self, step: int, rewinds: list[dict], measured: set[int], first: int = 0) -> list[float]:
        """Truncate the run's files to `step`, at a start or after a rewind.

        Args: `rewinds` of rewinds.json; `measured`: steps whose tables must exist (`step` is not
        among them where its measurements are still due); `first`: the last step of the parent.
        Returns the losses of the last steps that were not skipped, for the anomaly detector.
        """
        return []

    def step(self, step: Step) -> None:
        """A step has ended."""

    def checkpoint(self, step: int, sums: dict[str, torch.Tensor], seconds: float, scores: Scores) -> None:
        """Record a checkpoint: `sums` [4, T] of each split over all ranks, `seconds` of validation, the tasks' scores."""

    def write(self, kind: str, **values: Any) -> None:
        """Append a row to metrics.jsonl."""

    def flush(self) -> str | None:
        """Write everything to disk; return the failure as one line, or None."""

    def close(self, *, stopped: bool = False) -> str | None:
        """Flush and close. `stopped`: by a signal."""


class LineWriter(NullWriter):
    """Of a rank other than 0 with a log of its own: it writes the lines of steps, as rank 0's screen has them."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def step(self, step: Step) -> None:
        self.console.step(step.step, step.tokens, step.loss, step.grad_norm, step.lr, step.applied)
