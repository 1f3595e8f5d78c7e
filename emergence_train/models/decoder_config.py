"""The decoder's section of the configuration, with its parameters and FLOPs in closed form; the tests count the real thing.

A file of its own, beside decoder.py, so that a configuration is read without torch.
"""

from typing import Literal

from pydantic import Field, model_validator

from emergence_train.models.config import ModelConfig


class DecoderConfig(ModelConfig):
    """A LLaMA-like decoder. Sizes are in elements; `vocab_size` None means the tokenizer's, rounded up to 64."""

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

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    @property
    def rotary_dim(self) -> int:
        return round(self.head_dim * self.rotary_fraction)

    def non_embedding_parameters(self) -> int:
        attention = self.width * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        swiglu = 3 * self.width * self.ffn
        norms = 2 * self.width
        return self.layers * (attention + swiglu + norms) + self.width

    def parameters(self) -> int:
        return self.non_embedding_parameters() + self.vocabulary * self.width * (1 if self.tied else 2)

    def flops_per_token(self, sequence: int, *, causal: bool = True) -> float:
        """As ModelConfig's: 6 x (weights of every matrix product, output head included, embedding look-up and norms excluded)
        + 12 x layers x width x (keys a query sees), which are (sequence + 1) / 2 on average when causal, else `sequence`."""
        norms = (2 * self.layers + 1) * self.width
        matrices = self.non_embedding_parameters() - norms + self.vocabulary * self.width
        keys = (sequence + 1) / 2 if causal else sequence
        return 6 * matrices + 12 * self.layers * self.width * keys
