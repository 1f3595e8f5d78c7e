"""How many tokens all ranks have trained on, whose batches may be of different sizes."""

import torch
import torch.distributed as dist
from torch import Tensor

from emergence_train.recorder.api import device_of


class TrainedTokens:
    """Each rank counts its own without a sync; `all_reduce_sum` makes them `total`.

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
        if dist.is_available() and dist.is_initialized():
            self._own = torch.as_tensor(self._own, dtype=torch.int64).to(device_of())
            dist.all_reduce(self._own)
        self.total += int(self._own)
        self._own = 0
        return self.total
