"""Run by test_generation under torchrun: generation on an engine at the ZeRO stage given, between training steps."""

import json
import sys
from pathlib import Path

import numpy as np
import torch

from emergence_train import config as configs
from emergence_train.evaluation.generation import generate
from emergence_train.parallel.ranks import leave, start
from emergence_train.training import engine as engines

PROMPTS = [[1, 2, 3], [4, 5], [6, 7, 8], [9, 10, 11, 12], [13, 14, 15, 16], [17] * 7]
MOST = 12


def finished(ids: list[int]) -> bool:
    """Finish after 1 to 6 tokens, differently for each text."""
    return len(ids) > ids[0] % 6


if __name__ == "__main__":
    config = configs.load(sys.argv[1], ["model.vocab_size=320", f"training.zero_stage={sys.argv[2]}"])
    mesh = start(1)
    engine = engines.build(config.model, config.training, config.seed, mesh)
    forwards = []
    engine.module.register_forward_hook(lambda *_: forwards.append(1))
    rng = np.random.default_rng(mesh.data.rank)
    lines = []
    for _ in range(3):
        before = len(forwards)
        texts = generate(engine, PROMPTS, MOST, finished, mesh)
        lines.append({"texts": texts, "forwards": len(forwards) - before})
        for _ in range(config.training.batch // (config.training.micro_batch * mesh.data.size)):
            windows = torch.from_numpy(rng.integers(0, 320, (config.training.micro_batch, 33)))
            engine.backward(engine(windows[:, :-1].contiguous(), windows[:, 1:].contiguous()).loss)
            engine.step()
    Path(sys.argv[3], f"rank-{mesh.data.rank}.json").write_text(json.dumps(lines))
    leave(0)
