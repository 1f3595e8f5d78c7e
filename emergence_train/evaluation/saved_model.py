"""A model with the weights of a checkpoint, outside training."""

from pathlib import Path

from torch import Tensor

from emergence_train.checkpoint.shards import read_weights
from emergence_train.errors import InputError
from emergence_train.models.begin_token import WithBeginToken
from emergence_train.models.config import ModelConfig
from emergence_train.models.imported import Imported
from emergence_train.models.language_model import LanguageModel
from emergence_train.models.registry import build_model

# Buffers that the classes of Apertus and MiniMax set themselves: an import without them computes the same model.
CONSTANTS = ("beta", "eps", "slope_rate", "query_decay", "key_decay", "diagonal_decay")


def load_model(config: ModelConfig, checkpoint: Path, imported: Imported | None = None) -> LanguageModel:
    """Load the model with a verified checkpoint's weights in float32, saved at any ZeRO stage and world size; an imported one
    with the token before its sequences."""
    model, weights = build_model(config), read_weights(checkpoint)
    check_stored(model, weights, checkpoint)
    model.load_state_dict(weights, strict=False)  # a tied matrix is saved under its first name alone
    begin = None if imported is None else imported.begin_token
    return model if begin is None else WithBeginToken(model, begin)


def check_stored(model: LanguageModel, weights: dict[str, Tensor], checkpoint: Path) -> None:
    """Raise InputError where a checkpoint's `weights` are not all that the model has, or of other shapes."""
    held = {name: weight.shape for name, weight in weights.items()}
    wanted = {
        name: tensor.shape
        for name, tensor in model.stored_tensors().items()
        if name in held or name.rpartition(".")[2] not in CONSTANTS
    }
    buffers = wanted.keys() - dict(model.named_parameters())
    if missing := sorted(buffers - held.keys()):
        raise InputError(
            f"{checkpoint}: was imported without the buffers of its model ({missing[0]}; {len(missing)} missing) and "
            f"may compute another one; import it again, to another --out"
        )
    if held != wanted:
        raise InputError(f"{checkpoint}: holds a model of another shape; restore the config.yaml of its run")
