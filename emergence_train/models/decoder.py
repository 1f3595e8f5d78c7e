"""The decoder: embedding, blocks of attention and SwiGLU with RMSNorm before each, output head with its loss.

Shapes: B sequences, T tokens, D width, H query heads, K key/value heads, d head dimension, V vocabulary.
Residual stream and block output are passed separately, so that one kernel adds the two and normalises the sum.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from emergence_kernels import (
    DocumentPlan,
    LMHead,
    PositionLoss,
    document_plan,
    feed_forward,
    projected_attention,
    rms_norm,
    rotary,
    rotary_attention,
    swiglu,
)
from emergence_kernels.attention.reference import dense_attention
from emergence_train.models.decoder_config import DecoderConfig, exchanged_kv_heads
from emergence_train.models.initial_values import Slices, draw_weights, whole
from emergence_train.models.language_model import LanguageModel
from emergence_train.models.recompute import linear_of
from emergence_train.models.sequence_parallel import SequenceGroup, own_heads, to_heads, to_tokens

INITIAL_STD = 0.02


class RMSNorm(nn.Module):
    """x / rms(x) * weight, or the same of x + residual, returning the new residual too."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x_BTD: Tensor, residual_BTD: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if residual_BTD is None:
            return rms_norm(x_BTD, self.weight, self.eps), x_BTD
        return rms_norm(x_BTD, self.weight, self.eps, residual=residual_BTD)

    def again(self, residual_BTD: Tensor) -> Tensor:
        """Of the sum alone; by a call of the module, before which ZeRO-3 gathers the weight."""
        return self(residual_BTD)[0]

    def then_again(self, layer: nn.Linear, x_BTD: Tensor, residual_BTD: Tensor | None) -> tuple[Tensor, Tensor]:
        """layer(norm) and the new residual; the norm is not kept, but computed again from that."""
        if torch.compiler.is_compiling():  # which would compute the norm twice, had it made the residual
            residual = x_BTD if residual_BTD is None else x_BTD + residual_BTD
            return linear_of(layer, self.again, residual), residual
        normed, residual = self(x_BTD, residual_BTD)
        return linear_of(layer, self.again, residual, normed), residual


class RotaryTable(nn.Module):
    """cos and sin of position x base^(-2i/r) for the pairs i of the first r elements of a head, [T, r/2] float32."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.dim, self.base, self.length = config.rotary_dim, config.rotary_base, config.max_sequence
        self.cos: Tensor
        self.sin: Tensor
        self.register_buffer("cos", torch.empty(0), persistent=False)
        self.register_buffer("sin", torch.empty(0), persistent=False)

    def forward(self, sequence: int, device: torch.device) -> tuple[Tensor, Tensor]:
        # float32 whatever the model's dtype: bf16 has 8 bits, and position 2047 would be rounded to 2048. So the table
        # is made here, after an engine has cast the module, and made again should it have been cast since.
        if self.cos.shape[0] < sequence or self.cos.device != device or self.cos.dtype != torch.float32:
            pairs = torch.arange(0, self.dim, 2, dtype=torch.float64, device=device)
            positions = torch.arange(max(sequence, self.length), dtype=torch.float64, device=device)
            angles = positions[:, None] * self.base ** (-pairs / self.dim)
            self.cos, self.sin = angles.cos().float(), angles.sin().float()
        return self.cos[:sequence], self.sin[:sequence]


class Slopes(nn.Module):
    """ALiBi's slopes of the heads, (H,) float32, or None without."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.values = config.alibi_slopes()
        self.slopes: Tensor
        self.register_buffer("slopes", torch.empty(0), persistent=False)

    def forward(self, device: torch.device) -> Tensor | None:
        if self.values is None:
            return None
        if self.slopes.device != device or self.slopes.dtype != torch.float32 or not self.slopes.numel():
            self.slopes = torch.tensor(self.values, device=device)  # once, as in RotaryTable
        return self.slopes


class Shared(NamedTuple):
    """What every block's attention reads beside its input."""

    cos: Tensor  # [T, r/2], or of each row
    sin: Tensor
    slopes: Tensor | None
    documents: DocumentPlan | None = None
    group: SequenceGroup | None = None  # that shares the sequences


def main_grad_of(layer: nn.Module) -> Tensor | None:
    """What the layer's weight gradient is added to by products, where it is (training.main_gradients)."""
    return getattr(layer, "main_grad", None)


class Attention(nn.Module):
    """Causal self-attention with grouped queries; in training one operation with the projection where that has a `main_grad`."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = config.heads, config.kv_heads, config.head_dim
        self.softcap = config.attention.softcap
        self.qkv = nn.Linear(config.width, (config.heads + 2 * config.kv_heads) * config.head_dim, bias=False)
        self.out = nn.Linear(config.width, config.width, bias=False)
        self.sinks = nn.Parameter(torch.zeros(config.heads)) if config.attention.sinks else None

    def project(self, x_BTD: Tensor, shared: Shared) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [B, T, H, d] and keys [B, T, K, d], both rotated, and values [B, T, K, d]."""
        batch, sequence, _ = x_BTD.shape
        heads_BThd = self.qkv(x_BTD).view(batch, sequence, self.heads + 2 * self.kv_heads, self.head_dim)
        # Queries and keys are rotated in one call: one launch instead of two.
        turned, v = heads_BThd.split([self.heads + self.kv_heads, self.kv_heads], dim=2)
        q, k = rotary(turned, shared.cos, shared.sin).split([self.heads, self.kv_heads], dim=2)
        return q, k, v

    def forward(self, x_BTD: Tensor, shared: Shared) -> Tensor:
        trains = torch.is_grad_enabled() and not torch.compiler.is_compiling()
        main_grad = main_grad_of(self.qkv)
        if main_grad is None or not trains or shared.group is not None:
            return self.attend(self.qkv(x_BTD), shared)
        out_BTHd = projected_attention(
            x_BTD,
            self.qkv.weight,
            shared.cos,
            shared.sin,
            heads=self.heads,
            kv_heads=self.kv_heads,
            document_ids=shared.documents,
            softcap=self.softcap,
            sinks=self.sinks,
            alibi=shared.slopes,
            main_grad=main_grad,
        )
        return self.out(out_BTHd.flatten(2))

    def attend(self, qkv_BTE: Tensor, shared: Shared) -> Tensor:
        """Of the projection self.qkv(x), which must have no other reader: it is overwritten."""
        heads, kv_heads, group = self.heads, self.kv_heads, shared.group
        sinks: Tensor | None = self.sinks
        if group is not None:
            qkv_BTE = to_heads(qkv_BTE, heads, kv_heads, group)
            heads, kv_heads = heads // group.size, exchanged_kv_heads(kv_heads, group.size) // group.size
            sinks = None if sinks is None else own_heads(sinks, group)
        # Queries and keys are rotated in place (a hook on qkv would see them so).
        out_BTHd = rotary_attention(
            qkv_BTE,
            shared.cos,
            shared.sin,
            heads=heads,
            kv_heads=kv_heads,
            document_ids=shared.documents,
            softcap=self.softcap,
            sinks=sinks,
            alibi=shared.slopes,
            overwrite=True,
        )
        out = out_BTHd.flatten(2)
        return self.out(out if group is None else to_tokens(out, group))

    def masked(self, x_BTD: Tensor, shared: Shared, seen_B1TT: Tensor, position_BT: Tensor) -> Tensor:
        """forward with an arbitrary mask (query rows, key columns) and positions, by PyTorch's attention."""
        q, k, v = self.project(x_BTD, shared)

        def distance_BTT() -> Tensor:
            return position_BT[:, :, None] - position_BT[:, None, :]

        return self.out(self._by_pytorch(q, k, v, shared, seen_B1TT, distance_BTT).flatten(2))

    def extend(self, x_BTD: Tensor, shared: Shared, cache: "Cache", block: int) -> Tensor:
        """forward for positions that follow those in the cache; appends them to it."""
        q, k, v = self.project(x_BTD, shared)
        k, v = cache.extend(block, k, v)

        def distance_TS() -> Tensor:
            key_S = torch.arange(k.shape[1], device=k.device)
            return key_S[-q.shape[1] :, None] - key_S

        return self.out(self._by_pytorch(q, k, v, shared, None, distance_TS, causal=q.shape[1] > 1).flatten(2))

    def _by_pytorch(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        shared: Shared,
        seen: Tensor | None,
        distance: Callable[[], Tensor],
        causal: bool = False,
    ) -> Tensor:
        """`distance`: of query and key, a matrix that only changed scores need."""
        if self.softcap is not None or self.sinks is not None or shared.slopes is not None:
            far = distance()
            seen = far >= 0 if causal else seen
            return dense_attention(q, k, v, seen, far, softcap=self.softcap, sinks=self.sinks, alibi=shared.slopes)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        gqa = self.heads != self.kv_heads
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, is_causal=causal, enable_gqa=gqa)
        return out.transpose(1, 2)


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)).

    as_one: whether both layers are one operation in training. Both weights must be whole then, which ZeRO-3 shows to a layer's
        own forward only, and hooks on the layers see nothing.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.as_one = False
        self.gate_up = nn.Linear(config.width, 2 * config.ffn, bias=False)
        self.down = nn.Linear(config.ffn, config.width, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        if self.as_one and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            first, second = main_grad_of(self.gate_up), main_grad_of(self.down)
            main_grads = None if first is None or second is None else (first, second)
            return feed_forward(x_BTD, self.gate_up.weight, self.down.weight, main_grads=main_grads)
        return self.down(swiglu(self.gate_up(x_BTD)))

    def project_again(self, gate_up_BTF: Tensor) -> Tensor:
        """down(silu(gate) * up); their product is not kept, but computed again."""
        return linear_of(self.down, swiglu, gate_up_BTF)


class Block(nn.Module):
    """residual += attention(norm(residual)); residual += swiglu(norm(residual)), each addition done by the next norm.

    recompute: of what the backward pass needs, norms and the SwiGLU's product are computed again, not kept.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.width, config.norm_eps)
        self.attention = Attention(config)
        self.swiglu_norm = RMSNorm(config.width, config.norm_eps)
        self.swiglu = SwiGLU(config)

    def forward(
        self,
        x_BTD: Tensor,
        residual_BTD: Tensor | None,
        shared: Shared,
        recompute: bool = False,
    ) -> tuple[Tensor, Tensor]:
        if not recompute:
            x, residual = self.attention_norm(x_BTD, residual_BTD)
            x, residual = self.swiglu_norm(self.attention(x, shared), residual)
            return self.swiglu(x), residual
        qkv, residual = self.attention_norm.then_again(self.attention.qkv, x_BTD, residual_BTD)
        x = self.attention.attend(qkv, shared)
        gate_up, residual = self.swiglu_norm.then_again(self.swiglu.gate_up, x, residual)
        return self.swiglu.project_again(gate_up), residual


class Cache:
    """Keys and values of the positions so far, of each block [B, T, K, d]."""

    def __init__(self) -> None:
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}

    @property
    def length(self) -> int:
        return self.keys[0].shape[1] if self.keys else 0

    def extend(self, block: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        if block in self.keys:
            key, value = torch.cat([self.keys[block], key], 1), torch.cat([self.values[block], value], 1)
        self.keys[block], self.values[block] = key, value
        return key, value


class Decoder(LanguageModel):
    """Tokens to logits, or with targets to the loss at every position."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary, config.width)
        self.rotary = RotaryTable(config)
        self.slopes = Slopes(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.width, config.norm_eps)
        self.head = LMHead(embedding=self.embedding) if config.tied else LMHead(config.width, config.vocab_size)

    def forward(
        self,
        tokens_BT: Tensor,
        targets_BT: Tensor | None = None,
        weights: Tensor | None = None,
        document_ids_BT: Tensor | None = None,
        z_loss: float = 0.0,
        cache: Cache | None = None,
        branches_BT: Tensor | None = None,
        group: SequenceGroup | None = None,
    ) -> PositionLoss | Tensor:
        if cache is not None:
            return self._decode_step(tokens_BT, cache)
        if branches_BT is not None:
            x, residual = self._forward_branches(tokens_BT, branches_BT)
        else:
            x, residual = self._trunk(tokens_BT, document_ids_BT, group)
        x, _ = self.norm(x, residual)
        if targets_BT is None:
            return self.head(x)
        return self.head(x, targets_BT, weights=weights, z_loss=z_loss)

    def init_weights(self, seed: int, own: Slices = whole) -> None:
        """Normal(0, 0.02); matrices that write to the residual stream smaller by sqrt(2 x layers) (GPT-2); norms 1, sinks 0."""
        residual_std = INITIAL_STD / (2 * self.config.layers) ** 0.5

        def std(name: str) -> float:
            return residual_std if name.endswith(("attention.out.weight", "swiglu.down.weight")) else INITIAL_STD

        draw_weights(self, std, seed, own, lambda name: 0.0 if name.endswith("attention.sinks") else 1.0)

    def whole_weights(self) -> None:
        for module in self.blocks.modules():
            if isinstance(module, SwiGLU):
                module.as_one = True

    def compiled_parts(self) -> nn.ModuleList:
        return self.blocks

    def new_cache(self) -> Cache:
        return Cache()

    def _trunk(
        self, tokens_BT: Tensor, document_ids_BT: Tensor | None, group: SequenceGroup | None = None
    ) -> tuple[Tensor, Tensor | None]:
        x, residual = self.embedding(tokens_BT), None
        shared = self._shared(tokens_BT.shape[1] * (group.size if group else 1), tokens_BT.device)
        if group is not None:
            slopes = None if shared.slopes is None else own_heads(shared.slopes, group)
            shared = shared._replace(slopes=slopes, group=group)
        if document_ids_BT is not None:
            shared = shared._replace(documents=self._plan(document_ids_BT, x.dtype, shared))
        for block in self.blocks:
            if self.activation_checkpointing == "full" and torch.is_grad_enabled():
                # no block draws random numbers, and a CUDA graph could not restore their state
                again = partial(checkpoint, block, use_reentrant=False, preserve_rng_state=False)
                x, residual = again(x, residual, shared)
            else:
                selective = self.activation_checkpointing == "selective"
                x, residual = block(x, residual, shared, selective)
        return x, residual

    def _shared(self, sequence: int, device: torch.device) -> Shared:
        cos, sin = self.rotary(sequence, device)
        return Shared(cos, sin, self.slopes(device))

    def _plan(self, document_ids_BT: Tensor, dtype: torch.dtype, shared: Shared) -> DocumentPlan:
        """Computed once for all blocks and both passes."""
        config, group = self.config, shared.group
        heads = config.heads // (group.size if group else 1)
        # stands for them: whether there are any is read, and ZeRO-3 has the parameter whole in its own module only
        sinks = shared.cos.new_zeros(heads) if config.attention.sinks else None
        return document_plan(
            document_ids_BT,
            heads=heads,
            head_dim=config.head_dim,
            dtype=dtype,
            softcap=config.attention.softcap,
            sinks=sinks,
            alibi=shared.slopes,
            adjacent=not self.captured,
        )

    def _forward_branches(self, tokens_BT: Tensor, branches_BT: Tensor) -> tuple[Tensor, Tensor | None]:
        """forward with branches; positions of a branch continue those of the prefix."""
        T, device = tokens_BT.shape[1], tokens_BT.device
        index_T = torch.arange(T, device=device)
        begins_BT = branches_BT != torch.cat([torch.zeros_like(branches_BT[:, :1]), branches_BT[:, :-1]], 1)
        begin_BT = (index_T * begins_BT).cummax(1).values  # of each token's branch
        before_BT = (branches_BT == 0).sum(1, keepdim=True)
        position_BT = torch.where(branches_BT == 0, index_T, index_T - begin_BT + before_BT)
        shared = self._shared(T, device)
        shared = shared._replace(cos=shared.cos[position_BT], sin=shared.sin[position_BT])
        own_BTT = (branches_BT[:, None, :] == 0) | (branches_BT[:, None, :] == branches_BT[:, :, None])
        seen_B1TT = (own_BTT & (index_T[:, None] >= index_T))[:, None]
        return self._forward_blocks(
            tokens_BT, lambda _, of_block, x: of_block.masked(x, shared, seen_B1TT, position_BT)
        )

    def _forward_blocks(
        self, tokens_BT: Tensor, attend: Callable[[int, Attention, Tensor], Tensor]
    ) -> tuple[Tensor, Tensor | None]:
        """As _trunk with attend(number of the block, its attention, x) for attention. Blocks are taken apart, so that compiled
        ones need not be compiled for every length."""
        x, residual = self.embedding(tokens_BT), None
        for number, block in enumerate(cast("list[Block]", self.blocks)):
            x, residual = block.attention_norm(x, residual)
            x, residual = block.swiglu_norm(attend(number, block.attention, x), residual)
            x = block.swiglu(x)
        return x, residual

    def _decode_step(self, tokens_BT: Tensor, cache: Cache) -> Tensor:
        """The cached part of forward(), not to be called alone: under ZeRO-3 weights are gathered in the root's forward."""
        before, count = cache.length, tokens_BT.shape[1]
        if before and count > 1:
            raise ValueError("after a prompt, tokens come one at a time")
        shared = self._shared(before + count, tokens_BT.device)
        shared = shared._replace(cos=shared.cos[before:], sin=shared.sin[before:])
        x, residual = self._forward_blocks(
            tokens_BT, lambda number, of_block, x: of_block.extend(x, shared, cache, number)
        )
        x, _ = self.norm(x, residual)
        return self.head(x[:, -1:])[:, 0]
