"""The decoder in transformers' words: one table of weights and one of sizes, read in both directions.

The decoder is equal to one of these models:

- LlamaForCausalLM where the whole head is rotated, and MistralForCausalLM without a window, which is the same;
- Phi3ForCausalLM where a part of it is (rotary_fraction below 1, as in the presets of arXiv 2403.15796): the same
  block of RMSNorm, grouped queries and SwiGLU without biases, with a partial_rotary_factor, which Llama does not have.

All rotate pairs (i, i + r/2), as the decoder does.
"""

import math
from typing import Any

import torch
from torch import Tensor

from emergence_train.models.decoder_config import DecoderConfig

ARCHITECTURES = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "phi3": "Phi3ForCausalLM"}
WRAPPED = "model."  # before transformers' names in a model of kind hf
JOINED = ("phi3",)  # whose queries, keys and values are one matrix, as are gate and up

# Sizes that both name: ours, theirs.
SIZES = {
    "vocab_size": "vocab_size",
    "width": "hidden_size",
    "ffn": "intermediate_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "max_sequence": "max_position_embeddings",
    "norm_eps": "rms_norm_eps",
    "tied": "tie_word_embeddings",
}


def weight_names(model: DecoderConfig, joined: bool) -> dict[str, dict[str, int]]:
    """Ours to theirs: each of our weights is made of so many rows of these, one after another."""
    D, F, heads, kv = model.width, model.ffn, model.heads * model.head_dim, model.kv_heads * model.head_dim
    table = {"embedding.weight": {"model.embed_tokens.weight": model.vocabulary}}
    for layer in range(model.layers):
        ours, theirs = f"blocks.{layer}.", f"model.layers.{layer}."
        qkv = {"self_attn.q_proj": heads, "self_attn.k_proj": kv, "self_attn.v_proj": kv}
        gate_up = {"mlp.gate_proj": F, "mlp.up_proj": F}
        block = {
            "attention_norm": {"input_layernorm": D},
            "attention.qkv": {"self_attn.qkv_proj": heads + 2 * kv} if joined else qkv,
            "attention.out": {"self_attn.o_proj": D},
            "swiglu_norm": {"post_attention_layernorm": D},
            "swiglu.gate_up": {"mlp.gate_up_proj": 2 * F} if joined else gate_up,
            "swiglu.down": {"mlp.down_proj": D},
        }
        for name, parts in block.items():
            table[f"{ours}{name}.weight"] = {f"{theirs}{part}.weight": rows for part, rows in parts.items()}
    table["norm.weight"] = {"model.norm.weight": D}
    if not model.tied:
        table["head.weight"] = {"lm_head.weight": model.vocabulary}
    return table


def is_partial(model: DecoderConfig) -> bool:
    return model.rotary_dim != model.head_dim


def hf_weights(weights: dict[str, Tensor], model: DecoderConfig) -> dict[str, Tensor]:
    """The decoder's weights by transformers' names."""
    renamed: dict[str, Tensor] = {}
    for ours, parts in weight_names(model, is_partial(model)).items():
        renamed |= dict(zip(parts, weights[ours].split(list(parts.values()))))
    return renamed


def decoder_weights(weights: dict[str, Tensor], model: DecoderConfig, model_type: str) -> dict[str, Tensor]:
    """The decoder's weights of those of a transformers model that `decoder_config` took."""
    return {
        ours: torch.cat([weights[name] for name in parts]) if len(parts) > 1 else weights[next(iter(parts))]
        for ours, parts in weight_names(model, model_type in JOINED).items()
    }


def hf_config(model: DecoderConfig) -> dict:
    """The config.json of the same decoder in transformers."""
    partial = is_partial(model)
    model_type = "phi3" if partial else "llama"
    return {
        "architectures": [ARCHITECTURES[model_type]],
        "model_type": model_type,
        **{theirs: getattr(model, ours) for ours, theirs in SIZES.items()},
        "head_dim": model.head_dim,
        "rope_theta": model.rotary_base,
        "hidden_act": "silu",
        **({"original_max_position_embeddings": model.max_sequence} if partial else {}),
        **({"partial_rotary_factor": _rotary_factor(model)} if partial else {}),
    }


def _rotary_factor(model: DecoderConfig) -> float:
    """rotary_dim / head_dim, rounded up where transformers, which truncates, would else rotate a dimension less: 30/52."""
    factor = model.rotary_dim / model.head_dim
    return factor if int(model.head_dim * factor) == model.rotary_dim else math.nextafter(factor, 1)


def decoder_config(config: Any) -> DecoderConfig | str:
    """The decoder that a transformers configuration describes, or why none does."""
    if config.model_type not in ARCHITECTURES:
        return f"its type is {config.model_type}"
    rope = dict(config.rope_parameters)
    if rope.get("rope_type", "default") != "default":
        return f"its rotary frequencies are scaled ({rope['rope_type']})"
    if getattr(config, "attention_bias", False) or getattr(config, "mlp_bias", False):
        return "it has biases"
    if config.hidden_act != "silu":
        return f"its activation is {config.hidden_act}"
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if head_dim * config.num_attention_heads != config.hidden_size:
        return f"its heads are {head_dim} wide, and together not as wide as the model"
    window = getattr(config, "sliding_window", None)
    if window is not None and window < config.max_position_embeddings:
        return f"its attention has a window of {window}"
    rotated = rope.get("partial_rotary_factor", 1.0)
    if config.model_type != "phi3" and rotated != 1.0:
        return "a part of its heads is rotated"
    sizes = {ours: getattr(config, theirs) for ours, theirs in SIZES.items()}
    sizes |= {"kv_heads": sizes["kv_heads"] or sizes["heads"], "tied": bool(sizes["tied"])}
    fraction = int(head_dim * rotated) / head_dim  # of the dimensions that transformers rotates
    try:
        return DecoderConfig(**sizes, rotary_fraction=fraction, rotary_base=rope["rope_theta"])
    except ValueError as error:
        return " ".join(str(error).split())
