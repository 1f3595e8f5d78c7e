"""Any causal language model of transformers as a LanguageModel: `model.kind: hf`, the kind of imported runs.

Branches and documents become sequences of their own, so that any attention of transformers computes them, windows included.

Shapes: B sequences, T tokens, V vocabulary.
"""

import bisect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from emergence_kernels import PositionLoss, PositionSums
from emergence_train.models import hf_probes
from emergence_train.models.hf_config import HFConfig, causal_model, float32_tensors, length_boundaries, stored_tensors
from emergence_train.models.initial_values import Slices, whole
from emergence_train.models.language_model import IGNORED, LanguageModel

MOST_LOGITS = 1 << 28  # elements computed at once: 1 GiB in float32


@dataclass
class TextCache:
    """The tokens so far [B, T], and transformers' cache of them; without one they are computed again with each new one."""

    tokens_BT: Tensor | None = None
    inner: Any = None


class HFModel(LanguageModel):
    """The model of an HFConfig. The loss is computed from its logits, a few sequences at a time."""

    def __init__(self, config: HFConfig) -> None:
        super().__init__()
        self.config = config
        self.model = causal_model(config.transformers)
        self.boundaries = length_boundaries(self.model)
        self.has_cache: bool | None = None  # tried as it is first asked for

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
        if cache is not None:
            return self._continued(tokens_BT, cache)
        sequences = _sequences(tokens_BT, document_ids_BT, branches_BT)
        if targets_BT is None:
            return self._logits(tokens_BT, sequences)
        return self._loss(tokens_BT, targets_BT, sequences, weights, z_loss)

    def init_weights(self, seed: int, own: Slices = whole) -> None:
        """Not possible: each architecture draws by rules of its own."""
        raise NotImplementedError("models of kind hf are imported with their weights")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "HFModel":
        """Move or cast the model as transformers loads it: rotary frequencies and the like stay in float32. In bfloat16 an
        angle would be off by up to 0.0012 a token."""
        kept = float32_tensors(self.model)
        super()._apply(fn, recurse)
        for name, tensor in kept.items():
            module, _, own = name.rpartition(".")
            now = getattr(self.model.get_submodule(module), own)
            now.data = tensor.detach().to(now.device)
        return self

    def stored_tensors(self) -> dict[str, Tensor]:
        return stored_tensors(self)

    def new_cache(self) -> Any:
        if self.has_cache is None:
            self.has_cache = hf_probes.cache_is_exact(self.model)
        return TextCache()

    def _continued(self, tokens_BT: Tensor, cache: TextCache) -> Tensor:
        """Logits [B, V] after the last of the tokens, which follow those of the cache."""
        before = cache.tokens_BT
        cache.tokens_BT = tokens_BT if before is None else torch.cat([before, tokens_BT], 1)
        if not self.has_cache:
            return self.model(input_ids=cache.tokens_BT, use_cache=False).logits[:, -1]
        if before is None or self._frequencies(before.shape[1]) != self._frequencies(cache.tokens_BT.shape[1]):
            cache.inner, tokens_BT = hf_probes.new_cache(self.model), cache.tokens_BT
        return hf_probes.cached_logits(self.model, tokens_BT, cache.inner)

    def _frequencies(self, length: int) -> int:
        """Which of the frequencies a call of this length is computed by."""
        return bisect.bisect_left(self.boundaries, length)

    def _logits(self, tokens_BT: Tensor, sequences: list[tuple[int, Tensor]]) -> Tensor:
        logits: Tensor | None = None
        for row, columns, logits_LV in self._each(tokens_BT, sequences):
            if logits is None:
                logits = logits_LV.new_zeros(*tokens_BT.shape, logits_LV.shape[-1])
            logits[row, columns] = logits_LV
        assert logits is not None, "a batch has rows"
        return logits

    def _loss(
        self,
        tokens_BT: Tensor,
        targets_BT: Tensor,
        sequences: list[tuple[int, Tensor]],
        weights: Tensor | None,
        z_loss: float,
    ) -> PositionLoss:
        loss_BT, penalty_BT, entropy_BT = (torch.zeros(tokens_BT.shape, device=tokens_BT.device) for _ in range(3))
        correct_BT = torch.zeros_like(targets_BT)
        valid_BT = targets_BT != IGNORED
        for row, columns, logits_LV in self._each(tokens_BT, sequences):
            logits_LV = logits_LV.float()
            target_L = targets_BT[row, columns]
            loss_BT[row, columns] = F.cross_entropy(logits_LV, target_L, reduction="none", ignore_index=IGNORED)
            lse_L = logits_LV.logsumexp(-1)
            penalty_BT[row, columns] = z_loss * lse_L**2
            log_p_LV = logits_LV.detach() - lse_L.detach()[:, None]
            entropy_BT[row, columns] = -(log_p_LV.exp() * log_p_LV).sum(-1)
            correct_BT[row, columns] = (logits_LV.argmax(-1) == target_L).long()
        weight_BT = valid_BT * (1.0 if weights is None else weights)
        mean = ((loss_BT + penalty_BT) * weight_BT).sum() / weight_BT.sum()
        token_loss_BT = loss_BT.detach()
        sums = PositionSums(
            valid_BT.sum(0),
            token_loss_BT.double().sum(0),
            token_loss_BT.double().square().sum(0),
            (correct_BT * valid_BT).sum(0),
            (entropy_BT.double() * valid_BT).sum(0),
        )
        return PositionLoss(mean, token_loss_BT, sums)

    def _each(self, tokens_BT: Tensor, sequences: list[tuple[int, Tensor]]) -> Iterator[tuple[int, Tensor, Tensor]]:
        """(row, columns, logits [L, V]) of each sequence; padded on the right, which causal attention never sees."""
        vocabulary, at = self.config.vocabulary, 0
        while at < len(sequences):
            length, count = len(sequences[at][1]), 1
            for _, columns in sequences[at + 1 :]:
                longer = max(length, len(columns))
                same = self._frequencies(length) == self._frequencies(len(columns))
                if not same or (count + 1) * longer * vocabulary > MOST_LOGITS:
                    break
                length, count = longer, count + 1
            batch = sequences[at : at + count]
            ids = tokens_BT.new_zeros(count, length)
            for k, (row, columns) in enumerate(batch):
                ids[k, : len(columns)] = tokens_BT[row, columns]
            logits = self.model(input_ids=ids, use_cache=False).logits
            for k, (row, columns) in enumerate(batch):
                yield row, columns, logits[k, : len(columns)]
            at += count


def _sequences(
    tokens_BT: Tensor, document_ids_BT: Tensor | None, branches_BT: Tensor | None
) -> list[tuple[int, Tensor]]:
    """(row, its columns) of every sequence that is computed by itself: a row, a document of it, or prefix and branch."""
    columns_T = torch.arange(tokens_BT.shape[1], device=tokens_BT.device)
    sequences = []
    for row in range(tokens_BT.shape[0]):
        if branches_BT is not None:
            own, prefix = branches_BT[row], columns_T[branches_BT[row] == 0]
            parts = [torch.cat([prefix, columns_T[own == branch]]) for branch in own.unique().tolist() if branch > 0]
            sequences += [(row, part) for part in parts or [prefix]]
        elif document_ids_BT is not None:
            own = document_ids_BT[row]
            sequences += [(row, columns_T[own == document]) for document in own.unique_consecutive().tolist()]
        else:
            sequences.append((row, columns_T))
    return sequences
