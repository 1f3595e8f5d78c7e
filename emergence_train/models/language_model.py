"""Base class of the models: the forward pass that training and evaluation call, and initial weights."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from emergence_kernels import PositionLoss
from emergence_train.models.initial_values import Slices, whole

IGNORED = -100  # a target that does not count


class LanguageModel(nn.Module):
    """Base class of a kind's module, which registry.build_model makes.

    `activation_checkpointing`, as in the configuration: what its blocks compute again in the backward pass.
    `captured`: its training passes become a CUDA graph, so that nothing in them may wait for the device.
    """

    activation_checkpointing = "none"
    captured = False
    boundaries: tuple[int, ...] = ()  # lengths at which logits change with that of the call: padding is of branch -1

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

    def init_weights(self, seed: int, own: Slices = whole) -> None:
        """Set what `own` has of every weight from `seed`, alike for any world size and ZeRO stage; draw_weights does that."""
        raise NotImplementedError

    def stored_tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds of the model, by name: its parameters, a tied one once."""
        return dict(self.named_parameters())

    def whole_weights(self) -> None:
        """Called before training in which weights are whole outside their layers too: layers may become one operation."""

    def compiled_parts(self) -> Iterable[nn.Module]:
        """The modules that training.compile compiles, each by itself; none unless the kind names them."""
        return ()

    def new_cache(self) -> Any:
        """An empty `cache` for forward, which generation fills."""
        raise NotImplementedError
