"""Greedy generation with a cache of keys and values: each new token costs one position, not the whole text again."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from emergence_train.errors import InputError
from emergence_train.models.decoder import Block, Decoder

ROWS = 16  # prompts generated together


class Cache:
    """Keys and values of the positions so far, for each block [B, K, T, d]."""

    def __init__(self, blocks: int) -> None:
        self.keys: list[Tensor | None] = [None] * blocks
        self.values: list[Tensor | None] = [None] * blocks

    @property
    def length(self) -> int:
        return 0 if self.keys[0] is None else self.keys[0].shape[2]

    def extend(self, block: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        if self.keys[block] is not None:
            key, value = torch.cat([self.keys[block], key], 2), torch.cat([self.values[block], value], 2)
        self.keys[block], self.values[block] = key, value
        return key, value


def next_logits(model: Decoder, tokens_BT: Tensor, cache: Cache) -> Tensor:
    """Logits [B, V] after the last of `tokens_BT`, which follow what the cache holds; the cache grows by them.

    Several tokens may only come first (a prompt) or one at a time after it.
    """
    before, count = cache.length, tokens_BT.shape[1]
    if before and count > 1:
        raise ValueError("after a prompt, tokens come one at a time")
    cos, sin = model.rotary(before + count, tokens_BT.device)
    x, residual = model.embedding(tokens_BT), None
    for number, block in enumerate(model.blocks):
        x, residual = block.attention_norm(x, residual)
        x = _attention(block, x, (cos[before:], sin[before:]), cache, number)
        x, residual = block.swiglu_norm(x, residual)
        x = block.swiglu(x)
    x, _ = model.norm(x, residual)
    return model.head(x[:, -1:])[:, 0]


def _attention(block: Block, x_BTD: Tensor, angles: tuple[Tensor, Tensor], cache: Cache, number: int) -> Tensor:
    part = block.attention
    q, k, v = part.project(x_BTD, angles)
    k, v = cache.extend(number, k.transpose(1, 2), v.transpose(1, 2))
    out = F.scaled_dot_product_attention(
        q.transpose(1, 2), k, v, is_causal=x_BTD.shape[1] > 1, enable_gqa=part.heads != part.kv_heads
    )
    return part.out(out.transpose(1, 2).reshape(x_BTD.shape))


def whole_model(model) -> Decoder:
    """The Decoder in an engine; InputError where ZeRO-3 has dealt its weights out over ranks."""
    module = getattr(model, "module", model)
    if any(getattr(parameter, "ds_id", None) is not None for parameter in module.parameters()):
        raise InputError("tasks with generated answers do not run in training under ZeRO-3; take them out of tasks and "
                         "score checkpoints with `emergence-train evaluate RUN --tasks ...`")  # fmt: skip
    return module


@torch.no_grad()
def generate(
    model: Decoder, prompts: list[list[int]], most: int, finished, each_batch: Callable[[], None] = lambda: None
) -> list[list[int]]:
    """The likeliest next tokens of each prompt, at most `most`. `finished(ids)` says after each token whether a text is done.

    Prompts of equal length go together; a prompt and what is generated must fit in model.config.max_sequence.
    """
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    found: list[list[int]] = [[] for _ in prompts]
    by_length: dict[int, list[int]] = {}
    for number, prompt in enumerate(prompts):
        by_length.setdefault(len(prompt), []).append(number)
    for group in by_length.values():
        for begin in range(0, len(group), ROWS):
            each_batch()
            rows = group[begin : begin + ROWS]
            cache = Cache(len(model.blocks))
            tokens = torch.tensor([prompts[row] for row in rows], device=device)
            open_rows = set(rows)
            for _ in range(most):
                tokens = next_logits(model, tokens, cache).argmax(-1, keepdim=True)
                for row, token in zip(rows, tokens[:, 0].tolist()):
                    if row in open_rows:
                        found[row].append(token)
                        if finished(found[row]):
                            open_rows.discard(row)
                if not open_rows:
                    break
    model.train(was_training)
    return found
