"""What is tried of a model of transformers on random tokens: that it is causal, and that its cache is its state.

Shapes: B sequences, T tokens, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor

LENGTH, CHANGED = 24, 6  # tokens, of which the last are others, or are given by one to the cache
NOISE = 1e-3  # of a cache in float32; right ones have 1e-4 at most, wrong ones above 0.8
NOISE_BF16 = 0.1  # right ones have 0.03
SEEN = 1e-5  # of causal models exactly 0, of encoders above 1e-3, also before training


@torch.no_grad()
def is_causal(model: Any) -> bool:
    """Whether the logits of tokens stay when the tokens after them change: those of encoders do not, and their losses are of
    targets that they see. Of a model in float32."""
    tokens_BT = _tokens(model)
    changed_BT = tokens_BT.clone()
    changed_BT[:, -CHANGED:] = changed_BT[:, -CHANGED:].roll(1, 0)
    before_BTV, after_BTV = (model(input_ids=ids, use_cache=False).logits.float() for ids in (tokens_BT, changed_BT))
    difference_BTV = (after_BTV - before_BTV).abs()
    return bool(difference_BTV[:, :-CHANGED].max() < SEEN * difference_BTV[:, -CHANGED:].max())


def new_cache(model: Any) -> Any:
    """transformers' key-value cache for a model."""
    from transformers import DynamicCache

    return DynamicCache(config=model.config)


@torch.no_grad()
def cached_logits(model: Any, tokens_BT: Tensor, cache: Any) -> Tensor:
    """Logits [B, V] after the last of the tokens, which follow what the cache holds."""
    return model(input_ids=tokens_BT, past_key_values=cache, use_cache=True).logits[:, -1]


@torch.no_grad()
def cache_is_exact(model: Any) -> bool:
    """Whether a model continues from `new_cache` as from the whole text. Some keep their state elsewhere (Mamba) and see the
    new tokens alone, some fail.

    The difference is measured by that of a model which sees the new tokens alone.
    """
    tokens_BT = _tokens(model)
    whole_BV = model(input_ids=tokens_BT, use_cache=False).logits[:, -1].float()
    alone_BV = model(input_ids=tokens_BT[:, -1:], use_cache=False).logits[:, -1].float()
    try:
        cache = new_cache(model)
        cached_logits(model, tokens_BT[:, :-CHANGED], cache)
        for at in range(-CHANGED, 0):
            got_BV = cached_logits(model, tokens_BT[:, [at]], cache).float()
    except Exception:  # whatever a model makes of a cache that is not its own
        return False
    noise = NOISE if model.dtype == torch.float32 else NOISE_BF16
    return bool((got_BV - whole_BV).norm() < noise * (alone_BV - whole_BV).norm())


def _tokens(model: Any) -> Tensor:
    """Two rows; no token at a place is that of the other."""
    vocabulary = model.config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(0)
    first_T = torch.randint(0, vocabulary, (LENGTH,), generator=generator)
    other_T = torch.randint(1, vocabulary, (LENGTH,), generator=generator)
    return torch.stack([first_T, (first_T + other_T) % vocabulary]).to(model.device)
