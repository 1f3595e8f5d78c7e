"""The models by `model.kind`. A configuration is read without torch, so a model's module is imported when one is built."""

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from emergence_train.models.config import ModelConfig

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class ModelKind:
    """A model's section of the configuration (ModelConfig, or a subclass with a `kind` of its own) and its class."""

    config: type[ModelConfig]
    module: str
    name: str  # of the torch.nn.Module in it, made from the configuration alone; its forward is Decoder's


MODELS: dict[str, ModelKind] = {
    "decoder": ModelKind(ModelConfig, "emergence_train.models.decoder", "Decoder"),
}


def build_model(config: ModelConfig) -> "torch.nn.Module":
    """The model of a configuration, its weights not initialised yet."""
    kind = MODELS[config.kind]
    return getattr(importlib.import_module(kind.module), kind.name)(config)
