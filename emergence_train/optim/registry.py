"""The optimizers by `training.optimizer.kind`."""

from emergence_train.optim.adamw import AdamW
from emergence_train.optim.base import OptimizerConfig
from emergence_train.optim.muon import Muon

OPTIMIZERS: dict[str, type[OptimizerConfig]] = {
    "adamw": AdamW,
    "muon": Muon,
}
