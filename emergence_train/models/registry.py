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
    "hf": ModelKind("emergence_train.models.hf_config:HFConfig", "emergence_train.models.hf_model:HFModel"),
}


def section_of(kind: ModelKind) -> type[ModelConfig]:
    """The class of the section of a kind."""
    return _imported(kind.section)


def build_model(config: ModelConfig) -> "LanguageModel":
    """The model of a section. Its weights are not initialised: PyTorch's own drawing of them, serial, is left out."""
    from torch.overrides import TorchFunctionMode

    class NoInitialisation(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if getattr(function, "__module__", None) == "torch.nn.init":
                return args[0] if args else (kwargs or {})["tensor"]
            return function(*args, **(kwargs or {}))

    with NoInitialisation():
        return _imported(MODELS[config.kind].module)(config)


def _imported(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)
