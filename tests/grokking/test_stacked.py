"""A stack against the plain thing: torch's own layers and optimizer, one model at a time."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from emergence_train.grokking import tasks
from emergence_train.grokking.shapes import views
from emergence_train.grokking.stacked import Stack
from emergence_train.grokking.sweep import read, runs_of

MLP = {"kind": "mlp", "width": 17, "hidden": 19, "layers": 2}
MODULAR = {"kind": "modular", "modulus": 7}
PARITY = {"kind": "parity", "bits": 9, "relevant": 2, "examples": 60}
TRANSFORMER = {"kind": "transformer", "layers": 2, "width": 18, "heads": 3}


def stack_of(path, chosen=slice(None)) -> Stack:
    sweep = read(path)
    table = tasks.load(sweep.task, path.parent)
    return Stack(list(runs_of(sweep, len(table.answers)))[chosen], table, sweep.training)


def advance(stack: Stack, updates: int) -> None:
    for _ in range(updates):
        stack.step()
        if stack.update % 5 == 0:
            stack.measure()


def plain_mlp(p: dict, questions: torch.Tensor) -> torch.Tensor:
    embedded = p["embedding"][questions]
    x = torch.relu(sum(embedded[:, k] @ p["first"][k] for k in range(questions.shape[1])) + p["bias"])
    return torch.relu(x @ p["hidden_1"]) @ p["last"]


def plain_transformer(p: dict, questions: torch.Tensor) -> torch.Tensor:
    end = torch.full((len(questions), 1), p["embedding"].shape[0] - 1)
    x = p["embedding"][torch.cat([questions, end], 1)] + p["positions"]
    for layer in range(2):
        heads = F.layer_norm(x, x.shape[-1:]) @ p[f"attention_{layer}"]
        q, k, v = (part.unflatten(2, (3, -1)).transpose(1, 2) for part in heads.chunk(3, -1))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + mixed.transpose(1, 2).flatten(2) @ p[f"output_{layer}"]
        x = x + torch.relu(F.layer_norm(x, x.shape[-1:]) @ p[f"up_{layer}"]) @ p[f"down_{layer}"]
    return F.layer_norm(x[:, -1], x.shape[-1:]) @ p["last"]


@pytest.mark.parametrize(("model", "plain"), [(MLP, plain_mlp), (TRANSFORMER, plain_transformer)])
def test_each_model_trains_as_by_torch_alone(sweep_file, model, plain):
    path = sweep_file(models={"m": model}, fractions=[0.5], training={"warmup": 4, "lr": 3e-3})
    stack = stack_of(path)
    table, run = stack.table, stack.runs[1]
    order = np.random.default_rng([*run.entropy, 1]).permutation(len(table.answers))[: run.trained_on]
    questions, answers = torch.from_numpy(table.questions)[order], torch.from_numpy(table.answers)[order]
    weights = {name: part[1].double().clone().requires_grad_() for name, part in views(stack.weights, stack.shapes)}
    weights["bias" if "bias" in weights else "last"].requires_grad_()
    adamw = torch.optim.AdamW(weights.values(), lr=3e-3, betas=(0.9, 0.98), weight_decay=1.0)
    warm = torch.optim.lr_scheduler.LambdaLR(adamw, lambda step: min((step + 1) / 4, 1.0))
    for _ in range(25):
        adamw.zero_grad()
        F.cross_entropy(plain(weights, questions), answers).backward()
        adamw.step()
        warm.step()
        stack.step()
    for name, part in views(stack.weights, stack.shapes):
        torch.testing.assert_close(part[1].double(), weights[name].detach(), rtol=2e-3, atol=2e-4)
    stack.measure()
    loss = F.cross_entropy(plain(weights, questions), answers).item()
    assert stack.curves[run.name][-1][1] == pytest.approx(loss, rel=1e-3)


@pytest.mark.parametrize("model", [MLP, TRANSFORMER], ids=["mlp", "transformer"])
@pytest.mark.parametrize(("task", "batch"), [(MODULAR, None), (MODULAR, 5), (PARITY, None)])
def test_a_run_is_bit_equal_alone_and_in_a_stack(sweep_file, model, task, batch):
    """Weights, moments and every measurement, whoever else is trained, also after others have left."""
    axes = {"fractions": [0.6], "weight_decays": [0.0, 1.0], "seeds": [1, 2, 3, 4]}
    path = sweep_file(task=task, models={"m": model}, training={"batch": batch}, **axes)
    together = stack_of(path)
    assert len(together.runs) == 8
    advance(together, 10)
    together.leave([together.runs[k] for k in (0, 3, 4)])
    advance(together, 10)
    for place, run in enumerate(together.runs):
        number = (1, 2, 5, 6, 7)[place]
        alone = stack_of(path, slice(number, number + 1))
        assert alone.runs == [run]
        advance(alone, 20)
        assert torch.equal(alone.weights[0], together.weights[place])
        assert torch.equal(alone.moments[:, 0], together.moments[:, place])
        assert alone.curves[run.name] == together.curves[run.name]


def test_runs_are_independent_draws(sweep_file):
    """Seeds, shares and sizes have weights and questions of their own."""
    stack = stack_of(sweep_file(fractions=[0.6]))
    assert not torch.equal(stack.weights[0], stack.weights[1])
    assert not torch.equal(stack.train.answers[0], stack.train.answers[1])
    sweep = read(sweep_file(fractions=[0.5, 0.6], models={"a": MLP, "b": MLP | {"hidden": 20}}, seeds=[1, 2]))
    runs = runs_of(sweep, 49)
    assert len({tuple(run.entropy) for run in runs}) == len(runs) == 8


def test_trained_and_held_out_questions_are_all_and_apart(sweep_file):
    stack = stack_of(sweep_file(models={"m": TRANSFORMER}, fractions=[0.6]))
    for train, heldout in zip(stack.train.rows, stack.heldout.rows):
        asked = [tuple(row[:2]) for rows in (train, heldout) for row in rows.tolist()]
        assert sorted(asked) == [(x, y) for x in range(7) for y in range(7)]
        assert len(train) == round(0.6 * 49)


def test_an_epoch_of_batches_takes_each_question_once(sweep_file):
    stack = stack_of(sweep_file(models={"m": TRANSFORMER}, fractions=[0.6], training={"batch": 7}))
    seen = []
    for update in range(1, 29 // 7 + 1):
        stack.update = update
        seen += [tuple(row) for row in stack._batch().rows[0].tolist()]
    assert len(set(seen)) == len(seen) == 28


def test_a_run_that_diverges_leaves(sweep_file):
    stack = stack_of(sweep_file(fractions=[0.6]))
    with torch.no_grad():
        stack.weights[1] *= float("nan")
    stack.measure()
    assert stack.settled() == [stack.runs[1]]
