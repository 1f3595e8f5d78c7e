"""A whole training step on one GPU, ours beside its peers on DeepSpeed: tokens/s, MFU, memory, and where the time goes.

    python benchmarks/gpu_training.py [--sizes 468m,1.2b] [--contestants NAME,...] [--limit SECONDS] [--out DIR]

`ours` is what `emergence-train train` runs between checkpoints (training.step.Stepper: samples, micro-batches, position sums,
main gradients, clipping, the update): each micro-batch as a CUDA graph, eagerly, and with the blocks compiled. `plain` is the
same decoder in PyTorch's own operations with F.cross_entropy, compiled whole; `liger` is transformers' Llama with Liger's
kernels. All have the same shape, batch, optimizer and DeepSpeed configuration, and tokens drawn at random (speed does not depend
on them; losses are no result here). Contestants take turns, a few steps each, so that a GPU whose clock drifts is as unkind to
one as to the other.

MFU = tokens/s x flops_per_token (emergence_train/models/counting.py) / dense bf16 peak. One step of each is profiled: GPU time by
kernel, and the places where the host waits for the GPU.
"""

import argparse
import datetime
import gc
import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

CONTESTANTS = ("ours", "ours, eager", "ours, compiled", "plain, compiled", "liger")
SEQUENCE = 1024


class PlainDecoder(nn.Module):
    """The decoder as a textbook writes it, in PyTorch's own operations, fused projections, with the loss."""

    def __init__(self, c) -> None:
        super().__init__()
        self.c = c
        self.embedding = nn.Embedding(c.vocab_size, c.width)
        self.layers = nn.ModuleList(
            nn.ModuleDict({
                "n1": nn.RMSNorm(c.width, eps=c.norm_eps), "n2": nn.RMSNorm(c.width, eps=c.norm_eps),
                "qkv": nn.Linear(c.width, (c.heads + 2 * c.kv_heads) * c.head_dim, bias=False),
                "o": nn.Linear(c.width, c.width, bias=False), "gate_up": nn.Linear(c.width, 2 * c.ffn, bias=False),
                "down": nn.Linear(c.ffn, c.width, bias=False),
            }) for _ in range(c.layers)
        )  # fmt: skip
        self.norm = nn.RMSNorm(c.width, eps=c.norm_eps)
        self.head = nn.Linear(c.width, c.vocab_size, bias=False)
        half = c.head_dim // 2
        angles = torch.arange(c.max_sequence)[:, None] * c.rotary_base ** (-torch.arange(half) / half)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def turn(self, x_BHTd):
        a, b = x_BHTd.chunk(2, dim=-1)
        cos, sin = self.cos[: x_BHTd.shape[2]], self.sin[: x_BHTd.shape[2]]
        return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)

    def forward(self, tokens, targets):
        (B, T), c = tokens.shape, self.c
        x = self.embedding(tokens)
        for layer in self.layers:
            heads = layer["qkv"](layer["n1"](x)).view(B, T, -1, c.head_dim).transpose(1, 2)
            q, k, v = heads.split([c.heads, c.kv_heads, c.kv_heads], dim=1)
            y = F.scaled_dot_product_attention(self.turn(q), self.turn(k), v, is_causal=True, enable_gqa=c.heads != c.kv_heads)
            x = x + layer["o"](y.transpose(1, 2).reshape(B, T, -1))
            gate, up = layer["gate_up"](layer["n2"](x)).chunk(2, dim=-1)
            x = x + layer["down"](F.silu(gate) * up)
        return F.cross_entropy(self.head(self.norm(x)).flatten(0, 1).float(), targets.flatten())


class LigerLlama(nn.Module):
    """transformers' Llama with every kernel that Liger has for it."""

    def __init__(self, c) -> None:
        super().__init__()
        import transformers
        from liger_kernel.transformers import apply_liger_kernel_to_llama

        apply_liger_kernel_to_llama(rope=True, rms_norm=True, swiglu=True, fused_linear_cross_entropy=True)
        self.llama = transformers.LlamaForCausalLM(transformers.LlamaConfig(
            vocab_size=c.vocab_size, hidden_size=c.width, intermediate_size=c.ffn, num_hidden_layers=c.layers,
            num_attention_heads=c.heads, num_key_value_heads=c.kv_heads, rms_norm_eps=c.norm_eps,
            max_position_embeddings=c.max_sequence, tie_word_embeddings=False, attn_implementation="sdpa", use_cache=False,
        ))  # fmt: skip

    def forward(self, tokens, targets):
        return self.llama(input_ids=tokens, labels=targets, shift_labels=targets).loss


class RandomTokens:
    """In the place of a data set: windows of tokens drawn beforehand."""

    def __init__(self, vocabulary: int, sequence: int) -> None:
        import numpy as np

        self.sequence = sequence
        self.windows = np.random.default_rng(0).integers(0, vocabulary, (64, sequence + 1))

    def sample(self, index: int):
        return self.windows[index % len(self.windows)]


def configuration(size: str, overrides: list[str]):
    from emergence_train import config as configs

    return configs.load(ROOT / "configs" / "gpu-468m.yaml", [f"model.preset={size}", *overrides])


@torch.no_grad()
def initialise(model: nn.Module) -> None:
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02) if parameter.dim() > 1 else parameter.fill_(1.0)


def our_step(config, ranks, way: str):
    from emergence_train.evaluation.positions import PositionAccumulator
    from emergence_train.training import engine as engines
    from emergence_train.training.anomalies import Judge, Skips
    from emergence_train.training.step import Stepper

    chosen = {"compile": way == "compiled", "cuda_graphs": way == ""}
    config = config.model_copy(update={"training": config.training.model_copy(update=chosen)})
    engines.initialise = lambda model, *_: initialise(model.to(ranks.device))  # a billion values by a CPU's generator take long
    engine = engines.build(config, ranks)
    data = RandomTokens(config.model.vocab_size, config.data.sequence)
    sums, watch = PositionAccumulator(config.data.sequence, ranks.device), SimpleNamespace(at=lambda *_: None)
    stepper = Stepper(config, engine, data, ranks, sums, Skips(Path(os.devnull) / "run"), Judge(config.faults, []), watch)
    pending: list = []

    def step(number: int) -> None:
        totals, norm, applied = stepper(number + 1, 1e-4, False)
        if pending:
            pending.pop().tolist()  # as the loop does: read one step late
        pending.append(totals)

    return step


def peer_step(config, ranks, model: nn.Module, compiled: bool):
    import deepspeed

    from emergence_train.training import engine as engines

    training = config.training
    initialise(model)
    optimizer = torch.optim.AdamW(
        engines.parameter_groups(model, training.optimizer.weight_decay), lr=1e-4, betas=training.optimizer.betas,
        eps=training.optimizer.eps, fused=True,
    )  # fmt: skip
    settings = engines.deepspeed_config(config, ranks)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings, dist_init_required=False)
    if compiled:
        engine.module.compile(dynamic=False)
    data = RandomTokens(config.model.vocab_size, config.data.sequence)
    rounds, micro = training.batch // training.micro_batch, training.micro_batch

    def step(number: int) -> None:
        import numpy as np

        for round_ in range(rounds):
            first = number * training.batch + round_ * micro
            windows = torch.from_numpy(np.stack([data.sample(first + i) for i in range(micro)])).pin_memory()
            tokens = windows[:, :-1].contiguous().pin_memory().to(ranks.device, non_blocking=True)
            targets = windows[:, 1:].contiguous().pin_memory().to(ranks.device, non_blocking=True)
            loss = engine(tokens, targets)
            engine.backward(loss)
            engine.step()

    return step


def make(name: str, config, ranks):
    """A function of the step's number that runs one optimizer step."""
    who, _, way = name.partition(", ")
    if who == "ours":
        return our_step(config, ranks, way)
    with torch.device(ranks.device):
        model = PlainDecoder(config.model) if who == "plain" else LigerLlama(config.model)
    return peer_step(config, ranks, model, way == "compiled")


KINDS = (  # the first that a kernel's name contains names what it is for
    ("attention", ("flash", "fmha", "attention", "_dkdv", "_dq_", "sdpa", "forward_hopper", "backward_hopper")),
    ("loss", ("_statistics", "_combine_kernel", "cross_entropy", "loss_rows", "_rows_kernel", "nll_loss", "softmax",
              "position_sums")),
    ("matrix products", ("gemm", "nvjet", "cutlass", "cublas", "splitk", "wgmma", "xmma")),
    ("norm", ("rms_norm", "_forward_kernel", "_backward_kernel", "rmsnorm")),
    ("rotary", ("rotary", "rope", "CatArray")),
    ("swiglu", ("swiglu", "silu")),
    ("optimizer", ("multi_tensor", "adam")),
    ("copies and fills", ("memcpy", "memset", "copy", "fill")),
    ("embedding", ("embedding", "indexing", "index")),
)  # fmt: skip


def kind_of(kernel: str) -> str:
    lower = kernel.lower()
    return next((kind for kind, parts in KINDS if any(part.lower() in lower for part in parts)), "other element-wise")


def profile(step, number: int) -> dict:
    """GPU time of one step by kernel and by kind, launches, and where the host waits."""
    from torch.profiler import ProfilerActivity

    with torch.profiler.profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as profiler:
        began = time.perf_counter()
        step(number)
        torch.cuda.synchronize()
        wall = time.perf_counter() - began
    rows = [(e.key, e.self_device_time_total / 1e3, e.count) for e in profiler.key_averages()
            if e.device_type == torch.autograd.DeviceType.CUDA and e.self_device_time_total > 0]  # fmt: skip
    kinds: Counter = Counter()
    for name, milliseconds, _ in rows:
        kinds[kind_of(name)] += milliseconds
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        step(number + 1)
    torch.cuda.set_sync_debug_mode("default")
    waits = Counter("/".join(Path(w.filename).parts[-2:]) + f":{w.lineno}" for w in caught if "synchroniz" in str(w.message))
    return {
        "wall_ms_with_profiler": round(wall * 1e3, 2),
        "gpu_ms": round(sum(row[1] for row in rows), 2),
        "launches": sum(row[2] for row in rows),
        "by_kind_ms": {kind: round(ms, 2) for kind, ms in kinds.most_common()},
        "host_waits": dict(waits.most_common()),
        "kernels": [
            {"name": name[:140], "ms": round(ms, 3), "calls": calls}
            for name, ms, calls in sorted(rows, key=lambda row: -row[1])[:45]
        ],
    }


def measure(size: str, names: list[str], overrides: list[str], steps: int, rounds: int, deadline: float) -> dict:
    """All contestants of a size in one process."""
    from emergence_kernels.bench.run import commit, versions
    from emergence_kernels.bench.timing import ceilings
    from emergence_train import distributed
    from emergence_train.models import counting
    from emergence_train.training.logs import environment

    ranks = distributed.start(None)
    config = configuration(size, overrides)
    flops = counting.flops_per_token(config.model, config.data.sequence)
    peak = counting.peak_flops(torch.cuda.get_device_name())
    tokens = config.training.batch * config.data.sequence
    record = {
        "utc": datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M%S"), "size": size, "overrides": overrides,
        "device": torch.cuda.get_device_name(), "versions": versions(), "commit": commit(), "command": ["python", *sys.argv],
        "environment": environment(ranks.device), "ceilings": ceilings(ranks.device, torch.bfloat16), "flops_per_token": flops,
        "peak_flops": peak, "tokens_a_step": tokens, "micro_batch": config.training.micro_batch, "rows": [],
    }  # fmt: skip
    made: dict[str, dict] = {}
    for name in names:
        began = time.monotonic()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        try:
            step = make(name, config, ranks)
            for number in range(2):
                step(number)
            torch.cuda.synchronize()
        except Exception as error:  # noqa: BLE001
            made.pop(name, None)
            record["rows"].append({"contestant": name, "failed": f"{type(error).__name__}: {error}"[:400]})
            print(f"{size} {name}: failed: {record['rows'][-1]['failed']}", flush=True)
            gc.collect()
            torch.cuda.empty_cache()
            continue
        made[name] = {"step": step, "speeds": [], "peak_gib": (torch.cuda.max_memory_allocated() - before) / 2**30}
        print(f"{size} {name}: ready after {time.monotonic() - began:.1f} s", flush=True)
        if time.monotonic() > deadline:
            break
    number = 2
    for _ in range(rounds):
        for of in made.values():
            torch.cuda.synchronize()
            began = time.perf_counter()
            for k in range(steps):
                of["step"](number + k)
            torch.cuda.synchronize()
            of["speeds"].append(steps * tokens / (time.perf_counter() - began))
        number += steps
        if time.monotonic() > deadline:
            break
    for name, of in made.items():
        speed = statistics.median(of["speeds"])
        row = {"contestant": name, "tokens_per_second": round(speed), "least": round(min(of["speeds"])),
               "greatest": round(max(of["speeds"])), "mfu": speed * flops / peak if peak else None,
               "peak_gib": round(of["peak_gib"], 2)}  # fmt: skip
        row["profile"] = profile(of["step"], number)
        record["rows"].append(row)
        shown = ", ".join(f"{k} {v:.0f}" for k, v in row["profile"]["by_kind_ms"].items())
        print(f"{size} {name:18s} {speed:10,.0f} tokens/s  MFU {row['mfu'] or 0:.1%}  {row['peak_gib']} GiB  "
              f"GPU {row['profile']['gpu_ms']:.0f} ms a step: {shown}; waits {row['profile']['host_waits']}",
              flush=True)  # fmt: skip
    return record


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", default="468m,1.2b")
    parser.add_argument("--contestants", default=";".join(CONTESTANTS), help="separated by ;")
    parser.add_argument("--set", action="append", default=[], help="a.b=value of the configuration")
    parser.add_argument("--steps", type=int, default=3, help="a turn")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--limit", type=float, default=900.0, help="seconds a size")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--here", help=argparse.SUPPRESS)  # a size: measured in this process
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("gpu-bench: PyTorch sees no CUDA device here; benchmarks/cpu_training.py is for CPUs", file=sys.stderr)
        return 2
    from emergence_kernels.bench.run import device_name

    if arguments.here:
        record = measure(arguments.here, arguments.contestants.split(";"), arguments.set, arguments.steps, arguments.rounds,
                         time.monotonic() + arguments.limit)  # fmt: skip
        folder = arguments.out / device_name(torch.device("cuda"))
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{record['utc']}-training-{arguments.here}.json"
        path.write_text(json.dumps(record, indent=1) + "\n")
        print(path)
        return 1 if any(row.get("failed") and row["contestant"].startswith("ours") for row in record["rows"]) else 0
    status = 0
    for size in arguments.sizes.split(","):  # a process each: what one leaves on the GPU is not the other's
        command = [sys.executable, __file__, *sys.argv[1:], "--here", size]
        try:
            status |= subprocess.run(command, timeout=arguments.limit + 60).returncode
        except subprocess.TimeoutExpired:
            print(f"gpu-bench: {size} was killed 60 seconds after its time", file=sys.stderr)
            status |= 1
    return status


if __name__ == "__main__":
    sys.exit(main())
