"""Run by test_memory under torchrun: the most bytes of real engines in a step, activations aside, by ZeRO stage and precision."""

import gc
import json
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from emergence_train import config as configs
from emergence_train.parallel.ranks import leave, start
from emergence_train.training import engine as engines
from emergence_train.training import main_gradients

MODEL = ("vocab_size=4096", "width=128", "heads=2", "kv_heads=2", "ffn=256")
KINDS = ((0, "fp32"), (1, "fp32"), (1, "bf16"), (2, "fp32"), (2, "bf16"), (3, "fp32"), (3, "bf16"))


def storages(module: nn.Module) -> dict[int, torch.UntypedStorage]:
    """Every storage that a Python object, or a parameter's gradient, holds, by its address."""
    tensors = [thing for thing in gc.get_objects() if isinstance(thing, Tensor)]
    tensors += [p.grad for p in [*module.parameters(), *tensors] if p.is_leaf and p.grad is not None]
    return {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in tensors}


def bytes_in_step(config, mesh) -> float:
    """At most in two steps, after a backward pass and in the update; for each parameter of the model."""
    gc.collect()
    others = storages(nn.Module())  # of earlier engines; kept, so that no address is used again
    engine = engines.build(config.model, config.training, config.seed, mesh)
    if config.training.zero_stage == 1 and config.training.precision == "bf16":
        main_gradients.install(engine)
    inner = getattr(engine.optimizer, "optimizer", engine.optimizer)
    update, seen = inner.step, []

    def note() -> None:
        held = storages(engine.module)
        seen.append(sum(storage.nbytes() for place, storage in held.items() if place not in others))

    def step(*arguments, **options):
        note()
        return update(*arguments, **options)

    inner.step = step
    windows = torch.arange(2 * 9).reshape(2, 9)
    for _ in range(2 * engine.gradient_accumulation_steps()):
        engine.backward(engine(windows[:, :-1].contiguous(), windows[:, 1:].contiguous()).loss)
        note()
        engine.step()
    return max(seen) / config.model.parameters()


if __name__ == "__main__":
    measured = {}
    for stage, precision in KINDS:
        over = [*(f"model.{key}" for key in MODEL), f"training.zero_stage={stage}", f"training.precision={precision}"]
        config = configs.load(sys.argv[1], over)
        mesh = start(1)
        measured[f"{stage} {precision}"] = bytes_in_step(config, mesh)
    if mesh.is_rank0:
        Path(sys.argv[2]).write_text(json.dumps(measured))
    leave(0)
