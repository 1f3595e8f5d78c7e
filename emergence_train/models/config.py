"""The shape of a decoder."""

from pydantic import BaseModel, ConfigDict, Field, model_validator

VOCABULARY_MULTIPLE = 64  # embedding rows are rounded up to this: aligned rows for the matrix units, never predicted


class ModelConfig(BaseModel):
    """A LLaMA-like decoder. Sizes are in elements; `vocab_size` None means the tokenizer's, rounded up to 64."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    layers: int = Field(ge=1, description="decoder blocks")
    width: int = Field(ge=1, description="d_model")
    heads: int = Field(ge=1, description="query heads; they divide the width")
    kv_heads: int = Field(ge=1, description="key/value heads; fewer than heads is grouped-query attention")
    ffn: int = Field(ge=1, description="inner width of the SwiGLU")
    vocab_size: int | None = Field(
        default=None, ge=2, description="rows of the embedding; None: the tokenizer's, rounded up to 64"
    )
    max_sequence: int = Field(default=2048, ge=1, description="longest sequence the rotary table is made for")
    rotary_fraction: float = Field(default=1.0, gt=0, le=1, description="share of each head that is rotated")
    rotary_base: float = Field(default=10_000.0, gt=0, description="base of the rotary frequencies")
    tied: bool = Field(default=False, description="one matrix for the embedding and the output head")
    norm_eps: float = Field(default=1e-6, gt=0, description="of RMSNorm")

    @model_validator(mode="after")
    def _fits(self) -> "ModelConfig":
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}; choose heads that divide it")
        if self.heads % self.kv_heads:
            raise ValueError(f"heads {self.heads} is not a multiple of kv_heads {self.kv_heads}")
        if self.head_dim % 2:
            raise ValueError(f"head dimension {self.head_dim} (width / heads) is odd; rotary embedding needs pairs")
        if self.rotary_dim < 2 or self.rotary_dim % 2:
            raise ValueError(
                f"rotary_fraction {self.rotary_fraction} rotates {self.rotary_dim} of {self.head_dim} elements; "
                f"it must be an even number of at least 2"
            )
        return self

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    @property
    def rotary_dim(self) -> int:
        return round(self.head_dim * self.rotary_fraction)


def padded_vocabulary(tokens: int) -> int:
    """`tokens` rounded up to a multiple of VOCABULARY_MULTIPLE."""
    return -(-tokens // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
