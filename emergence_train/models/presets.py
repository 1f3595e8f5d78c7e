"""Named shapes of decoders: `model.preset` in a configuration."""


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


def _temporal_paper(layers: int, width: int, ffn: int) -> dict:
    """A size of arXiv 2404.17785. The paper gives the parameter count and sequence 1024 only; the shape is our choice."""
    return {
        "layers": layers,
        "width": width,
        "heads": 16,
        "kv_heads": 16,
        "ffn": ffn,
        "max_sequence": 1024,
        "vocab_size": 50_304,
    }


def _tiny(layers: int, width: int, heads: int, ffn: int) -> dict:
    """For a laptop's CPU; tied, since the embedding would otherwise outweigh the rest."""
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
    "468m": _temporal_paper(24, 1024, 3584),
    "1.2b": _temporal_paper(20, 2048, 5504),
    "shallow-0.05m": _tiny(2, 48, 2, 128),
    "shallow-0.1m": _tiny(2, 64, 2, 192),
    "shallow-0.2m": _tiny(2, 96, 3, 256),
    "shallow-0.4m": _tiny(2, 128, 4, 384),
    "tiny-0.05m": _tiny(4, 32, 2, 96),
    "tiny-0.2m": _tiny(4, 64, 2, 192),
    "tiny-0.4m": _tiny(4, 96, 3, 256),
    "tiny-0.9m": _tiny(4, 128, 2, 384),
    "tiny-3m": _tiny(4, 256, 4, 704),
}
