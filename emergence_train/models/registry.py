"""The models by `model.kind`. A configuration is read without torch, so a kind's file is imported when one asks for it."""

import importlib

from emergence_train.models.config import ModelConfig

# "module:class" of each kind's section of the configuration
MODELS: dict[str, str] = {
    "decoder": "emergence_train.models.decoder_config:DecoderConfig",
}


def config_class(place: str) -> type[ModelConfig]:
    """The section at an entry of MODELS."""
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)
