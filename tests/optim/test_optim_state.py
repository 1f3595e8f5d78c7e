"""An optimizer that keeps what no checkpoint holds is refused in a line, at the latest by the first save."""

from typing import ClassVar, Literal

import pytest
import torch

from emergence_train import config as configs
from emergence_train.errors import InputError
from emergence_train.optim.base import OptimizerConfig
from emergence_train.optim.groups import parameter_groups
from emergence_train.optim.registry import OPTIMIZERS
from emergence_train.training.run import train
from support import metrics


class Descent(torch.optim.Optimizer):
    """Gradient descent whose rate falls with its count; a subclass keeps something odd beside it."""

    def __init__(self, groups, lr):
        super().__init__(groups, {"lr": lr, "betas": (0.9, 0.95)})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    state = self.state[weight]
                    state["step"] = state.get("step", 0) + 1
                    weight.add_(weight.grad, alpha=-float(group["lr"] / state["step"]))
                    self.keep(group, state, weight)

    def keep(self, group, state, weight):
        pass


class Counted(Descent):
    def keep(self, group, state, weight):
        group["k"] = group.get("k", 0) + 1


class Annealed(Descent):
    def keep(self, group, state, weight):
        group["betas"] = (group["betas"][0] / 2, group["betas"][1])


class Halved(Descent):
    def keep(self, group, state, weight):
        state["low"] = weight.to(torch.bfloat16)


class Shared(Descent):
    def keep(self, group, state, weight):
        self.state["all"] = {"sum": torch.ones(3)}


class Kind(OptimizerConfig):
    kind: Literal["odd"] = "odd"
    optimizer: ClassVar = Descent

    def build(self, model, lr):
        return self.optimizer(parameter_groups(model, 0.0), lr=lr)


STAGES = [0, *(pytest.param(stage, marks=pytest.mark.slow) for stage in (1, 2)), 3]
ODD = [
    (Counted, "Counted keeps 'k' in its param_groups, changed"),
    (Annealed, "Annealed keeps 'betas' in its param_groups, changed"),
    (Halved, "Halved keeps 'low' in its state"),
    (Shared, "Shared keeps 'all' in its state"),
    (torch.optim.NAdam, "NAdam keeps 'mu_product' in its state"),
]


def trained(config_file, monkeypatch, optimizer, *over, stop_after=None):
    monkeypatch.setattr(Kind, "optimizer", optimizer)
    monkeypatch.setitem(OPTIMIZERS, "odd", Kind)
    over = ["training.optimizer.kind=odd", "training.tokens=2048", "checkpoints.every_tokens=1024", *over]
    train(configs.load(config_file, over), lambda line: None, stop_after=stop_after)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(("optimizer", "says"), ODD, ids=[optimizer.__name__ for optimizer, _ in ODD])
def test_what_no_checkpoint_holds_is_refused(config_file, tmp_path, monkeypatch, optimizer, says, stage):
    with pytest.raises(InputError, match=says):
        trained(config_file, monkeypatch, optimizer, f"training.zero_stage={stage}", "name=odd")
    assert not list((tmp_path / "runs" / "odd" / "checkpoints").glob("step-*"))


def test_factored_moments_are_refused(config_file, monkeypatch):
    """At stage 0 matrices are whole, so Adafactor has moments of their rows and columns."""
    with pytest.raises(InputError, match="Adafactor keeps 'row_var' in its state"):
        trained(config_file, monkeypatch, torch.optim.Adafactor, "training.zero_stage=0")


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("optimizer", [Descent, torch.optim.SGD, torch.optim.RMSprop])
def test_what_checkpoints_hold_resumes_exactly(config_file, tmp_path, monkeypatch, optimizer, stage):
    """A count alone, a momentum that is None, a moment of the parameter's shape."""
    for name, stop_after in (("whole", None), ("parts", 6), ("parts", None)):
        trained(
            config_file, monkeypatch, optimizer, f"training.zero_stage={stage}", f"name={name}", stop_after=stop_after
        )
    whole, parts = ([row["loss"] for row in metrics(tmp_path / "runs" / name)] for name in ("whole", "parts"))
    assert whole == parts and len(whole) == 8
