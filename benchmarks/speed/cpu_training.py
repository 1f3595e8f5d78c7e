"""Tokens/s of the training loop against a plain PyTorch loop and transformers' Llama: same shape, data, threads, one run.

    python benchmarks/speed/cpu_training.py [--config FILE] [--sizes shallow-0.1m,...] [--threads 2] [--rounds 61] [--out FILE]

The candidates take turns, a few steps each and another one first each round, so that drift of the machine's speed
affects all alike; a round during which other processes took more than 5% of one core is discarded and repeated (both are
counted); the figure is the median over rounds, with the least and the greatest, and ratios are
medians over the rounds' pairs with a 95% interval. All run eagerly in fp32 with the same AdamW (fused) and clipping. `ours`
is what `emergence-train train` runs between checkpoints: DeepSpeed, data loading, position-resolved loss and its sums.
`ours, plain loss` is the same step with F.cross_entropy in place of the position-resolved loss, and only its mean is
summed: the difference is the cost of position logging.
"""

import argparse
import datetime
import json
import os
import resource
import statistics
import sys
import time
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault("GOMP_SPINCOUNT", "20000")  # as the command line does, for every candidate

import torch
import torch.nn.functional as F
from scipy import stats
from torch import nn

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[2] / "kernels")]

from emergence_train import config as configs
from emergence_train.convert.hf_names import hf_config
from emergence_train.data.dataset import Dataset
from emergence_train.data.prepare import prepare
from emergence_train.faults.anomalies import AnomalyDetector, SkippedBatches
from emergence_train.faults.watchdog import Watchdog
from emergence_train.models.config import padded_vocabulary
from emergence_train.optim.groups import parameter_groups
from emergence_train.parallel import ranks as distributed
from emergence_train.recorder.environment import environment
from emergence_train.recorder.position_sums import PositionAccumulator
from emergence_train.training import engine as engines
from emergence_train.training.step import Stepper

STEPS_A_TURN = 8
MAX_CONTESTED = 30  # rounds discarded at most; then every round is kept


class PlainModel(nn.Module):
    """The same decoder as in a textbook: one module per matrix, PyTorch's own operations."""

    def __init__(self, c) -> None:
        super().__init__()
        self.c = c
        self.embedding = nn.Embedding(c.vocab_size, c.width)
        self.layers = nn.ModuleList()
        for _ in range(c.layers):
            self.layers.append(
                nn.ModuleDict(
                    {
                        "n1": nn.RMSNorm(c.width, eps=c.norm_eps),
                        "n2": nn.RMSNorm(c.width, eps=c.norm_eps),
                        "qkv": nn.Linear(c.width, 3 * c.width, bias=False),
                        "o": nn.Linear(c.width, c.width, bias=False),
                        "gate": nn.Linear(c.width, c.ffn, bias=False),
                        "up": nn.Linear(c.width, c.ffn, bias=False),
                        "down": nn.Linear(c.ffn, c.width, bias=False),
                    }
                )
            )
        self.norm = nn.RMSNorm(c.width, eps=c.norm_eps)
        half = c.head_dim // 2
        angles = torch.arange(c.max_sequence)[:, None] * c.rotary_base ** (-torch.arange(half) / half)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def turn(self, x):  # (B, H, T, d)
        a, b = x.chunk(2, dim=-1)
        cos, sin = self.cos[: x.shape[2]], self.sin[: x.shape[2]]
        return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)

    def forward(self, tokens):
        B, T = tokens.shape
        x = self.embedding(tokens)
        for layer in self.layers:
            q, k, v = (
                p.view(B, T, self.c.heads, -1).transpose(1, 2) for p in layer["qkv"](layer["n1"](x)).chunk(3, dim=-1)
            )
            y = F.scaled_dot_product_attention(self.turn(q), self.turn(k), v, is_causal=True)
            x = x + layer["o"](y.transpose(1, 2).reshape(B, T, -1))
            h = layer["n2"](x)
            x = x + layer["down"](F.silu(layer["gate"](h)) * layer["up"](h))
        return F.linear(self.norm(x), self.embedding.weight)


def llama(c) -> nn.Module:
    import transformers

    config = transformers.LlamaConfig.from_dict(hf_config(c), attn_implementation="sdpa", use_cache=False)
    return transformers.LlamaForCausalLM(config)


def plain_loop(model: nn.Module, logits, dataset: Dataset, batch: int):
    """A training step in plain PyTorch; with the same data loading."""
    import numpy as np

    optimizer = torch.optim.AdamW(parameter_groups(model, 0.1), lr=1e-3, betas=(0.9, 0.95), fused=True)

    def step(number: int) -> float:
        windows = torch.from_numpy(np.stack([dataset.sample(number * batch + i) for i in range(batch)]))
        tokens, targets = windows[:, :-1].contiguous(), windows[:, 1:].contiguous()
        loss = F.cross_entropy(logits(model, tokens).flatten(0, 1), targets.flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step


def our_loop(config, dataset: Dataset, mesh, engine, sums):
    detector, nowhere = AnomalyDetector(config.faults, []), Path(os.devnull) / "run"
    watch = Watchdog(mesh, nowhere, config.faults.silent_seconds, config.faults.hang_seconds)
    stepper = Stepper(
        config.training, config.faults, engine, dataset, mesh, sums, SkippedBatches(nowhere), detector, watch, False
    )

    def step(number: int) -> float:
        totals, norm, applied = stepper(number + 1, 1e-3, False)
        count, loss_sum, _ = totals.tolist()
        detector(loss_sum / count, float(norm), bool(applied))
        return loss_sum / count

    return step


class PlainLoss:
    """An engine whose loss is F.cross_entropy, and the sum of that loss instead of sums by position."""

    def __init__(self, engine) -> None:
        self.engine = engine

    def __getattr__(self, name: str):
        return getattr(self.engine, name)

    def __call__(self, tokens, targets, *_):
        loss = F.cross_entropy(self.engine(tokens).flatten(0, 1), targets.flatten())
        return SimpleNamespace(loss=loss, positions=(targets.numel(), loss.detach()))

    @staticmethod
    def add(sums: tuple) -> torch.Tensor:
        count, loss = sums
        return torch.tensor([count, count * loss.item()], dtype=torch.float64)


def others_seconds() -> float:
    """CPU time used on this machine by all other processes since it started (Linux)."""
    fields = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    busy = sum(fields[:3]) + sum(fields[5:8])  # not idle and iowait; guests are in user already
    own = resource.getrusage(resource.RUSAGE_SELF)
    return busy / os.sysconf("SC_CLK_TCK") - own.ru_utime - own.ru_stime


def measure(config, dataset: Dataset, mesh, rounds: int) -> list[dict]:
    shape, batch = config.model, config.training.batch
    plain_loss = PlainLoss(engines.build(config.model, config.training, config.seed, mesh))
    by_position = PositionAccumulator(dataset.sequence, mesh.device)
    candidates = {
        "ours": our_loop(
            config, dataset, mesh, engines.build(config.model, config.training, config.seed, mesh), by_position
        ),
        "ours, plain loss": our_loop(config, dataset, mesh, plain_loss, plain_loss),
        "plain PyTorch": plain_loop(PlainModel(shape), lambda m, t: m(t), dataset, batch),
        "transformers Llama": plain_loop(llama(shape), lambda m, t: m(input_ids=t).logits, dataset, batch),
    }
    speeds: dict[str, list[float]] = {name: [] for name in candidates}
    number = contested = 0
    while len(speeds["ours"]) <= rounds:  # the first is warm-up
        round_, others, began_round = {}, others_seconds(), time.perf_counter()
        first = len(speeds["ours"]) % len(candidates)
        for name in (*list(candidates)[first:], *list(candidates)[:first]):
            step = candidates[name]
            began = time.perf_counter()
            for k in range(STEPS_A_TURN):
                step(number + k)
            round_[name] = STEPS_A_TURN * batch * dataset.sequence / (time.perf_counter() - began)
        number += STEPS_A_TURN
        if others_seconds() - others > 0.05 * (time.perf_counter() - began_round) and contested < MAX_CONTESTED:
            contested += 1
            continue
        for name, speed in round_.items():
            speeds[name].append(speed)
    for values in speeds.values():
        del values[0]
    faster = max(("plain PyTorch", "transformers Llama"), key=lambda name: statistics.median(speeds[name]))
    print(f"{contested} rounds thrown away")
    rows = [
        {
            "candidate": name,
            "tokens_per_second": statistics.median(values),
            "least": min(values),
            "greatest": max(values),
            "over_faster_peer": paired([ours / peer for ours, peer in zip(values, speeds[faster])]),
        }
        for name, values in speeds.items()
    ]
    costs = [1 - ours / plain for ours, plain in zip(speeds["ours"], speeds["ours, plain loss"])]
    rows[0]["position_logging"] = paired(costs) | {"rounds": len(costs), "rounds_thrown_away": contested}
    return rows


def paired(of_rounds: list[float]) -> dict[str, float]:
    """The median over rounds and its 95% interval; paired, so that a round's common factor (a busy machine) cancels."""
    interval = stats.quantile_test(of_rounds, q=0, p=0.5).confidence_interval(0.95)
    return {"median": statistics.median(of_rounds), "low95": interval.low, "high95": interval.high}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", default="shallow-0.1m,shallow-0.2m,shallow-0.4m")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=61)
    parser.add_argument("--config", default="configs/quickstart.yaml")
    parser.add_argument("--out", default="benchmarks/results/cpu/training.json")
    arguments = parser.parse_args()
    mesh = distributed.start(arguments.threads)
    results = {}
    for size in arguments.sizes.split(","):
        config = configs.load(arguments.config, [f"model.preset={size}"])
        prepare(config.data)
        dataset = Dataset(config.data, config.seed)
        shape = config.model.model_copy(update={"vocab_size": padded_vocabulary(dataset.vocabulary)})
        config = config.model_copy(update={"model": shape})
        results[size] = measure(config, dataset, mesh, arguments.rounds)
        print(f"\n{size}  ({config.training.batch} x {dataset.sequence} tokens a step)")
        for row in results[size]:
            peer = row["over_faster_peer"]
            print(
                f"  {row['candidate']:20s} {row['tokens_per_second']:10,.0f} tokens/s  "
                f"[{row['least']:,.0f}, {row['greatest']:,.0f}]  "
                f"{peer['median']:.3f} [{peer['low95']:.3f}, {peer['high95']:.3f}] of the faster peer"
            )
        logging = results[size][0]["position_logging"]
        print(f"  position logging costs {logging['median']:+.1%} [{logging['low95']:+.1%}, {logging['high95']:+.1%}]")
    out = Path(arguments.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "date": datetime.date.today().isoformat(),
        "command": ["python", *sys.argv],
        "environment": environment(mesh.device),
        "step": f"{config.training.batch} x {dataset.sequence} tokens",
        "steps_a_turn": STEPS_A_TURN,
        "rounds": arguments.rounds,
        "sizes": results,
    }
    out.write_text(json.dumps(record, indent=1) + "\n")
    print(f"\nwritten: {out}")


if __name__ == "__main__":
    main()
