"""Sequence parallelism (DeepSpeed-Ulysses, arXiv 2309.14509): a rank has a part of each sequence, in attention of the heads.

Everything but attention works on tokens one by one. Before attention the ranks of a group exchange its inputs, so that each has
whole sequences for its share of the heads, and afterwards the outputs, so that each has all heads of its tokens: masks, rotary
embedding and windows see what one process would. Rank r of S has positions r T / S to (r + 1) T / S.

Shapes: S ranks, B sequences of T tokens, t = T / S of them on a rank, H query heads, K key/value heads, d head dimension.
"""

from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from emergence_train.models.decoder_config import exchanged_kv_heads


class SequenceGroup(Protocol):
    """The ranks that share sequences, and this one among them (parallel.mesh.Group)."""

    @property
    def rank(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def handle(self) -> dist.ProcessGroup | None: ...


def to_heads(qkv_BtE: Tensor, heads: int, kv_heads: int, group: SequenceGroup) -> Tensor:
    """A fused projection of the rank's tokens, [B, t, (H + 2 K) d] -> of whole sequences for the rank's heads,
    [B, T, (H + 2 K') / S d] with K' = exchanged_kv_heads, in the order of the input. Collective over the group."""
    ranks, batch = group.size, qkv_BtE.shape[0]
    heads_BtHd = qkv_BtE.unflatten(-1, (heads + 2 * kv_heads, -1))
    q, k, v = heads_BtHd.split([heads, kv_heads, kv_heads], dim=2)
    if (copies := exchanged_kv_heads(kv_heads, ranks) // kv_heads) > 1:
        k, v = (each.repeat_interleave(copies, dim=2) for each in (k, v))
    parts = [each.unflatten(2, (ranks, -1)).permute(2, 0, 1, 3, 4) for each in (q, k, v)]
    send_SBtE = torch.cat(parts, dim=3).flatten(3)
    if batch == 1:  # the parts of one sequence arrive in its order; no view, since attention may then overwrite it
        return _Exchange.apply(send_SBtE.view(1, -1, send_SBtE.shape[-1]), group)
    return _Exchange.apply(send_SBtE, group).transpose(0, 1).flatten(1, 2)


def to_tokens(x_BTF: Tensor, group: SequenceGroup) -> Tensor:
    """Attention's output of whole sequences for the rank's heads, [B, T, H / S d] -> of all heads for the rank's tokens,
    [B, t, H d]. Collective over the group."""
    send_SBtF = x_BTF.unflatten(1, (group.size, -1)).transpose(0, 1).contiguous()
    return _Exchange.apply(send_SBtF, group).permute(1, 2, 0, 3).flatten(2)


def own_heads(of_heads: Tensor, group: SequenceGroup) -> Tensor:
    """The rank's H / S of a vector [H] with an element for each query head."""
    return of_heads.chunk(group.size)[group.rank]


class _Exchange(torch.autograd.Function):
    """Each rank's s-th part of memory to rank s, of S equal ones; its own adjoint."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: SequenceGroup) -> Tensor:
        ctx.group = group
        return _all_to_all(x, group)

    @staticmethod
    def backward(ctx: Any, dx: Tensor) -> tuple[Tensor, None]:
        return _Exchange.apply(dx.contiguous(), ctx.group), None


def _all_to_all(x: Tensor, group: SequenceGroup) -> Tensor:
    received = torch.empty_like(x)
    dist.all_to_all_single(received.view(-1), x.view(-1), group=group.handle)
    return received
