"""How many tokens all ranks have trained on, whose batches may be of different sizes."""

import torch
import torch.distributed as dist
from torch import Tensor

from emergence_train.recorder.api import device_of


class TrainedTokens:
    """Each rank counts its own without a sync; a reduction makes them `total`.

    Args:
        total: of all ranks, when training starts.
    """

    def __init__(self, total: int = 0) -> None:
        self.total = total
        self._own: int | Tensor = 0  # of this rank since the last sum

    def add(self, tokens: int | Tensor) -> None:
        self._own = self._own + tokens

    @property
    def estimate(self) -> int:
        """Tokens of all ranks so far, where since the last sum each has trained on as many as this one."""
        ranks = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        return self.total + ranks * int(self._own)

    def all_reduce_sum(self) -> int:
        """Tokens of all ranks so far. Collective."""
        return self.all_reduce_with_loss(0.0)[0]

    def all_reduce_with_loss(self, loss: float | Tensor) -> tuple[int, float]:
        """Tokens of all ranks so far, and the mean of the ranks' losses, in one collective."""
        own, mean = float(self._own), float(loss)
        if dist.is_available() and dist.is_initialized():
            both = torch.tensor([own, mean], dtype=torch.float64, device=device_of())  # counts are exact up to 2^53
            dist.all_reduce(both)
            own, mean = both[0].item(), both[1].item() / dist.get_world_size()
        self.total += int(own)
        self._own = 0
        return self.total, mean
