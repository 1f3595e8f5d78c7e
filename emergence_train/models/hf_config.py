"""The section of a model that transformers computes: its config.json, with parameters counted on a model without memory."""

import functools
import json
import math
from typing import Any, Literal

from pydantic import Field, model_validator

from emergence_train.errors import InputError
from emergence_train.models.config import ModelConfig


class HFConfig(ModelConfig):
    """A causal language model of transformers, as `import hf` writes it; for imported runs."""

    kind: Literal["hf"] = Field(default="hf", description="which model")
    transformers: dict[str, Any] = Field(description="the model's config.json")

    @model_validator(mode="after")
    def _has_a_type(self) -> "HFConfig":
        if not isinstance(self.transformers.get("model_type"), str):
            raise ValueError("transformers has no model_type; give a whole config.json")
        return self

    def _sizes(self) -> dict[str, int]:
        return _sizes(json.dumps(self.transformers, sort_keys=True))

    def non_embedding_parameters(self) -> int:
        """Parameters outside look-up tables (of positions too) and the output head; of experts all, not the active ones."""
        return self._sizes()["body"]

    def parameters(self) -> int:
        return self._sizes()["all"]

    def flops_per_token(self, sequence: int) -> float:
        """As ModelConfig's: 6 x (matrices outside look-up tables, output head included) + 12 x layers x width x (keys that a
        query sees on average); windows and inactive experts are not accounted for."""
        sizes = self._sizes()
        return 6 * sizes["matrices"] + 12 * sizes["layers"] * sizes["width"] * (sequence + 1) / 2

    @property
    def hidden(self) -> int:
        return self._sizes()["width"]


def encoded(value: Any) -> Any:
    """A setting as JSON has it: keys text, tuples lists, infinity as transformers writes it, {"__float__": "Infinity"}."""
    if isinstance(value, dict):
        return {str(key): encoded(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [encoded(part) for part in value]
    return {"__float__": json.dumps(value)} if isinstance(value, float) and not math.isfinite(value) else value


def decoded(value: Any) -> Any:
    """A setting that `encoded` made, with its numbers."""
    if isinstance(value, dict):
        if value.keys() == {"__float__"}:
            return float(value["__float__"])
        return {key: decoded(part) for key, part in value.items()}
    return [decoded(part) for part in value] if isinstance(value, list) else value


def causal_model(settings: dict[str, Any]) -> Any:
    """transformers' causal model of a config.json, in float32, its weights not those of a checkpoint."""
    try:
        import torch
        import transformers
    except ImportError as error:
        raise InputError("transformers is not installed: pip install 'emergence-train[hf]'") from error
    rest = {key: decoded(value) for key, value in settings.items() if key not in ("model_type", "transformers_version")}
    try:
        config = transformers.AutoConfig.for_model(settings["model_type"], **rest)
        return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    except (ValueError, KeyError, TypeError, AssertionError) as error:
        raise InputError(
            f"transformers {transformers.__version__} makes no causal model of type {settings['model_type']!r} "
            f"({' '.join(str(error).split())[:160]}); install a version that has it"
        ) from error


def float32_tensors(model: Any, *, float16: bool = False) -> dict[str, Any]:
    """What transformers keeps in float32 in a model of 16 bits: buffers that are computed, and those weights that it names, of
    which some only in float16."""
    stored = model.state_dict(keep_vars=True)
    parts = {*(model._keep_in_fp32_modules_strict or ()), *((model._keep_in_fp32_modules or ()) if float16 else ())}
    named = {name for part in parts for name in stored if f".{part}." in f".{name}."}
    computed = {name: buffer for name, buffer in model.named_buffers() if name not in stored}
    chosen = computed | {name: stored[name] for name in named}
    return {
        name: tensor for name, tensor in chosen.items() if tensor.dtype.itemsize == 4 and tensor.is_floating_point()
    }


def length_boundaries(model: Any) -> tuple[int, ...]:
    """Lengths at which transformers changes the rotary frequencies of a whole call (longrope, dynamic)."""
    config = model.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    of_layers = [part for part in rope.values() if isinstance(part, dict)]  # by kind of layer
    each = [rope] if "rope_type" in rope else of_layers
    lengths = {part["original_max_position_embeddings"] for part in each if part.get("rope_type") == "longrope"}
    lengths |= {config.max_position_embeddings for part in each if part.get("rope_type") == "dynamic"}
    return tuple(sorted(lengths))


def stored_tensors(model: Any) -> dict[str, Any]:
    """Parameters, a tied one once, and persistent buffers by name: some are trained, as the bias of an expert's score is."""
    stored = model.state_dict(keep_vars=True)
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in stored}
    return dict(model.named_parameters()) | buffers


@functools.lru_cache(maxsize=16)
def _sizes(serialised: str) -> dict[str, int]:
    import torch
    from torch import nn

    with torch.device("meta"):
        model = causal_model(json.loads(serialised))
    tables = {id(p) for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
    output = model.get_output_embeddings()
    head = {id(p) for p in output.parameters()} if output is not None else set()
    parameters = list(model.parameters())
    body = [p for p in parameters if id(p) not in tables | head]
    matrices = [p for p in parameters if p.ndim > 1 and (id(p) in head or id(p) not in tables)]
    config = model.config.get_text_config()
    return {
        "all": sum(p.numel() for p in parameters),
        "body": sum(p.numel() for p in body),
        "matrices": sum(p.numel() for p in matrices),
        "layers": config.num_hidden_layers,
        "width": config.hidden_size,
    }
