"""Traces of chosen steps: they hold those steps, change no loss, and cannot stop a run."""

import gzip
import json
from types import SimpleNamespace

import pytest
import torch

from emergence_train import config
from emergence_train.config import Profile
from emergence_train.errors import InputError
from emergence_train.training.profiler import StepProfiler
from emergence_train.training.run import train
from support import metrics


def events(path) -> list[dict]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return json.load(file)["traceEvents"]


def mesh(rank=0):
    return SimpleNamespace(world=SimpleNamespace(rank=rank), device=torch.device("cpu"))


@pytest.mark.slow
def test_a_traced_run_has_the_losses_of_one_that_is_not(config_file, tmp_path):
    """Bit for bit, gradient norms too; the trace has the two steps, the forward pass and the optimizer, and no third step."""
    over = ["training.tokens=1024", "checkpoints.every_tokens=1024"]
    losses = {}
    for name, more in (("plain", []), ("traced", ["training.profile={steps: [2, 3], shapes: true}"])):
        run = train(config.load(config_file, [f"name={name}", *over, *more]))
        losses[name] = [(row["step"], row["loss"], row["grad_norm"]) for row in metrics(run)]
    assert losses["plain"] == losses["traced"] and len(losses["plain"]) == 4
    (trace,) = (tmp_path / "runs" / "traced" / "profile").iterdir()
    assert trace.name == "rank-00000-steps-2-3.json.gz" and not (tmp_path / "runs" / "plain" / "profile").exists()
    seen = events(trace)
    assert {event["name"] for event in seen if str(event.get("name")).startswith("step ")} == {"step 2", "step 3"}
    assert any(str(event.get("name")).startswith("emergence_") for event in seen)  # our operators by their names
    products = [event for event in seen if event.get("name") == "aten::mm"]
    assert products and all(event["args"]["Input Dims"] for event in products)


def test_only_chosen_ranks_and_steps_are_traced(tmp_path):
    settings = Profile(steps=[3], ranks=[1])
    for rank in (0, 1):
        profiler = StepProfiler(settings, tmp_path, mesh(rank), print)
        for step in range(1, 6):
            with profiler.step(step):
                torch.ones(3) + 1
            assert profiler.running == (rank == 1 and step == 3)
            if step >= profiler.last:
                profiler.write()
    (trace,) = (tmp_path / "profile").iterdir()
    assert trace.name == "rank-00001-steps-3-3.json.gz"
    assert [event for event in events(trace) if event.get("name") == "step 3"]


def test_a_trace_that_cannot_be_written_costs_a_line(tmp_path):
    lines = []
    (tmp_path / "profile").write_text("in the way")
    profiler = StepProfiler(Profile(steps=[1, 2]), tmp_path, mesh(), lines.append)
    with profiler.step(1):
        torch.ones(3) + 1
    profiler.write()
    profiler.write()
    assert len(lines) == 1 and "the trace was not written" in lines[0] and not profiler.running


def test_wrong_steps_are_one_line(config_file):
    with pytest.raises(InputError, match=r"training\.profile.*must be the first and the last step"):
        config.load(config_file, ["training.profile={steps: [9, 3]}"])
    with pytest.raises(InputError, match="training.profile"):
        config.load(config_file, ["training.profile={steps: [1, 2, 3]}"])
