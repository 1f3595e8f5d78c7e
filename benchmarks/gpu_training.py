"""A whole training step on one GPU, against peers on DeepSpeed: tokens/s, MFU, memory, and a profile.

    python benchmarks/gpu_training.py [--sizes 468m,1.2b] [--candidates NAME,...] [--limit SECONDS] [--out DIR]

`ours` is what `emergence-train train` runs between checkpoints (training.step.Stepper: samples, micro-batches, position sums,
main gradients, clipping, the update): each micro-batch as a CUDA graph, eagerly, and with the blocks compiled. `plain` is the
same decoder in PyTorch's own operations with F.cross_entropy, its blocks and its loss compiled; `liger` is transformers' Llama
with Liger's kernels. All have the same shape, batch, optimizer and DeepSpeed configuration, and tokens drawn at random (speed
does not depend on them; losses are not reported). Candidates take turns, a few steps each, so that a GPU whose clock drifts
affects all alike. `ours, KEY=VALUE` is a variant: micro_batch, activation_checkpointing, linears (fp8), logits (bfloat16) or
attention or loss (a backend), swiglu or rotary (apart: not in the products beside them); `ours, KEY=VALUE, KEY=VALUE` is one of
several. predicted_gib of a row is what the model of memory says.

MFU = tokens/s x flops_per_token (DecoderConfig.flops_per_token) / dense bf16 peak, that of `linears=fp8` too: how much faster it
is than the same step in bf16, not its share of what fp8 could reach. One step of each is profiled: GPU time by
kernel, and the synchronisations of the host.
"""

import argparse
import datetime
import gc
import json
import os
import re
import statistics
import subprocess
import sys
import time
import warnings
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

BEGAN = time.monotonic()  # before torch is imported, which can take longer than the margin of who gives the limit

import torch  # noqa: E402
from gpu_peers import LigerLlama, PlainDecoder  # noqa: E402
from torch import nn  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

CANDIDATES = ("liger", "plain, compiled", "plain", "ours", "ours, eager", "ours, compiled")
CUT = 75  # exit status where the limit came before all was measured
SEQUENCE = 1024


class RandomTokens:
    """A data set of windows of random tokens, drawn in advance."""

    def __init__(self, vocabulary: int, sequence: int) -> None:
        import numpy as np

        self.sequence = sequence
        self.windows = np.random.default_rng(0).integers(0, vocabulary, (64, sequence + 1))

    def sample(self, index: int):
        return self.windows[index % len(self.windows)]


def configuration(size: str, overrides: list[str]):
    from emergence_train import config as configs

    return configs.load(
        ROOT / "configs" / "gpu-468m.yaml", [f"model.preset={size}", "training.micro_batch=16", *overrides]
    )


@torch.no_grad()
def initialise(model: nn.Module) -> None:
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02) if parameter.dim() > 1 else parameter.fill_(1.0)


_changed: list[tuple] = []


def instead(module, name: str, value) -> None:
    """Until put_back(): what a graph has captured by then stays."""
    _changed.append((module, name, getattr(module, name)))
    setattr(module, name, value)


def put_back() -> None:
    while _changed:
        setattr(*_changed.pop())


def variant(config, way: str) -> tuple:
    """The configuration of a candidate `ours, WAY`, and the keys that are none of it."""
    chosen: dict = {"compile": way == "compiled", "cuda_graphs": way not in ("eager", "compiled")}
    keys = dict(part.split("=") for part in way.split(", ") if "=" in part)
    if "micro_batch" in keys:
        chosen["micro_batch"] = int(keys.pop("micro_batch"))
    chosen |= {name: keys.pop(name) for name in ("activation_checkpointing", "linears") if name in keys}
    training = type(config.training).model_validate(config.training.model_dump() | chosen)
    return config.model_copy(update={"training": training}), keys


def predicted_gib(config, name: str) -> float | None:
    """By models.memory, of a candidate `ours` on one GPU."""
    from emergence_train.models.memory import GIB, step_memory

    who, _, way = name.partition(", ")
    if who != "ours":
        return None
    training = variant(config, way)[0].training
    memory = step_memory(
        config.model,
        config.data.sequence,
        training.micro_batch_size,
        checkpointing=training.activation_checkpointing,
        precision=training.precision,
        linears=training.linears,
        zero_stage=training.zero_stage,
        capability=torch.cuda.get_device_capability()[0] if torch.cuda.is_available() else 9,
    )
    return round(memory.total / GIB, 2)


def our_step(config, mesh, way: str):
    from emergence_train.faults.anomalies import AnomalyDetector, SkippedBatches
    from emergence_train.models.decoder import Decoder
    from emergence_train.recorder.position_sums import PositionAccumulator
    from emergence_train.training import engine as engines
    from emergence_train.training.step import Stepper

    config, keys = variant(config, way)
    if dtype := keys.get("logits"):
        from emergence_kernels.backends import triton_configs as tiles

        instead(tiles, "logits_dtype", lambda *_: getattr(torch, dtype))
    if backend := keys.get("attention"):
        from emergence_kernels.attention import op as attention

        instead(attention, "fastest", lambda *_: [backend])
    if backend := keys.get("loss"):
        from emergence_kernels.cross_entropy import position_loss as loss

        instead(loss, "fastest", lambda *_: [backend])
    if keys.get("swiglu") == "apart":
        from emergence_kernels.feed_forward import compiled as feed_forward

        instead(feed_forward, "unsupported_reason", lambda *_: "left out")
    if keys.get("rotary") == "apart":
        from emergence_kernels.attention import hopper, projected_attention

        instead(projected_attention, "turns_in_product", lambda *_: False)
        instead(hopper, "rotates_back", lambda *_: False)
    # a billion values by a CPU's generator take long
    Decoder.init_weights = lambda model, *_: initialise(model.to(mesh.device))
    graphs = engines.graphs_possible(config.training, config.faults, mesh)
    engine = engines.build(config.model, config.training, config.seed, mesh, graphs=graphs)
    data = RandomTokens(config.model.vocab_size, config.data.sequence)
    sums, watch = PositionAccumulator(config.data.sequence, mesh.device), SimpleNamespace(at=lambda *_, **__: None)
    stepper = Stepper(
        config.training,
        config.faults,
        engine,
        data,
        mesh,
        sums,
        SkippedBatches(Path(os.devnull) / "run"),
        AnomalyDetector(config.faults, []),
        watch,
        graphs,
    )
    pending: list = []

    def step(number: int) -> None:
        totals, norm, applied = stepper(number + 1, 1e-4, False)
        if pending:
            pending.pop().tolist()  # as in the training loop: read one step later
        pending.append(totals)

    return step


def peer_step(config, mesh, model: nn.Module, compiled: bool):
    import deepspeed

    from emergence_train.optim.groups import parameter_groups
    from emergence_train.training import engine as engines

    training = config.training
    initialise(model)
    optimizer = torch.optim.AdamW(
        parameter_groups(model, training.optimizer.weight_decay),
        lr=1e-4,
        betas=training.optimizer.betas,
        eps=training.optimizer.eps,
        fused=True,
    )
    settings = engines.deepspeed_config(config.training, mesh, sum(p.numel() for p in model.parameters()))
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings, dist_init_required=False)
    if compiled:
        engine.module.compile_parts()
    data = RandomTokens(config.model.vocab_size, config.data.sequence)
    rounds, micro = training.batch // training.micro_batch, training.micro_batch

    def step(number: int) -> None:
        import numpy as np

        for round_ in range(rounds):
            first = number * training.batch + round_ * micro
            windows = torch.from_numpy(np.stack([data.sample(first + i) for i in range(micro)])).pin_memory()
            tokens = windows[:, :-1].contiguous().pin_memory().to(mesh.device, non_blocking=True)
            targets = windows[:, 1:].contiguous().pin_memory().to(mesh.device, non_blocking=True)
            loss = engine(tokens, targets)
            engine.backward(loss)
            engine.step()

    return step


def make(name: str, config, mesh):
    """A function of the step's number that runs one optimizer step."""
    who, _, way = name.partition(", ")
    if who == "ours":
        return our_step(config, mesh, way)
    with torch.device(mesh.device):
        model = PlainDecoder(config.model) if who == "plain" else LigerLlama(config.model)
    return peer_step(config, mesh, model, way == "compiled")


KINDS = (  # the first key that a kernel's name contains is its kind
    ("rounding to fp8", ("_fp8_",)),
    ("fused products", ("linear_swiglu", "linear_rotary")),
    ("attention", ("flash", "fmha", "attention", "_dkdv", "_dq_", "sdpa", "forward_hopper", "backward_hopper")),
    (
        "loss",
        (
            "_statistics",
            "_combine_kernel",
            "cross_entropy",
            "loss_rows",
            "_rows_kernel",
            "rows_hopper",
            "nll_loss",
            "softmax",
            "position_sums",
        ),
    ),
    ("matrix products", ("gemm", "nvjet", "cutlass", "cublas", "splitk", "wgmma", "xmma")),
    ("swiglu", ("swiglu", "silu")),
    ("rotary", ("rotary", "rope", "CatArray", "_join_kernel")),
    ("norm", ("rms_norm", "_forward_kernel", "_backward_kernel", "rmsnorm")),
    ("optimizer", ("multi_tensor", "adam")),
    ("copies and fills", ("memcpy", "memset", "copy", "fill")),
    ("embedding", ("embedding", "indexing", "index")),
)


def kind_of(kernel: str) -> str:
    lower = kernel.lower()
    return next((kind for kind, parts in KINDS if any(part.lower() in lower for part in parts)), "other element-wise")


def profile(step, number: int) -> dict:
    """GPU time of one step by kernel and by kind, launches, and synchronisations of the host."""
    from torch.profiler import ProfilerActivity

    with torch.profiler.profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as profiler:
        began = time.perf_counter()
        step(number)
        torch.cuda.synchronize()
        wall = time.perf_counter() - began
    rows = [(e.key, e.self_device_time_total / 1e3, e.count) for e in profiler.key_averages()
            if e.device_type == torch.autograd.DeviceType.CUDA and e.self_device_time_total > 0
            and not e.key.startswith("Optimizer.step#")]  # fmt: skip  # a range, whose kernels are listed too
    kinds: Counter = Counter()
    for name, milliseconds, _ in rows:
        kinds[kind_of(name)] += milliseconds
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        step(number + 1)
    torch.cuda.set_sync_debug_mode("default")
    waits = Counter(
        "/".join(Path(w.filename).parts[-2:]) + f":{w.lineno}" for w in caught if "synchroniz" in str(w.message)
    )
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


def speeds_of(candidates: dict[str, dict], flops: float, peak: float | None, config) -> list[dict]:
    """A row of each candidate by its turns so far; before the first, by the one step after it was made, alone."""
    rows = []
    for name, of in candidates.items():
        speeds = of["speeds"] or [of["alone"]]
        speed = statistics.median(speeds)
        rows.append(
            {
                "candidate": name,
                "turns": len(of["speeds"]),
                "tokens_per_second": round(speed),
                "least": round(min(speeds)),
                "greatest": round(max(speeds)),
                "mfu": speed * flops / peak if peak else None,
                "peak_gib": round(of["peak_gib"], 2),
                "predicted_gib": predicted_gib(config, name),
            }
        )
    return rows


class Measurement:
    """Of candidates of a size in one process; the file is written after each is made, and after each of their turns."""

    def __init__(self, size: str, names: list[str], arguments: argparse.Namespace, folder: Path) -> None:
        from emergence_kernels.bench.results import commit, versions
        from emergence_kernels.bench.timing import ceilings, clocks
        from emergence_train.models.devices import peak_flops
        from emergence_train.parallel import ranks as distributed
        from emergence_train.recorder.environment import environment

        self.mesh, self.arguments = distributed.start(None), arguments
        self.config = config = configuration(size, arguments.set)
        self.tokens = config.training.batch * config.data.sequence
        self.candidates: dict[str, dict] = {}
        self.failed: list[dict] = []
        self.record = {
            "utc": datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M%S"),
            "size": size,
            "overrides": arguments.set,
            "device": torch.cuda.get_device_name(),
            "versions": versions(),
            "commit": commit(),
            "command": ["python", Path(sys.argv[0]).name, *sys.argv[1:]],
            "environment": environment(self.mesh.device),
            "ceilings": ceilings(self.mesh.device, torch.bfloat16),
            "clocks_before": clocks(),
            "flops_per_token": config.model.flops_per_token(config.data.sequence),
            "peak_flops": peak_flops(torch.cuda.get_device_name()),
            "tokens_a_step": self.tokens,
            "micro_batch": config.training.micro_batch,
            "not_reached": list(names),
            "rows": [],
        }
        self.path = folder / f"{self.record['utc']}-training-{size}.json"

    @property
    def late(self) -> bool:
        return time.monotonic() > BEGAN + self.arguments.limit

    def write(self) -> None:
        self.path.write_text(json.dumps(self.record, indent=1) + "\n")

    def write_speeds(self) -> None:
        flops, peak = self.record["flops_per_token"], self.record["peak_flops"]
        self.record["rows"] = self.failed + speeds_of(self.candidates, flops, peak, self.config)
        self.write()

    def add(self, name: str) -> None:
        """Make a candidate, and time the second of its first two steps; one that fails has a row that says why."""
        size, began = self.record["size"], time.monotonic()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        self.record["not_reached"].remove(name)
        try:
            step = make(name, self.config, self.mesh)
            for number in range(2):
                torch.cuda.synchronize()
                start = time.perf_counter()
                step(number)
            torch.cuda.synchronize()
            seconds = time.perf_counter() - start
            put_back()
        except Exception as error:  # noqa: BLE001
            put_back()
            self.failed.append({"candidate": name, "failed": f"{type(error).__name__}: {error}"[:400]})
            print(f"{size} {name}: failed: {self.failed[-1]['failed']}", flush=True)
            self.write_speeds()
            gc.collect()
            torch.cuda.empty_cache()
            return
        self.candidates[name] = {
            "step": step,
            "speeds": [],
            "alone": self.tokens / seconds,
            "peak_gib": (torch.cuda.max_memory_allocated() - before) / 2**30,
        }
        self.write_speeds()
        print(f"{size} {name}: ready after {time.monotonic() - began:.1f} s", flush=True)

    def take_turns(self) -> int:
        """-> the number of the step that follows."""
        number, steps = 2, self.arguments.steps
        for _ in range(self.arguments.rounds):
            for of in self.candidates.values():
                torch.cuda.synchronize()
                began = time.perf_counter()
                for k in range(steps):
                    of["step"](number + k)
                torch.cuda.synchronize()
                of["speeds"].append(steps * self.tokens / (time.perf_counter() - began))
                self.write_speeds()
            number += steps
            if self.late:
                break
        return number

    def report(self, number: int) -> None:
        """Print a line of each row, with a profile of step `number` of those to profile."""
        for row in self.record["rows"]:
            if "failed" in row:
                continue
            shown = ""
            variant = "=" in row["candidate"] and "linears=" not in row["candidate"]
            if not (variant or self.late) and re.search(self.arguments.profile, row["candidate"]):
                profile_row = row["profile"] = profile(self.candidates[row["candidate"]]["step"], number)
                self.write()
                shown = f"GPU {profile_row['gpu_ms']:.0f} ms a step: " + ", ".join(
                    f"{k} {v:.0f}" for k, v in profile_row["by_kind_ms"].items()
                )
                shown += f"; waits {profile_row['host_waits']}"
            print(
                f"{self.record['size']} {row['candidate']:24s} {row['tokens_per_second']:10,} tokens/s  "
                f"MFU {row['mfu'] or 0:.1%}  {row['peak_gib']} GiB ({row['predicted_gib']} predicted)  {shown}",
                flush=True,
            )
        for name in self.record["not_reached"]:
            print(f"not reached: {self.record['size']} {name}", flush=True)
        print(self.path)


def measure(size: str, names: list[str], arguments: argparse.Namespace, folder: Path) -> dict:
    """All candidates of a size -> the record that was written."""
    from emergence_kernels.bench.timing import clocks

    measurement = Measurement(size, names, arguments, folder)
    for name in names:
        if measurement.late:
            break
        measurement.add(name)
    number = measurement.take_turns()
    record = measurement.record
    record |= {"clocks_after": clocks(), "complete": not record["not_reached"]}
    measurement.write_speeds()
    measurement.report(number)
    return record


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", default="468m,1.2b")
    parser.add_argument("--candidates", default=";".join(CANDIDATES), help="separated by ;")
    parser.add_argument("--set", action="append", default=[], help="a.b=value of the configuration")
    parser.add_argument("--steps", type=int, default=3, help="a turn")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--limit", type=float, default=900.0, help="seconds a size")
    parser.add_argument(
        "--profile",
        default="ours|plain|liger",
        metavar="REGEX",
        help="candidates to profile; of variants linears alone",
    )
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--here", help=argparse.SUPPRESS)  # a size: measured in this process
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print(
            "gpu-bench: PyTorch sees no CUDA device here; benchmarks/speed/cpu_training.py is for CPUs", file=sys.stderr
        )
        return 2
    from emergence_kernels.backends.ranking import device_name

    if arguments.here:
        folder = arguments.out / device_name(torch.device("cuda"))
        folder.mkdir(parents=True, exist_ok=True)
        record = measure(arguments.here, arguments.candidates.split(";"), arguments, folder)
        failed = any(row.get("failed") and row["candidate"].startswith("ours") for row in record["rows"])
        return 1 if failed else CUT if record["not_reached"] else 0
    statuses, began = [0], BEGAN
    for size in arguments.sizes.split(","):  # a process each, so that memory left on the GPU does not affect the next
        limit = max(0.0, arguments.limit - (time.monotonic() - began))
        command = [sys.executable, __file__, *sys.argv[1:], "--here", size, "--limit", f"{limit:.1f}"]
        try:
            statuses.append(subprocess.run(command, timeout=limit + 60).returncode)
        except subprocess.TimeoutExpired:
            print(f"gpu-bench: {size} was killed 60 seconds after its time", file=sys.stderr)
            statuses.append(1)
        began = time.monotonic()
    return 1 if any(status not in (0, CUT) for status in statuses) else max(statuses)


if __name__ == "__main__":
    sys.exit(main())
