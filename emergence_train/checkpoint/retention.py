"""Retention of checkpoints: a pure function of their steps, testable without files."""

from pathlib import Path

from emergence_train.checkpoint.format import step_of
from emergence_train.config import Checkpoints

PIN = "keep"  # a checkpoint with a file of this name is never deleted


def kept(steps: list[int], settings: Checkpoints, regular: set[int], best: int | None, pinned: set[int]) -> set[int]:
    """The checkpoints to keep, of those at `steps`.

    `regular` are the planned checkpoints (others are ephemeral), `best` the step of the lowest iid loss,
    `pinned` those with a file named keep.
    """
    newest = set(sorted(steps)[-settings.keep_last :])
    if settings.save_state == "every":
        return (regular | newest | pinned) & set(steps)
    n = settings.keep_every
    spaced = set(sorted(regular)[n - 1 :: n]) if n else set()
    lowest = {best} if settings.keep_best and best is not None else set()
    return (newest | spaced | pinned | lowest) & set(steps)


def pinned(checkpoints: list[Path]) -> set[int]:
    return {step_of(path) for path in checkpoints if (path / PIN).exists()}
