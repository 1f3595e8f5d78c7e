"""The shape of a decoder, and the named shapes (presets)."""

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


def _loss_paper(layers: int, width: int, heads: int, kv_heads: int, ffn: int) -> dict:
    """A row of the table of arXiv 2403.15796: rotary on half of each head. Its GQA group sizes are our choice."""
    return {
        "layers": layers,
        "width": width,
        "heads": heads,
        "kv_heads": kv_heads,
        "ffn": ffn,
        "rotary_fraction": 0.5,
        "max_sequence": 2048,
        "vocab_size": 65_024,
    }


def _temporal_paper(layers: int, width: int, heads: int, ffn: int) -> dict:
    """A size of arXiv 2404.17785. The paper gives the parameter count and sequence 1024 only; the shape is our choice."""
    return {
        "layers": layers,
        "width": width,
        "heads": heads,
        "kv_heads": heads,
        "ffn": ffn,
        "max_sequence": 1024,
        "vocab_size": 50_304,
    }


def _tiny(layers: int, width: int, heads: int, ffn: int) -> dict:
    """For a laptop's processor; tied, since the embedding would otherwise outweigh the rest."""
    return {
        "layers": layers,
        "width": width,
        "heads": heads,
        "kv_heads": heads,
        "ffn": ffn,
        "tied": True,
        "max_sequence": 1024,
    }


PRESETS: dict[str, dict] = {
    "300m": _loss_paper(12, 1152, 9, 3, 3840),
    "540m": _loss_paper(12, 1536, 12, 4, 5120),
    "1b": _loss_paper(16, 2048, 16, 4, 6912),
    "1.5b": _loss_paper(24, 2048, 16, 4, 6912),
    "3b": _loss_paper(24, 3072, 24, 8, 10240),
    "6b": _loss_paper(28, 4096, 32, 8, 13696),
    "32b": _loss_paper(58, 6656, 52, 4, 22272),
    "468m": _temporal_paper(24, 1024, 16, 3584),
    "1.2b": _temporal_paper(20, 2048, 16, 5504),
    "tiny-0.05m": _tiny(4, 32, 2, 96),
    "tiny-0.2m": _tiny(4, 64, 2, 192),
    "tiny-0.4m": _tiny(4, 96, 3, 256),
    "tiny-0.9m": _tiny(4, 128, 2, 384),
    "tiny-3m": _tiny(4, 256, 4, 704),
}
