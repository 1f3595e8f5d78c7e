"""Loss sums by position on the device, and the rows of a `positions` table."""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("count", "loss_sum", "loss_sq_sum", "correct")


class PositionAccumulator:
    """Accumulates a kernel's per-position sums, [4, T] float64 on the model's device.

    Counts are kept as float64 with the rest, so that one collective reduces all four: exact up to 2^53 tokens a position.
    `own`: the positions that this process has of each sequence, and adds sums of.
    """

    def __init__(self, sequence: int, device: torch.device, own: slice = slice(None)) -> None:
        self.own = own
        self.sums = torch.zeros(len(COLUMNS), sequence, dtype=torch.float64, device=device)

    def add(self, sums: Any, *, finite_only: bool = True) -> torch.Tensor:
        """Add a micro-batch, unless its loss is not finite, since its step is skipped (see faults/anomalies.py).

        `finite_only` False adds it all the same, so that the sums show it.

        Returns:
            [4], its totals over positions.
        """
        stacked = torch.stack([getattr(sums, column) for column in COLUMNS])  # integers become float64
        totals = stacked.sum(1)
        if finite_only:
            stacked = stacked.where(totals[COLUMNS.index("loss_sum")].isfinite(), 0.0)
        self.sums[:, self.own] += stacked
        return totals

    def take(self) -> torch.Tensor:
        """Return this rank's sums so far and reset them."""
        taken = self.sums.clone()
        self.sums.zero_()  # in place: a CUDA graph may add to them
        return taken


def rows(sums_over_ranks: torch.Tensor, split: str) -> "pd.DataFrame":
    """Rows of the table for one split from [4, T] sums, without positions that have no token. NaN in correct: not known."""
    import pandas as pd  # of all the ranks that have sums rank 0 alone makes rows

    count, loss_sum, loss_sq_sum, correct = sums_over_ranks.cpu().numpy()
    frame = pd.DataFrame(
        {
            "split": split,
            "position": range(1, len(count) + 1),
            "count": count.astype("int64"),
            "loss_sum": loss_sum,
            "loss_sq_sum": loss_sq_sum,
            "correct": correct if np.isnan(correct).any() else correct.astype("int64"),
        }
    )
    return frame[frame["count"] > 0]
