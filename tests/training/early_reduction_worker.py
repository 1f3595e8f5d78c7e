"""Run by test_early_reduction under torchrun: gradients in groups with an event each, beside gradients in one group."""

import json
import sys
from functools import partial
from pathlib import Path

import torch

from emergence_train import config as configs
from emergence_train.checkpoint.engine_state import EngineState
from emergence_train.parallel.ranks import leave, start
from emergence_train.training import early_reduction, main_gradients
from emergence_train.training import engine as engines

STEPS, SEQUENCE, VOCABULARY = 4, 20, 320
ENGINES: list = []


class Snapshot:
    """In the place of a CUDA event: keeps all gradients as they are when it is recorded, and how often that was."""

    def __init__(self, external: bool) -> None:
        assert external, "or a graph does not record it"
        self.gradients: list[torch.Tensor] = []
        self.times = 0

    def record(self) -> None:
        self.gradients = [gradients.clone() for gradients in ENGINES[-1].optimizer.fp32_groups_gradients_flat]
        self.times += 1


def run(engine, mesh, config) -> dict:
    ENGINES.append(engine)
    generator = torch.Generator().manual_seed(1 + mesh.data.rank)
    micro = config.training.micro_batch
    rounds = config.training.batch // (micro * mesh.data.size)
    optimizer, events = engine.optimizer, engine.optimizer.reduction.events
    complete, incomplete, times = 0, 0, 0
    for _ in range(STEPS):
        for _ in range(rounds):
            windows = torch.randint(VOCABULARY, (micro, SEQUENCE + 1), generator=generator)
            loss = engine(windows[:, :-1].contiguous(), windows[:, 1:].contiguous()).loss
            engine.backward(loss)
            for index, event in events.items():
                final = optimizer.fp32_groups_gradients_flat
                equal = [torch.equal(then, now) for then, now in zip(event.gradients, final)]
                complete += equal[index]
                incomplete += not all(equal)
                times += event.times
                event.times = 0
            engine.step()
    weights = dict(engine.module.named_parameters())
    for part in EngineState(engine, mesh).parts:  # what a checkpoint has of the groups
        held = weights[part.name].detach().flatten()[part.start : part.start + part.count]
        assert torch.equal(part.of(part.flat).bfloat16(), held), part.name
    return {
        "weights": torch.cat([p.detach().float().flatten() for p in engine.module.parameters()]),
        "sizes": [gradients.numel() for gradients in optimizer.fp32_groups_gradients_flat],
        "names": [[engine_names(engine)[p] for p in group] for group in optimizer.bf16_groups],
        "events": sorted(events),
        "complete": complete,
        "incomplete": incomplete,
        "times": times,
        "rounds": STEPS * rounds,
        "norm": float(engine.get_global_grad_norm()),
    }


def engine_names(engine) -> dict:
    return {parameter: name for name, parameter in engine.module.named_parameters()}


if __name__ == "__main__":
    over = [
        "model.vocab_size=320",
        "training.zero_stage=1",
        "training.precision=bf16",
        "training.batch=8",
        "model.layers=6",
    ]
    config = configs.load(sys.argv[1], [*over, *sys.argv[3:]])
    mesh = start(1)
    plain = engines.build(config.model, config.training, config.seed, mesh)
    main_gradients.install(plain)
    plain = run(plain, mesh, config)
    engines.main_gradients_possible = lambda *_: True  # as on a GPU
    early_reduction.split = partial(early_reduction.split, parts=8, least=1000)
    torch.cuda.Event = Snapshot
    early = run(engines.build(config.model, config.training, config.seed, mesh), mesh, config)
    first, second = plain.pop("weights"), early.pop("weights")
    early["apart"], early["plain"] = float((first - second).norm() / first.norm()), plain
    Path(sys.argv[2], f"rank-{mesh.data.rank}.json").write_text(json.dumps(early))
    leave(0)
