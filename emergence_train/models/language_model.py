"""Base class of the models: the forward pass that training and evaluation call, and initial weights."""

import contextlib
import hashlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from emergence_kernels import PositionLoss

Gathered = Callable[[nn.Parameter], AbstractContextManager[Any]]  # makes a partitioned parameter whole in its block

IGNORED = -100  # a target that does not count
DRAWN_AT_ONCE = 8  # parameters; a draw is serial, 1.2B numbers in 10 s


class LanguageModel(nn.Module):
    """Base class of a kind's module, which registry.build_model makes.

    `activation_checkpointing`, as in the configuration: what its blocks compute again in the backward pass.
    `captured`: its training passes become a CUDA graph, so that nothing in them may wait for the device.
    """

    activation_checkpointing = "none"
    captured = False

    def forward(
        self,
        tokens_BT: Tensor,
        targets_BT: Tensor | None = None,
        weights: Tensor | None = None,
        document_ids_BT: Tensor | None = None,
        z_loss: float = 0.0,
        cache: Any = None,
        branches_BT: Tensor | None = None,
    ) -> PositionLoss | Tensor:
        """Logits [B, T, V], or with `targets_BT` a PositionLoss (loss, token losses, sums per position), or with `cache`
        the logits [B, V] after the last of `tokens_BT`, which follow what the cache holds.

        `weights`, [T] or [B, T], weigh the loss of positions; `document_ids_BT` keeps attention within a document,
        whose tokens are adjacent.
        `branches_BT`: 0 for a row's prefix, then 1, 2, ... for continuations, which attend to the prefix and themselves.

        A kind whose section lets ranks share sequences (ModelConfig.unsplit_reason) also takes `group`, those ranks: tokens,
        targets, weights and losses are then of this rank's positions, document ids of all.
        """
        raise NotImplementedError

    def init_weights(self, seed: int, gathered: Gathered = contextlib.nullcontext) -> None:
        """Set every weight from `seed`, alike for any world size and ZeRO stage; draw_weights does that."""
        raise NotImplementedError

    def compiled_parts(self) -> Iterable[nn.Module]:
        """The modules that training.compile compiles, each by itself; none unless the kind names them."""
        return ()

    def new_cache(self) -> Any:
        """An empty `cache` for forward, which generation fills."""
        raise NotImplementedError


def draw_weights(
    model: nn.Module,
    std: Callable[[str], float],
    seed: int,
    gathered: Gathered = contextlib.nullcontext,
    constant: Callable[[str], float] = lambda name: 1.0,
) -> None:
    """Set matrices to Normal(0, std(name)) and vectors to constant(name), 1 being for norms.

    Each parameter has a generator of its own, seeded by (seed, name): its values depend on nothing else, so several are drawn at
    once, except where `gathered` communicates: every rank must enter it in the same order.
    """

    @torch.no_grad()
    def draw(name: str, parameter: nn.Parameter) -> None:
        with gathered(parameter):
            if parameter.numel() == 0:
                return  # a partitioned parameter is whole on rank 0 only, which writes it for all
            if parameter.ndim < 2:
                parameter.fill_(constant(name))
                return
            key = hashlib.sha256(f"{seed}/{name}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(key[:7], "big"))
            parameter.copy_(torch.empty(parameter.shape).normal_(std=std(name), generator=generator))

    with ThreadPoolExecutor(DRAWN_AT_ONCE if gathered is contextlib.nullcontext else 1) as pool:
        for _ in pool.map(draw, *zip(*model.named_parameters(), strict=True)):
            pass
