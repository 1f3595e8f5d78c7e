"""Small models of transformers, made here and saved: of imports, their exports and models of kind hf."""

import json

import pytest
import torch

from emergence_train.models.decoder import Decoder
from emergence_train.models.hf_model import HFModel

transformers = pytest.importorskip("transformers")

LLAMA = dict(
    hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    vocab_size=320, max_position_embeddings=64, rms_norm_eps=1e-5, rope_parameters={"rope_type": "default", "rope_theta": 5e3},
)  # fmt: skip
NEOX = dict(
    hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=320,
    max_position_embeddings=64, rope_parameters={"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.25},
)  # fmt: skip
MODELS = {
    "llama": (transformers.LlamaConfig, LLAMA, Decoder),
    "llama-tied": (transformers.LlamaConfig, LLAMA | {"tie_word_embeddings": True}, Decoder),
    "mistral": (transformers.MistralConfig, LLAMA | {"sliding_window": None}, Decoder),
    "mistral-window": (transformers.MistralConfig, LLAMA | {"sliding_window": 8}, HFModel),
    "qwen2": (transformers.Qwen2Config, LLAMA, HFModel),
    "qwen3": (transformers.Qwen3Config, LLAMA | {"head_dim": 16}, HFModel),
    "gpt-neox": (transformers.GPTNeoXConfig, NEOX, HFModel),
}
SMALL = dict.fromkeys(("hidden_size", "d_model", "n_embd"), 32)
SMALL |= dict.fromkeys(("num_hidden_layers", "n_layer", "decoder_layers"), 2) | {"encoder_layers": 1}
SMALL |= dict.fromkeys(("n_head", "num_attention_heads", "decoder_attention_heads", "encoder_attention_heads"), 4)
SMALL |= dict.fromkeys(("d_inner", "intermediate_size", "decoder_ffn_dim", "encoder_ffn_dim"), 40)
SMALL |= {"vocab_size": 320, "max_position_embeddings": 64}
ENCODERS = {"bert", "roberta", "electra", "xlnet"}
CACHELESS = {
    "mamba",
    "mamba2",
    "falcon_mamba",
    "rwkv",
    "openai-gpt",
    "bart",
}  # what transformers' key-value cache is not for
UNNAMED = {"xlnet": "max_position_embeddings", "bart": "num_hidden_layers"}  # names that these do not take
MODELS |= {
    kind: (
        type(transformers.AutoConfig.for_model(kind)),
        {name: size for name, size in SMALL.items() if name != UNNAMED.get(kind)},
        HFModel,
    )
    for kind in ENCODERS | CACHELESS
}


EXPERTS = dict(
    num_key_value_heads=4, n_routed_experts=8, num_experts_per_tok=2, n_group=2, topk_group=1, n_shared_experts=1
)
EXPERTS |= dict(moe_intermediate_size=16, first_k_dense_replace=1)
RANKS = dict(q_lora_rank=16, kv_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=8, v_head_dim=8)
PER_LAYER = dict(num_key_value_heads=2, head_dim=8, global_head_dim=8, sliding_window=16)
BUFFERED = {  # what is trained in buffers
    "deepseek_v3": SMALL | EXPERTS | RANKS,
    "glm4_moe": SMALL | EXPERTS | {"head_dim": 8},
    "gemma4_text": SMALL | PER_LAYER | {"vocab_size_per_layer_input": 320, "hidden_size_per_layer_input": 8},
}
MODELS |= {kind: (type(transformers.AutoConfig.for_model(kind)), sizes, HFModel) for kind, sizes in BUFFERED.items()}

# What a class sets itself, in buffers too.
CONSTANT = {
    "apertus": SMALL | {"num_key_value_heads": 4},
    "minimax": SMALL | {"num_key_value_heads": 4, "head_dim": 8, "num_local_experts": 4},
}
MODELS |= {kind: (type(transformers.AutoConfig.for_model(kind)), sizes, HFModel) for kind, sizes in CONSTANT.items()}

SSM = {"state_size": 4, "num_heads": 8, "head_dim": 8, "n_groups": 1}  # its time_step_limit is [0, infinity]
MODELS["mamba2"] = transformers.Mamba2Config, SMALL | SSM, HFModel


def saved(path, data_path, kind: str, seed: int = 0, **changes):
    """A model of transformers with weights away from their beginnings, saved with the tokenizer of the data."""
    config_class, sizes, _ = MODELS[kind]
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config_class(**sizes | changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0) if parameter.ndim > 1 else parameter.add_(0.3 * torch.randn(parameter.shape))
        for name, buffer in model.named_buffers():
            if name in model.state_dict() and kind not in CONSTANT:
                whole = not buffer.is_floating_point()
                buffer.copy_(torch.randperm(len(buffer)) if whole else buffer + 0.5 * torch.randn(buffer.shape))
    model.save_pretrained(path)
    (path / "tokenizer.json").write_bytes((data_path / "tokenizer.json").read_bytes())
    content = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"}
    (path / "tokenizer_config.json").write_text(json.dumps(content))
    return model.eval()
