"""How far is `emergence-train plan` from steps that were measured, here and elsewhere?

    python benchmarks/studies/plan_published.py PUBLISHED.csv

PUBLISHED.csv: a row a run with its sizes, sharding, tokens_per_second_per_gpu and peak_memory_gib; it is not kept in this
repository, so the result has each row's error and not its values. Rows of odd number calibrate, those of even number are held
out. Own steps: benchmarks/results/nvidia-h100-80gb-hbm3 and nvidia-h200; the H100's profiled 468M of micro-batch 16 calibrates,
all others are held out.

Published runs are of other programs, so what moves memory is theirs: `traffic` = b x layers x width bytes a token, where b is
fitted with the two efficiencies for each architecture; likewise bytes of activations. Tensor, pipeline and context parallel runs
are left out.

Steps of torchtitan are compared with what `emergence-train plan` says as it is, nothing fitted to them.

Writes benchmarks/results/plan_published.json; the site draws its tables from it.
"""

import argparse
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from commands import write_result
from scipy.optimize import least_squares

from emergence_train.config import Training
from emergence_train.data_config import Data
from emergence_train.models.config import Work
from emergence_train.models.decoder_config import DecoderConfig
from emergence_train.models.devices import GPUS, Efficiency, Gpu
from emergence_train.models.memory import GIB, PRODUCTS, step_memory
from emergence_train.models.presets import PRESETS
from emergence_train.planning import step_time
from emergence_train.planning.communication import bytes_per_step
from emergence_train.planning.planner import plan_run

RESULTS = Path(__file__).parents[1] / "results"
H100 = RESULTS / "nvidia-h100-80gb-hbm3"
OWN = {"h100-80gb": H100, "h200-141gb": RESULTS / "nvidia-h200"}  # results by planned GPU
TARGET = RESULTS / "plan_published.json"
CALIBRATES = "20261126-150303-training-468m.json"
SINCE = "20261126-034510"  # kernels and step as they are since
SEQUENCE, BATCH = 1024, 64  # of benchmarks/gpu_training.py
LLAMA_8B = DecoderConfig(layers=32, width=4096, heads=32, kv_heads=8, ffn=14336, vocab_size=128256, max_sequence=262144)
# Llama 3.1 8B of github.com/pytorch/torchtitan, benchmarks/llama3_h100_202412_torchtitan.md (H100s of 500 W and 2.4 TB/s) and
# llama3-8b_h200_202506_trainy-whitefiber.md: GPU, GPUs, of which share a sequence, its tokens, micro-batch, checkpointing,
# linears, tokens/s a GPU, GiB
TORCHTITAN = (
    ("h100-80gb", 8, 1, 8192, 2, "selective", "bf16", 6667, 77.0),
    ("h100-80gb", 8, 1, 8192, 2, "selective", "fp8", 8532, 76.8),
    ("h100-80gb", 128, 1, 8192, 2, "selective", "bf16", 6514, 62.0),
    ("h100-80gb", 128, 1, 8192, 2, "selective", "fp8", 8380, 61.8),
    ("h100-80gb", 8, 1, 32768, 1, "full", "fp8", 3890, 83.9),
    ("h100-80gb", 8, 2, 65536, 1, "full", "fp8", 2540, 84.2),
    ("h100-80gb", 8, 4, 131072, 1, "full", "fp8", 1071, 84.0),
    ("h100-80gb", 8, 8, 262144, 1, "full", "fp8", 548, 84.5),
    ("h200-141gb", 32, 1, 8192, 2, "selective", "fp8", 10938, 47.96),
    ("h200-141gb", 64, 1, 8192, 2, "selective", "fp8", 10753, 46.97),
)
ARCHITECTURES = {"h100": ("h100-80gb", "h200-141gb"), "a100": ("a100-40gb", "a100-80gb", "a800-80gb")}


# ------------------------------------------------------------------------------------------------------- own steps


def own_seconds(gpu: Gpu, model: DecoderConfig, micro_batch: int, checkpointing: str, linears: str):
    """The parts of a step of benchmarks/gpu_training.py."""
    tokens = BATCH * SEQUENCE
    work = model.work(SEQUENCE, checkpointing, 2, linears)
    passes = step_time.device_seconds(work, tokens, gpu.bf16, gpu, linears == "fp8")
    rounds = BATCH // micro_batch
    update = step_time.optimizer_seconds(model.parameters(), 2, 2, 1, 1, rounds, gpu)
    return passes, update


def own_efficiency(attention: float) -> Efficiency:
    """Products: as profiled. Bandwidth: of what is left of the step's time. Attention: of its own benchmark."""
    record = json.loads((H100 / CALIBRATES).read_text())
    row = record["rows"][0]
    model, ideal = DecoderConfig(**PRESETS["468m"]), replace(GPUS["h100-80gb"], efficiency=Efficiency(1, 1, 1))
    passes, update = own_seconds(ideal, model, record["micro_batch"], "none", "bf16")
    products = passes.products / (row["profile"]["by_kind_ms"]["matrix products"] / 1e3)
    left = BATCH * SEQUENCE / row["tokens_per_second"] - passes.products / products - passes.attention / attention
    return Efficiency(products, attention, (passes.traffic + update) / left)


def own_attention() -> float:
    """Median share of the peak over the benchmark's causal shapes, the traffic of queries to outputs apart."""
    shares = []
    gpu = GPUS["h100-80gb"]
    for name in ("20261126-100658-attention-short-bfloat16.json",):
        for row in json.loads((H100 / name).read_text())["rows"]:
            shares += _share_of(row, gpu)
    return float(np.median(shares))


def _share_of(row: dict, gpu: Gpu) -> list[float]:
    shape = row["shape"]
    if row["candidate"] != "emergence cuda" or shape.get("kind") != "causal":
        return []
    seconds = row["modes"]["both"]["median_ms"] / 1e3
    width, tokens = shape["heads"] * shape["head_dim"], shape["batch"] * shape["seq"]
    flops = 12 * width * (shape["seq"] + 1) / 2 * tokens
    moved = (2 * 10 + 8) * width * tokens / gpu.bandwidth / 0.9  # ten tensors of the width, and a sum in float32
    return [flops / gpu.bf16 / (seconds - moved)]


def own_rows(name: str) -> list[dict]:
    """Of the steps measured on the GPU `name`."""
    rows = []
    for path in sorted(OWN[name].glob("*-training-*.json")):
        if path.name < SINCE:
            continue
        record = json.loads(path.read_text())
        model = DecoderConfig(**PRESETS[record["size"]])
        for row in record["rows"]:
            options = dict(re.findall(r"(\w+)=(\w+)", row["candidate"]))
            if not row["candidate"].startswith("ours") or set(options) - {"linears", "activation_checkpointing"}:
                continue
            checkpointing, linears = options.get("activation_checkpointing", "none"), options.get("linears", "bf16")
            micro_batch = row.get("micro_batch", record["micro_batch"])
            if "tokens_per_second" not in row:
                continue
            passes, update = own_seconds(GPUS[name], model, micro_batch, checkpointing, linears)
            memory = step_memory(model, SEQUENCE, micro_batch, checkpointing=checkpointing, linears=linears)
            rows.append(
                {
                    "run": f"{name}, {record['size']}, micro-batch {micro_batch}, {checkpointing}, {linears}",
                    "file": path.name,
                    "calibrates": path.name == CALIBRATES,
                    "time": (passes.total + update) * row["tokens_per_second"] / (BATCH * SEQUENCE) - 1,
                    "memory": memory.total / GIB / row["peak_gib"] - 1,
                }
            )
    return rows


# -------------------------------------------------------------------------------------------------- published steps


def gpu_of(row) -> Gpu:
    return GPUS[row.gpu.replace("a800", "a100")]


def published_seconds(row, products: float, attention: float, bytes_of_block: float) -> float:
    """Of a token on each GPU. FSDP's communication as ZeRO-3's: hidden where computing takes as long."""
    gpu = replace(gpu_of(row), efficiency=Efficiency(products, attention, 1))
    full = row.activation_checkpointing.startswith("full")
    again = 4 / 3 if full else 1
    work = Work(
        blocks=again * 6 * (row.matmul_params - row.vocab * row.width),
        head=6 * row.vocab * row.width,
        attention=again * 6 * row.layers * row.width * row.sequence,
        traffic=again * bytes_of_block * row.layers * row.width,
    )
    tokens = row.micro_batch * row.grad_accum * row.sequence
    passes = step_time.device_seconds(work, tokens, gpu.bf16, gpu)
    sent = bytes_per_step(row.params, 2, 3, row.gpus, row.grad_accum) if row.gpus > 1 else 0.0
    return (passes.total + step_time.exposed_seconds(sent, row.gpus, gpu, 3, passes.total)) / tokens


def fit_times(rows: list) -> list[float]:
    """Share of the peak of products and of attention, and bytes a token, layer and width."""

    def errors(values: np.ndarray) -> np.ndarray:
        return np.array([np.log(published_seconds(r, *values) * r.tokens_per_second_per_gpu) for r in rows])

    bounds = ([0.1, 0.05, 50], [1, 1, 3000])
    return least_squares(errors, [0.7, 0.3, 400], bounds=bounds, loss="soft_l1", f_scale=0.05).x.tolist()


def static_bytes(row) -> float:
    """Weights, gradients and moments of each GPU, in the precision of the row."""
    shards = row.gpus if "zero3" in row.sharding or row.sharding == "zero2" else 1
    if "bf16-true" in row.precision or "Adam states" in row.precision:
        return 8 * row.params / shards
    if "zero1" in row.sharding:
        return row.params * (2 + 4 + 12 / row.gpus)
    if "fp32 params" in row.precision:
        return 16 * row.params
    return 16 * row.params / shards


def published_bytes(row, of_block: float) -> float:
    """The peak of each GPU; logits at 10 bytes each, as field measurements of unfused losses have them."""
    tokens = row.micro_batch * row.sequence
    kept = row.layers * row.width * (2 if row.activation_checkpointing.startswith("full") else of_block)
    return static_bytes(row) + tokens * (kept + 10 * row.vocab) + PRODUCTS


def fit_bytes(rows: list) -> float:
    def errors(values: np.ndarray) -> np.ndarray:
        return np.array([np.log(published_bytes(row, values[0]) / GIB / row.peak_memory_gib) for row in rows])

    return float(least_squares(errors, [36.0], bounds=([1.0], [200.0]), loss="soft_l1", f_scale=0.05).x[0])


def published(table: pd.DataFrame) -> tuple[dict, list[dict]]:
    """-> fitted constants, and a row of errors for each run."""
    table = table[(table.tp == 1) & (table.pp == 1) & (table.cp == 1) & ~table.precision.str.contains("fp8")]
    fitted: dict = {}
    errors = []
    for name, kinds in ARCHITECTURES.items():
        rows = [row for row in table.itertuples() if row.gpu in kinds]
        of_source = [row for row in rows if row.source == "llm-foundry"]
        fitted[name] = fit_times([row for row in of_source if calibrates(row)])
        errors += [
            {
                "id": row.id,
                "run": f"{row.source}: {row.model}, {row.gpus} x {row.gpu}, {row.sequence} tokens, "
                f"checkpointing {row.activation_checkpointing}",
                "stack": "llm-foundry" if row.source == "llm-foundry" else "other",
                "calibrates": calibrates(row) and row.source == "llm-foundry",
                "time": published_seconds(row, *fitted[name]) * row.tokens_per_second_per_gpu - 1,
            }
            for row in rows
            if row.tokens_per_second_per_gpu == row.tokens_per_second_per_gpu
        ]
    measured = [row for row in table.itertuples() if row.peak_memory_gib == row.peak_memory_gib]
    fitted["activations"] = fit_bytes([row for row in measured if calibrates(row)])
    for row in measured:
        error = published_bytes(row, fitted["activations"]) / GIB / row.peak_memory_gib - 1
        entry = next((e for e in errors if e["id"] == row.id), None)
        if entry is not None:
            entry |= {"memory": error, "memory_calibrates": calibrates(row)}
    return fitted, errors


def calibrates(row) -> bool:
    return int(row.id[1:]) % 2 == 1


# -------------------------------------------------------------------------------------------------- plans as they are


def as_planned() -> dict:
    """Errors of plans of torchtitan's steps at ZeRO-3, signed, and their median and ends."""
    rows = []
    for gpu, gpus, shared, sequence, micro_batch, checkpointing, linears, rate, gib in TORCHTITAN:
        sources = [{"domain": "a", "sample": "books"}]
        data = Data(path="none", sequence=sequence, sources=sources, tokenizer={"vocab_size": LLAMA_8B.vocab_size})
        training = Training(
            tokens=10**12,
            batch=micro_batch * gpus // shared,
            micro_batch=micro_batch,
            zero_stage=3,
            sequence_parallel=shared,
            activation_checkpointing=checkpointing,
            linears=linears,
            schedule={"lr": 3e-4},
        )
        plan = plan_run(training, LLAMA_8B, data, gpus, gpu)
        rows.append(
            {
                "run": f"torchtitan: Llama 3.1 8B, {gpus} x {gpu}, {sequence} tokens over {shared}, micro-batch {micro_batch}, "
                f"checkpointing {checkpointing}, {linears}",
                "time": rate * gpus / plan.tokens_per_second - 1,
                "memory": plan.memory.total / GIB / gib - 1,
            }
        )
    times = [row["time"] for row in rows]
    return {"median": float(np.median(times)), "least": min(times), "greatest": max(times), "rows": rows}


# ----------------------------------------------------------------------------------------------------------- scores


def scores(rows: list[dict], key: str, held: str = "calibrates") -> dict:
    errors = np.abs([row[key] for row in rows if key in row and not row[held]])
    return {"rows": len(errors), "median": float(np.median(errors)), "greatest": float(errors.max())}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("published", type=Path)
    given = parser.parse_args()
    efficiency = own_efficiency(own_attention())
    ours = [row for name in OWN for row in own_rows(name)]
    fitted, theirs = published(pd.read_csv(given.published))
    by_stack = {stack: [row for row in theirs if row["stack"] == stack] for stack in ("llm-foundry", "other")}
    result = {
        "own_efficiency": vars(efficiency),
        "fitted": fitted,
        "held_out": {
            "own, time": scores(ours, "time"),
            "own, memory": scores(ours, "memory"),
            "published, time": scores(by_stack["llm-foundry"], "time"),
            "published by other programs, time": scores(by_stack["other"], "time"),
            "published, memory": scores([row for row in theirs if "memory" in row], "memory", "memory_calibrates"),
        },
        "as_planned": as_planned(),
        "own": ours,
        "published": theirs,
    }
    write_result(TARGET, "python benchmarks/studies/plan_published.py PUBLISHED.csv", result)
    print(json.dumps({key: result[key] for key in ("own_efficiency", "fitted", "held_out", "as_planned")}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
