"""Validation: loss sums by position of held-out text, with the same number of forward passes on every rank."""

from collections.abc import Callable

import numpy as np
import torch

from emergence_train.data.dataset import Dataset
from emergence_train.models.language_model import IGNORED
from emergence_train.parallel.mesh import Group, Mesh
from emergence_train.parallel.ranks import all_reduce_sum
from emergence_train.recorder.position_sums import PositionAccumulator


def reduced(accumulators: dict[str, torch.Tensor], group: Group) -> dict[str, torch.Tensor]:
    """All-reduce the sums of all splits over the processes of `group`, in one collective."""
    together = all_reduce_sum(torch.stack(list(accumulators.values())), group)
    return dict(zip(accumulators, together))


@torch.no_grad()
def validate(
    model: torch.nn.Module, dataset: Dataset, mesh: Mesh, batch: int, stopped: Callable[[], bool] = lambda: False
) -> dict[str, torch.Tensor] | None:
    """[4, T] sums (count, loss, loss squared, correct) over all ranks for each split.

    Where ranks share sequences, as in training, each has its own positions.

    `stopped` is called before each batch and must return the same on all ranks; where it is true, validate returns None. Batches
    are distributed round-robin; a rank without one runs a batch whose targets are all ignored, since under ZeRO-3 every forward
    pass is a collective.
    """
    batches = [
        (segment, range(begin, min(begin + batch, segment.end)))
        for segment in dataset.segments()
        for begin in range(segment.begin, segment.end, batch)
    ]
    own = mesh.own_positions(dataset.sequence)
    shared = {"group": mesh.sequence} if mesh.sequence.size > 1 else {}
    splits = {
        split: PositionAccumulator(dataset.sequence, mesh.device, own)
        for segment in dataset.segments()
        for split in segment.splits
    }
    model.eval()
    rounds = -(-len(batches) // mesh.data.size)
    for number in range(mesh.data.rank, rounds * mesh.data.size, mesh.data.size):
        if stopped():
            model.train()
            return None
        segment, chosen = batches[number] if number < len(batches) else (batches[-1][0], range(0))
        windows = np.zeros((batch, dataset.sequence + 1), dtype=np.int64)
        windows[: len(chosen)] = dataset.windows[segment.domain][chosen.start : chosen.stop]
        tokens = torch.from_numpy(windows).to(mesh.device)
        targets = tokens[:, 1:].clone()
        targets[len(chosen) :] = IGNORED
        sums = model(tokens[:, :-1][:, own].contiguous(), targets[:, own].contiguous(), **shared).positions
        for split in segment.splits if len(chosen) else ():
            splits[split].add(sums)
    model.train()
    return reduced({split: accumulator.take() for split, accumulator in splits.items()}, mesh.gradients)
