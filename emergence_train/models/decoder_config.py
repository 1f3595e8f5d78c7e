"""The decoder's section of the configuration, with its parameters, FLOPs and activations in closed form; tests count them.

A file of its own, beside decoder.py, so that a configuration is read without torch.
"""

import math
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from emergence_train.models.config import Activations, ModelConfig, Work
from emergence_train.section import Section


def exchanged_kv_heads(kv_heads: int, ranks: int) -> int:
    """K', key/value heads that `ranks` sharing a sequence exchange: each so often that every rank has those of its query heads.

    With H query heads a multiple of the ranks S and of K, rank r has heads r H / S to (r + 1) H / S. Each of K' = lcm(K, S) heads
    serves H / K' of them that follow one another, so rank r needs K' / S that do.
    """
    return math.lcm(kv_heads, ranks)


class AttentionScores(Section):
    """What changes the scores of attention. The kernels are Triton's then; on a CPU there are matrices of scores."""

    softcap: float | None = Field(default=None, gt=0, description="c: a score s becomes c tanh(s / c), as in Gemma 2")
    sinks: bool = Field(
        default=False,
        description="a learned logit of each head in the denominator of its softmax, as in gpt-oss; starts at 0",
    )
    bias: Literal["none", "alibi"] = Field(
        default="none",
        description="alibi: slope times distance is subtracted from a score, with the fixed slopes of arXiv 2108.12409",
    )


class DecoderConfig(ModelConfig):
    """A LLaMA-like decoder. Sizes are in elements; `vocab_size` None means the tokenizer's, rounded up to 64."""

    checkpointings: ClassVar[tuple[str, ...]] = ("none", "selective", "full")

    kind: Literal["decoder"] = Field(default="decoder", description="which model")
    layers: int = Field(ge=1, description="decoder blocks")
    width: int = Field(ge=1, description="d_model")
    heads: int = Field(ge=1, description="query heads; they divide the width")
    kv_heads: int = Field(ge=1, description="key/value heads; fewer than heads is grouped-query attention")
    ffn: int = Field(ge=1, description="inner width of the SwiGLU")
    rotary_fraction: float = Field(default=1.0, gt=0, le=1, description="share of each head that is rotated")
    rotary_base: float = Field(default=10_000.0, gt=0, description="base of the rotary frequencies")
    tied: bool = Field(default=False, description="one matrix for the embedding and the output head")
    norm_eps: float = Field(default=1e-6, gt=0, description="of RMSNorm")
    attention: AttentionScores = Field(
        default=AttentionScores(),
        description="what changes the scores of attention beside the mask; by default nothing",
    )

    @model_validator(mode="after")
    def _fits(self) -> "DecoderConfig":
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}; choose heads that divide it")
        if self.heads % self.kv_heads:
            raise ValueError(
                f"heads {self.heads} is not a multiple of kv_heads {self.kv_heads}; choose kv_heads that divide it"
            )
        if self.head_dim % 2:
            raise ValueError(
                f"head dimension {self.head_dim} (width / heads) is odd, and rotary embedding needs pairs; choose other heads"
            )
        if self.rotary_dim < 2 or self.rotary_dim % 2:
            raise ValueError(
                f"rotary_fraction {self.rotary_fraction} rotates {self.rotary_dim} of {self.head_dim} elements; "
                f"choose one that rotates an even number of at least 2"
            )
        return self

    def alibi_slopes(self) -> list[float] | None:
        """A slope of each head: 2^(-8i/n), i = 1..n, for n heads; where n is no power of two, those of the power of two below
        and between them every other one of twice that (arXiv 2108.12409)."""
        if self.attention.bias != "alibi":
            return None
        n = 1 << (self.heads.bit_length() - 1)
        between = [2.0 ** (-4 * (2 * i + 1) / n) for i in range(self.heads - n)]
        return [2.0 ** (-8 * (i + 1) / n) for i in range(n)] + between

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    @property
    def rotary_dim(self) -> int:
        return round(self.head_dim * self.rotary_fraction)

    def unsplit_reason(self, ranks: int) -> str | None:
        if self.heads % ranks:
            return f"model.heads {self.heads} is not a multiple of it; choose a divisor"
        return None

    def exchanged(self, ranks: int) -> int:
        """In each block queries, keys, values (exchanged_kv_heads of them) and attention's output."""
        return self.layers * (2 * self.heads + 2 * exchanged_kv_heads(self.kv_heads, ranks)) * self.head_dim

    def non_embedding_parameters(self) -> int:
        attention = self.width * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        swiglu = 3 * self.width * self.ffn
        return self.layers * (attention + swiglu) + self._vectors()

    def _vectors(self) -> int:
        """Parameters that are in no matrix product: of norms, and sinks."""
        return (2 * self.layers + 1) * self.width + (self.layers * self.heads if self.attention.sinks else 0)

    def _matrices(self) -> int:
        """Parameters of the blocks' matrix products."""
        return self.non_embedding_parameters() - self._vectors()

    def parameters(self) -> int:
        return self.non_embedding_parameters() + self.vocabulary * self.width * (1 if self.tied else 2)

    def flops_per_token(self, sequence: int) -> float:
        """As ModelConfig's: 6 x (weights of every matrix product, output head included, embedding look-up and vectors excluded)
        + 12 x layers x width x (keys a query sees), which are (sequence + 1) / 2 on average."""
        matrices = self._matrices() + self.vocabulary * self.width
        return 6 * matrices + 12 * self.layers * self.width * (sequence + 1) / 2

    @property
    def hidden(self) -> int:
        return self.width

    def activations(self, checkpointing: str, size: int, linears: str = "bf16", sequence_ranks: int = 1) -> Activations:
        """Elements that a block keeps of a token: D + D sums of the residual stream, which the norms read again, D + D norms,
        (H + 2 K) d queries, keys and values, D of attention, 2 F of gate and up, F their product; and float32 numbers: 1 of each
        norm, H log-sum-exps of attention. Selective recomputing leaves out the norms and the product; full keeps the input and
        residual of the block alone.

        Backward is fullest at the gradient of gate and up (2 F beside that of their product, F; its value stays until the layer's
        operation ends. On Hopper there is D in the place of F), or at attention's: three tensors and a float32 sum for dq, which
        are joined, in the place of the SwiGLU's activations.

        Where ranks share a sequence, attention's output is kept before and after the exchange (D more), and key/value heads as
        often as they are exchanged; an exchange has a projection's gradient, what is sent of it and what is received at once.

        Linear layers in fp8 keep D + D more: read off two steps measured on an H100, not derived.
        """
        D, F, qkv = self.width, self.ffn, (self.heads + 2 * self.kv_heads) * self.head_dim
        statistics = 4 * (2 + self.heads)
        more = 2 * D if linears == "fp8" else 0
        if sequence_ranks > 1:
            qkv += 2 * (exchanged_kv_heads(self.kv_heads, sequence_ranks) - self.kv_heads) * self.head_dim
            more += D
        block, again = size * (more + 5 * D + qkv + 3 * F) + statistics, size * (2 * D + F)
        at_swiglu, at_attention = size * (2 * D + 3 * F), size * (2 * qkv - 3 * F) + 4 * D
        if sequence_ranks > 1:
            at_attention = max(at_attention, size * (3 * qkv - 3 * F))
        backward = max(at_swiglu, at_attention)
        if checkpointing == "full":
            blocks, backward = size * (2 * self.layers - 1) * D, backward + block
        elif checkpointing == "selective":
            blocks, backward = self.layers * (block - again), backward + again
        else:
            blocks = self.layers * block
        head = size * 3 * D + 40  # the last sum and norm, the gradient of the latter; statistics of the token
        forward = size * max(3 * D + 3 * F, 2 * D + 3 * qkv if sequence_ranks > 1 else 0)
        return Activations(blocks, head, backward, forward)

    def work(self, sequence: int, checkpointing: str, size: int, linears: str = "bf16") -> Work:
        """Elements that the kernels read and write of a token in a block, each once. Forward: 4 D for either norm and its sum
        with the residual, 2 (H + K) d for rotary embedding, (H + 2 K) d + D for attention, 3 F for the SwiGLU. Backward: as much
        for norms and rotary; for attention 2 (H + 2 K) d + 2 D, and 2 (H + 2 K) d to join its gradients, with a sum in float32
        (14 D bytes); 5 F. The loss moves 9 bytes of a logit beside its products, and fp8 operands take 55 D bytes: both were read
        off a profile on an H100, the rest is derived.
        """
        D, F, qkv = self.width, self.ffn, (self.heads + 2 * self.kv_heads) * self.head_dim
        rotary = 2 * (self.heads + self.kv_heads) * self.head_dim
        forward = size * (8 * D + rotary + qkv + D + 3 * F)
        backward = size * (8 * D + rotary + 4 * qkv + 2 * D + 5 * F) + 14 * D
        again = {"none": 0.0, "selective": size * (4 * D + 3 * F), "full": forward}[checkpointing]
        more = 55 * D if linears == "fp8" else 0
        products = 4 / 3 if checkpointing == "full" else 1.0
        blocks, head = 6 * self._matrices(), 6 * self.vocabulary * D
        attention = self.flops_per_token(sequence) - blocks - head
        traffic = self.layers * (forward + backward + again + more) + 9 * self.vocabulary
        return Work(products * blocks, head, products * attention, traffic)
