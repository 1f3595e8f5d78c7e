"""Muon: against float64 by singular values, and the same training however ZeRO cuts the matrices."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from emergence_train import config as configs
from emergence_train.checkpoint.format import newest
from emergence_train.checkpoint.shards import Shards
from emergence_train.optim.muon import Muon
from emergence_train.optim.muon_step import Fragment, muon_groups, orthogonalised, windows
from emergence_train.training.run import train
from support import command, metrics

MUON = ["training.optimizer.kind=muon", "training.threads=1"]


def by_singular_values(matrix: np.ndarray) -> np.ndarray:
    """The quintic iterated on numbers: U f(S) V', f of each singular value over the Frobenius norm."""
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    values = values / np.linalg.norm(values)
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    return left @ np.diag(values) @ right


@pytest.mark.parametrize("shape", [(12, 12), (8, 40), (40, 8), (1, 6)])
def test_orthogonalised_is_the_quintic_of_singular_values(shape):
    matrix = np.random.default_rng(3).normal(size=shape)
    ours = orthogonalised(torch.tensor(matrix, dtype=torch.float32)).double().numpy()
    assert np.abs(ours - by_singular_values(matrix)).max() < 2e-5
    values = np.linalg.svd(ours, compute_uv=False)
    assert values.max() < 1.2 and np.median(values) > 0.68


class Small(nn.Module):
    """Two linear layers, an embedding and a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.norm = nn.Embedding(9, 6), nn.LayerNorm(6, bias=False)
        self.up, self.down = nn.Linear(6, 10, bias=False), nn.Linear(10, 6, bias=False)

    def forward(self, tokens):
        return self.down(torch.tanh(self.up(self.norm(self.embedding(tokens)))))


class Reference:
    """The same update of one parameter, in float64: written from the papers, with SVD."""

    def __init__(self, weight: np.ndarray, matrix: bool, decay: float) -> None:
        self.weight, self.matrix, self.decay = weight.copy(), matrix, decay
        self.first, self.second, self.steps = np.zeros_like(weight), np.zeros_like(weight), 0

    def step(self, gradient: np.ndarray, lr: float) -> None:
        self.steps += 1
        self.weight -= lr * self.decay * self.weight
        if self.matrix:
            self.first = 0.8 * self.first + 0.2 * gradient
            update = by_singular_values(0.2 * gradient + 0.8 * self.first) * 0.2 * math.sqrt(max(gradient.shape))
        else:
            self.first = 0.9 * self.first + 0.1 * gradient
            self.second = 0.95 * self.second + 0.05 * gradient**2
            mean, square = self.first / (1 - 0.9**self.steps), self.second / (1 - 0.95**self.steps)
            update = mean / (np.sqrt(square) + 1e-8)
        self.weight -= lr * update


def built(model: Small, **keys):
    """The optimizer of a model that is whole on this rank."""
    optimizer = Muon(momentum=0.8, weight_decay=0.3, **keys).build(model, 0.1)
    optimizer.attach({w: [Fragment(*w.shape, 0, w.numel(), 0)] for w in (model.up.weight, model.down.weight)})
    return optimizer


def backward(model: Small, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    model.zero_grad()
    model(torch.randint(0, 9, (4, 5), generator=generator)).square().sum().backward()


def test_steps_are_the_float64_reference():
    """Matrices, embedding and norm over six steps of changing rate; no decay of the norm."""
    torch.manual_seed(1)
    model = Small()
    optimizer = built(model)
    references = {
        name: Reference(p.detach().double().numpy(), name.startswith(("up", "down")), 0.3 if p.ndim == 2 else 0.0)
        for name, p in model.named_parameters()
    }
    for number in range(6):
        backward(model, number)
        lr = 0.02 * (number + 1)
        for group in optimizer.param_groups:
            group["lr"] = lr
        for name, parameter in model.named_parameters():
            references[name].step(parameter.grad.double().numpy(), lr)
        optimizer.step()
    for name, parameter in model.named_parameters():
        assert np.abs(parameter.detach().numpy() - references[name].weight).max() < 1e-4, name


def test_linear_layers_alone_are_orthogonalised():
    model = Small()
    orthogonal = {group["orthogonal"]: group["params"] for group in muon_groups(model, 0.1)}
    assert [id(p) for p in orthogonal[True]] == [id(model.up.weight), id(model.down.weight)]
    kinds = built(model).state_kinds
    assert kinds(model.up.weight) == ("momentum_buffer",)
    assert kinds(model.embedding.weight) == ("exp_avg", "exp_avg_sq")


def test_nothing_changes_where_there_is_no_gradient():
    model = Small()
    optimizer = built(model)
    before = [p.detach().clone() for p in model.parameters()]
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters())) and not optimizer.state
    backward(model, 1)
    optimizer.step()
    assert not any(torch.equal(a, b) for a, b in zip(before, model.parameters()))


@pytest.mark.parametrize("ranks", [1, 2, 5, 64])
def test_every_matrix_has_an_owner_and_owners_take_turns(ranks):
    matrices = [Fragment(2, 3, 0, 6, number) for number in range(23)]
    given = [entry for window in windows(matrices, ranks) for entry in window]
    assert [matrix for _, matrix in given] == matrices
    counts = np.bincount([owner for owner, _ in given], minlength=ranks)
    assert counts.max() - counts.min() <= 1
    assert all(len({owner for owner, _ in window}) == len(window) <= 16 for window in windows(matrices, ranks))


def losses(config_file, name: str, *over: str, processes: int = 0) -> list[float]:
    given = [*MUON, "training.tokens=2048", f"name={name}", *over]
    done = command("train", str(config_file), *given, processes=processes)
    assert done.returncode == 0, done.stderr
    return [row["loss"]["iid"] for row in metrics(config_file.parent / "runs" / name, "validation")]


@pytest.mark.slow
def test_two_processes_train_as_one(config_file, tmp_path):
    """ZeRO-1 in float32: matrices are cut where a rank's share ends. Sums of gradients differ by rounding alone."""
    alone = losses(config_file, "alone", "training.zero_stage=0")
    assert losses(config_file, "cut", "training.zero_stage=1", processes=2) == pytest.approx(alone, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_stage_and_world_size_trains_alike(config_file, precision):
    few = ("training.batch=6", "training.micro_batch=1", f"training.precision={precision}")
    alone = losses(config_file, "alone", *few, "training.zero_stage=1")
    for stage in (1, 2, 3):
        for processes in (2, 3) if precision == "fp32" else (2,):
            over = (*few, f"training.zero_stage={stage}")
            many = losses(config_file, f"many-{stage}-{processes}", *over, processes=processes)
            assert many == pytest.approx(alone, rel=1e-5 if precision == "fp32" else 2e-3), (stage, processes)
    assert alone[-1] < alone[0]


def test_a_resumed_run_is_the_whole_one(config_file, tmp_path):
    over = [*MUON, "training.tokens=2048", "checkpoints.every_tokens=1024"]
    for name, stop_after in (("whole", None), ("parts", 6), ("parts", None)):
        train(configs.load(config_file, [*over, f"name={name}"]), lambda line: None, stop_after=stop_after)
    whole, parts = ([row["loss"] for row in metrics(tmp_path / "runs" / name)] for name in ("whole", "parts"))
    assert whole == parts and len(whole) == 8
    shards = Shards(newest(tmp_path / "runs" / "whole", None))
    held = [name.split("|") for name in shards.index.names]
    kinds = {name: {kind for kind, other in held if other == name} for _, name in held}
    matrix = {"weights", "momentum_buffer"}
    assert kinds["blocks.0.swiglu.down.weight"] == matrix and kinds["blocks.1.attention.qkv.weight"] == matrix
    assert kinds["head.weight"] == kinds["norm.weight"] == {"weights", "exp_avg", "exp_avg_sq"}


@pytest.mark.slow
def test_momentum_loads_at_another_world_size_and_stage(config_file, tmp_path):
    """4 steps of two processes at ZeRO-1, then 4 of one at ZeRO-3, and the other way round, are 8 of one."""
    constant = ("training.schedule.kind=constant", "checkpoints.every_tokens=1024")
    whole = losses(config_file, "whole", *constant)
    for name, first, then in (("a", (1, 2), (3, 0)), ("b", (3, 0), (1, 2)), ("c", (2, 2), (0, 0))):
        for tokens, (stage, processes) in ((1024, first), (2048, then)):
            over = (*constant, f"training.zero_stage={stage}", f"training.tokens={tokens}")
            got = losses(config_file, name, *over, processes=processes)
        assert got == pytest.approx(whole, rel=1e-5), name
        assert json.loads((tmp_path / "runs" / name / "environment.json").read_text())["sessions"][1:]
