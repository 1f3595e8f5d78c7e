"""Sums of the loss at each position, and validation: the same number of forward passes on every rank."""

import math
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch

from emergence_kernels import PositionSums
from emergence_train.data.dataset import Dataset
from emergence_train.distributed import Ranks, sum_over_ranks

IGNORED = -100
COLUMNS = ("count", "loss_sum", "loss_sq_sum", "correct")


class PositionAccumulator:
    """Adds up a kernel's per-position sums, [4, T] float64 on the model's device.

    Counts are kept as float64 with the rest, so that one collective adds all four: exact up to 2^53 tokens a position.
    """

    def __init__(self, sequence: int, device: torch.device) -> None:
        self.sums = torch.zeros(len(COLUMNS), sequence, dtype=torch.float64, device=device)

    def add(self, sums: PositionSums) -> torch.Tensor:
        """Add a micro-batch; one whose loss is not a number is left out, since its step is (see training/anomalies.py).

        -> its total over positions of each column, [4].
        """
        stacked = torch.stack([getattr(sums, column) for column in COLUMNS])  # integers become float64
        totals = stacked.sum(1)
        self.sums += stacked.where(totals[COLUMNS.index("loss_sum")] < math.inf, 0.0)  # a NaN is not less either
        return totals

    def take(self) -> torch.Tensor:
        """This rank's sums so far; starts again from zero."""
        taken = self.sums.clone()
        self.sums.zero_()  # in place: a CUDA graph may add to them
        return taken


def rows(sums_over_ranks: torch.Tensor, split: str) -> pd.DataFrame:
    """The table's rows of one split from [4, T] sums; positions without a token are left out."""
    count, loss_sum, loss_sq_sum, correct = sums_over_ranks.cpu().numpy()
    frame = pd.DataFrame(
        {
            "split": split,
            "position": range(1, len(count) + 1),
            "count": count.astype("int64"),
            "loss_sum": loss_sum,
            "loss_sq_sum": loss_sq_sum,
            "correct": correct.astype("int64"),
        }
    )
    return frame[frame["count"] > 0]


def reduced(accumulators: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """All splits' sums over all ranks, in one collective."""
    together = sum_over_ranks(torch.stack(list(accumulators.values())))
    return dict(zip(accumulators, together))


@torch.no_grad()
def validate(
    model: torch.nn.Module, dataset: Dataset, ranks: Ranks, batch: int, stopped: Callable[[], bool] = lambda: False
) -> dict[str, torch.Tensor] | None:
    """[4, T] sums (count, loss, loss squared, correct) over all ranks for each split.

    `stopped`, asked before each batch, ends it early with None; it must answer the same on all ranks.
    The batches of all splits are dealt out to the ranks in turn; a rank left without one runs a batch whose targets
    are all ignored, since under ZeRO-3 every forward pass is a collective.
    """
    batches = [
        (segment, range(begin, min(begin + batch, segment.end)))
        for segment in dataset.segments()
        for begin in range(segment.begin, segment.end, batch)
    ]
    splits = {
        split: PositionAccumulator(dataset.sequence, ranks.device)
        for segment in dataset.segments()
        for split in segment.splits
    }
    model.eval()
    rounds = -(-len(batches) // ranks.world)
    for number in range(ranks.rank, rounds * ranks.world, ranks.world):
        if stopped():
            model.train()
            return None
        segment, chosen = batches[number] if number < len(batches) else (batches[-1][0], range(0))
        windows = np.zeros((batch, dataset.sequence + 1), dtype=np.int64)
        windows[: len(chosen)] = dataset.windows[segment.domain][chosen.start : chosen.stop]
        tokens = torch.from_numpy(windows).to(ranks.device)
        targets = tokens[:, 1:].clone()
        targets[len(chosen) :] = IGNORED
        sums = model(tokens[:, :-1].contiguous(), targets).positions
        for split in segment.splits if len(chosen) else ():
            splits[split].add(sums)
    model.train()
    return reduced({split: accumulator.take() for split, accumulator in splits.items()})
