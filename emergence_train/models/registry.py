"""The models by `model.kind`. A configuration is read without torch, so a kind's file is imported when one asks for it."""

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from emergence_train.models.config import ModelConfig

if TYPE_CHECKING:
    from emergence_train.models.language_model import LanguageModel


@dataclass(frozen=True)
class ModelKind:
    """A kind's section of the configuration and its module, each as "file:class". Both may be in one file."""

    section: str  # a subclass of ModelConfig
    module: str  # a LanguageModel, made from the section alone


MODELS: dict[str, ModelKind] = {
    "decoder": ModelKind(
        "emergence_train.models.decoder_config:DecoderConfig", "emergence_train.models.decoder:Decoder"
    ),
}


def section_of(kind: ModelKind) -> type[ModelConfig]:
    """The class of the section of a kind."""
    return _imported(kind.section)


def build_model(config: ModelConfig) -> "LanguageModel":
    """The model of a section, its weights not initialised yet."""
    return _imported(MODELS[config.kind].module)(config)


def _imported(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)
