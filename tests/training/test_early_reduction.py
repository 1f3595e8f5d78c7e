"""Gradients that are reduced while the backward pass goes on: each group is complete when it is said to be."""

import json
from functools import partial

import pytest
import torch
from torch import nn

from emergence_train.training.early_reduction import Reduction, split
from support import ROOT, run_python

WORKER = ROOT / "tests" / "training" / "early_reduction_worker.py"


@pytest.mark.parametrize(
    "over",
    [
        ["training.activation_checkpointing=none", "model.tied=false"],
        ["training.activation_checkpointing=selective", "model.tied=true"],
        ["training.activation_checkpointing=full", "model.tied=false"],
    ],
    ids=["none-untied", "selective-tied", "full-untied"],
)
def test_groups_are_complete_at_their_events(config_file, tmp_path, over):
    """Two processes, several micro-batches: at its event a group has its last value, and training is that of one group."""
    done = run_python(str(WORKER), str(config_file), str(tmp_path), *over, processes=2, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0, done.stderr[-2000:]
    for rank in range(2):
        result = json.loads((tmp_path / f"rank-{rank}.json").read_text())
        plain = result["plain"]
        assert plain["events"] == [] and len(plain["sizes"]) == 2, "matrices and norms"
        matrices = [names for names in result["names"] if not any("norm" in name for name in names)]
        assert len(matrices) == len(result["names"]) - 1 == len(result["events"]), "all but the norms have an event"
        assert len(matrices) >= 4, result["names"]
        assert matrices[0] == ["embedding.weight"]
        assert result["complete"] == result["times"] == len(result["events"]) * result["rounds"], "once each, complete"
        assert result["incomplete"] >= (len(result["events"]) - 1) * result["rounds"], "before the end of the pass"
        assert result["apart"] < 1e-3 and result["norm"] == pytest.approx(plain["norm"], rel=1e-3)


def _model(layers: int) -> tuple[nn.Module, nn.ModuleList]:
    blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)) for _ in range(layers))
    return nn.Sequential(nn.Embedding(50, 8), blocks, nn.Linear(8, 50, bias=False)), blocks


def test_split_divides_between_blocks_in_order():
    model, blocks = _model(12)
    matrices = [p for p in model.parameters() if p.ndim == 2]
    groups = split([{"params": matrices, "weight_decay": 0.5}], model, blocks, parts=4, least=64)
    assert [p for group in groups for p in group["params"]] == matrices
    assert all(group["weight_decay"] == 0.5 for group in groups)
    owner = {p: index for index, block in enumerate(blocks) for p in block.parameters()}
    blocks_of = [sorted({owner.get(p, -1) for p in group["params"]}) for group in groups]
    assert blocks_of[0] == blocks_of[-1] == [-1], "embedding and head by themselves"
    inside = blocks_of[1:-1]
    assert sum(inside, []) == list(range(12)) and len(inside) in (3, 4), "no block in two groups"


def test_split_leaves_small_groups_whole():
    model, blocks = _model(3)
    groups = [{"params": [p for p in model.parameters() if p.ndim == dims]} for dims in (2, 1)]
    assert [len(group["params"]) for group in split(groups, model, blocks)] == [8, 6]


def test_split_puts_a_shared_weight_where_it_is_complete():
    """A weight of two blocks has its whole gradient when the backward pass is through the earlier one."""
    model, blocks = _model(4)
    blocks[3][0].weight = blocks[0][1].weight
    matrices = [p for p in dict.fromkeys(model.parameters()) if p.ndim == 2]
    groups = split([{"params": matrices}], model, blocks, parts=100, least=1)
    (group,) = [g["params"] for g in groups if any(p is blocks[0][1].weight for p in g["params"])]
    assert len(group) == 2 and group[0] is blocks[0][0].weight


@pytest.mark.parametrize("blocks", [0, 12])
def test_small_weights_outside_of_blocks_share_a_group(blocks):
    """A group costs two collectives and an update, whatever its size; so for a kind of model that names no blocks."""
    model, its = _model(12)
    model.append(nn.ModuleList(nn.Linear(6, 6) for _ in range(20)))
    matrices = [p for p in model.parameters() if p.ndim == 2]
    groups = split([{"params": matrices}], model, its[:blocks], parts=4, least=400)
    assert [p for group in groups for p in group["params"]] == matrices
    sizes = [len(group["params"]) for group in groups]
    assert sizes == ([1, 24, 1, 20] if not blocks else [1, 12, 12, 1, 20])


def test_split_takes_out_what_is_also_used_outside():
    """Its gradient is complete when the use outside is passed, not at the beginning of a block."""
    model, blocks = _model(4)
    blocks[2][1].weight = model[2].weight = model[0].weight
    matrices = [p for p in model.parameters() if p.ndim == 2]
    groups = split([{"params": matrices}], model, blocks, parts=100, least=64)
    assert [len(g["params"]) for g in groups if any(p is model[0].weight for p in g["params"])] == [1]
    events = {}

    class Event:
        def record(self) -> None:
            gradient = model[0].weight.grad
            events[self] = None if gradient is None else gradient.clone()

    reduction = Reduction([g["params"] for g in groups], model, list(blocks), Event)
    x = model[0](torch.arange(6))
    for block in blocks[:2]:
        x = block(x)
    x = blocks[2][0](x) @ blocks[2][1].weight.t() @ blocks[2][1].weight
    (blocks[3](x) @ model[2].weight.t()).square().sum().backward()
    assert torch.equal(events[reduction.events[0]], model[0].weight.grad)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_events_in_a_graph_are_those_of_the_pass():
    """A replayed CUDA graph: a second stream that waits for a group's event reads its last value."""
    torch.manual_seed(0)
    width, layers = 2048, 24
    blocks = nn.ModuleList(nn.Linear(width, width, bias=False, device="cuda") for _ in range(layers))
    weights = [block.weight for block in blocks]
    gradients = torch.zeros(layers, width * width, device="cuda")
    for weight, gradient in zip(weights, gradients):
        weight.grad = gradient.view(width, width)
    reduction = Reduction([[w] for w in weights], blocks, list(blocks), partial(torch.cuda.Event, external=True))
    x = torch.randn(4096, width, device="cuda", requires_grad=True)

    def backward() -> None:
        y = x * 1  # not a leaf, as a block's input is none
        for block in blocks:
            y = block(y).tanh()
        y.square().mean().backward()

    own, other = torch.cuda.Stream(), torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(own):
        backward()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=own, capture_error_mode="relaxed"):
            backward()
        for _ in range(5):
            gradients.zero_()
            graph.replay()
            copies, early = {}, 0
            for index in range(layers - 1, -1, -1):
                other.wait_event(reduction.events[index])
                with torch.cuda.stream(other):
                    copies[index] = gradients[index].clone()
                early += index > layers // 2 and not own.query()
            torch.cuda.synchronize()
            assert all(torch.equal(copies[index], gradients[index]) for index in range(layers))
            assert all(copy.abs().max() > 0 for copy in copies.values())
            assert early, "the copies are enqueued while the graph runs"
