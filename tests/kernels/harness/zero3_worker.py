"""Run by test_kernel_zero3.py under torchrun: the same few steps with ZeRO 0 and ZeRO 3, head tied and not."""

import json
import os

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed  # noqa: E402
import torch  # noqa: E402
from torch import nn  # noqa: E402

import emergence_kernels as ek  # noqa: E402


class Model(nn.Module):
    def __init__(self, tied: bool):
        super().__init__()
        self.embedding = nn.Embedding(53, 16)
        self.mix = nn.Linear(16, 16)
        self.head = ek.LMHead(embedding=self.embedding) if tied else ek.LMHead(16, 53)

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor) -> ek.PositionLoss:
        x = self.embedding(tokens)
        return self.head(x + torch.tanh(self.mix(x)), targets)


def train(stage: int, tied: bool) -> list[float]:
    torch.manual_seed(0)
    model = Model(tied)
    config = {
        "train_micro_batch_size_per_gpu": 2,
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
    }
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    torch.manual_seed(1 + int(os.environ["RANK"]))
    losses = []
    tokens = torch.randint(53, (2, 9))
    for _ in range(4):
        out = engine(tokens, tokens.roll(-1, 1))
        assert out.positions.count.sum() == 18
        engine.backward(out.loss)
        engine.step()
        losses.append(out.loss.item())
    return losses


if __name__ == "__main__":
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # gloo does the work; building it takes a minute
    deepspeed.init_distributed("gloo")
    result = {f"{stage} {tied}": train(stage, tied) for stage in (0, 3) for tied in (False, True)}
    if os.environ["RANK"] == "0":
        print("RESULT " + json.dumps(result), flush=True)
