"""Optimizers by kind: adding one is a class and a line, and its state is saved and resumed as AdamW's is."""

from typing import Literal

import pytest
import torch

from emergence_train import config as configs
from emergence_train.optim.adamw import AdamW
from emergence_train.optim.base import OptimizerConfig
from emergence_train.optim.groups import parameter_groups
from emergence_train.optim.registry import OPTIMIZERS
from emergence_train.training.run import train
from support import metrics


class Momentum(OptimizerConfig):
    kind: Literal["momentum"] = "momentum"
    momentum: float = 0.9

    def build(self, model, lr):
        return torch.optim.SGD(parameter_groups(model, 0.0), lr=lr, momentum=self.momentum)


@pytest.fixture
def momentum(monkeypatch):
    monkeypatch.setitem(OPTIMIZERS, "momentum", Momentum)  # the one line
    return ["training.optimizer.kind=momentum", "training.optimizer.momentum=0.5"]


def test_without_a_kind_it_is_adamw(config_file):
    optimizer = configs.load(config_file, ["training.optimizer.weight_decay=0.2"]).training.optimizer
    assert type(optimizer) is AdamW and optimizer.kind == "adamw" and optimizer.weight_decay == 0.2


def test_an_unknown_kind_is_one_line(config_file):
    with pytest.raises(
        configs.InputError, match=f"training.optimizer: kind 'lion' is unknown; known: {', '.join(OPTIMIZERS)}$"
    ):
        configs.load(config_file, ["training.optimizer.kind=lion"])


def test_keys_are_those_of_the_kind(config_file, momentum):
    optimizer = configs.load(config_file, momentum).training.optimizer
    assert type(optimizer) is Momentum and optimizer.momentum == 0.5
    with pytest.raises(configs.InputError, match="optimizer.momentun: unknown key; did you mean 'momentum'"):
        configs.load(config_file, [*momentum, "training.optimizer.momentun=0.4"])


@pytest.mark.parametrize("stage", [0, 1])
def test_another_optimizer_trains_and_resumes_exactly(config_file, tmp_path, momentum, stage):
    """At stage 0 the loop clips, which the bound makes it do at every step."""
    over = [*momentum, "training.tokens=2048", "checkpoints.every_tokens=1024"]
    over += [f"training.zero_stage={stage}", "training.optimizer.clip=0.01"]
    for name, stop_after in (("whole", None), ("parts", 6), ("parts", None)):
        train(configs.load(config_file, [*over, f"name={name}"]), lambda line: None, stop_after=stop_after)
    whole, parts = ([row["loss"] for row in metrics(tmp_path / "runs" / name)] for name in ("whole", "parts"))
    assert whole == parts and len(whole) == 8
    assert configs.load_run(tmp_path / "runs" / "parts").training.optimizer == Momentum(momentum=0.5, clip=0.01)
