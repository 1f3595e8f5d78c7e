"""Everything that a GPU is needed for, in stages sized for half an hour: `make gpu-first`.

    python benchmarks/gpu_first.py [--minutes 30] [--stages NAME,...] [--again] [--out DIR]

Each stage is a process with its own limit, the most informative first; a stage writes its measurements as it goes, before it
is killed. OUT/<device>/gpu-first.json has the outcome of each; the next call continues with those that were not reached or were
cut off at this commit (--again: all of them). Limits are shares of --minutes, by what the stages took on an H100.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HERE = Path(__file__).resolve().parent
SHORTEST = 10.0  # seconds; a stage that has less left is for the next call


@dataclass(frozen=True)
class Stage:
    name: str
    share: float  # share of the minutes
    command: tuple[str, ...]
    what: str


def stages(out: Path) -> list[Stage]:
    python, results = sys.executable, ("--out", str(out))
    bench = (python, "-m", "emergence_kernels.bench", "--suite", "short", *results)
    train = (python, str(HERE / "gpu_training.py"), *results)
    check = (python, str(HERE / "gpu_check.py"), *results)
    return [
        Stage("environment", 0.02, (python, "-m", "emergence_train", "doctor"), "versions, driver, backends"),
        Stage(
            "first",
            0.10,
            (*check, "--stage", "first", "--limit", "{limit}"),
            "kernels most likely to hang, GPU-only tests",
        ),
        Stage("rest", 0.09, (*check, "--stage", "rest", "--limit", "{limit}"), "every other test of the kernels"),
        Stage(
            "train-468m", 0.10, (*train, "--sizes", "468m", "--limit", "{limit}"), "a training step beside its peers"
        ),
        Stage(
            "train-1.2b",
            0.05,
            (*train, "--sizes", "1.2b", "--contestants", "ours", "--limit", "{limit}"),
            "the same, larger",
        ),
        Stage(
            "train-1.2b-peer",
            0.05,
            (*train, "--sizes", "1.2b", "--contestants", "plain, compiled", "--limit", "{limit}"),
            "its peer, apart: both do not fit 80 GB",
        ),
        Stage(
            "train-variants",
            0.04,
            (
                *train,
                "--sizes",
                "468m",
                "--contestants",
                "ours, linears=fp8;ours, micro_batch=32",
                "--limit",
                "{limit}",
            ),
            "linear layers in fp8, larger micro-batches",
        ),
        Stage(
            "train-checkpointing",
            0.04,
            (
                *train,
                "--sizes",
                "468m",
                "--contestants",
                "ours, activation_checkpointing=selective;ours, activation_checkpointing=full;ours, logits=bfloat16",
                "--limit",
                "{limit}",
            ),
            "less kept for the backward pass; logits in bf16",
        ),
        Stage(
            "attention",
            0.09,
            (*bench, "--op", "attention", "--budget", "{limit}"),
            "beside cuDNN, flash-attn, FlexAttention",
        ),
        Stage(
            "position_loss", 0.08, (*bench, "--op", "position_loss", "--budget", "{limit}"), "beside Liger, CCE, quack"
        ),
        Stage("rms_norm", 0.07, (*bench, "--op", "rms_norm", "--budget", "{limit}"), "beside Liger, quack"),
        Stage("fp8_linear", 0.04, (*bench, "--op", "fp8_linear", "--budget", "{limit}"), "beside cuBLAS in bf16"),
        Stage("feed_forward", 0.04, (*bench, "--op", "feed_forward", "--budget", "{limit}"), "beside cuBLAS, Liger"),
        Stage(
            "linear_cross_entropy",
            0.06,
            (*bench, "--op", "linear_cross_entropy", "--budget", "{limit}"),
            "beside CCE, Liger",
        ),
        Stage("end-to-end", 0.06, (python, str(HERE / "gpu_quickstart.py")), "prepare, train, stop, resume, analyse"),
        Stage("sanitizer", 0.07, ("make", "gpu-sanitize", "SANITIZERS=memcheck"), "accesses out of bounds"),
    ]


def run(stage: Stage, limit: float, log: Path) -> tuple[int | None, float]:
    """-> (exit status, None where it was killed at its limit; seconds)."""
    command = [part.replace("{limit}", f"{max(5.0, limit - 10):.0f}") for part in stage.command]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")])
    began = time.monotonic()
    with log.open("w") as file:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": paths, "PYTHONUNBUFFERED": "1"},
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status: int | None = process.wait(limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            status = None
    return status, round(time.monotonic() - began, 1)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=30.0, help="for everything")
    parser.add_argument("--stages", default="", help="only these, separated by commas")
    parser.add_argument("--again", action="store_true", help="those too that are done at this commit")
    parser.add_argument("--list", action="store_true", help="print the stages and their limits, and end")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    arguments = parser.parse_args(argv)
    sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]
    chosen = [s for s in stages(arguments.out) if not arguments.stages or s.name in arguments.stages.split(",")]
    if arguments.list:
        for stage in chosen:
            print(f"{stage.name:22s} {stage.share * arguments.minutes * 60:5.0f} s  {stage.what}")
        return 0
    import torch

    if not torch.cuda.is_available():
        print("gpu-first: PyTorch sees no CUDA device here", file=sys.stderr)
        return 2
    from emergence_kernels.bench.run import commit, device_name, versions

    folder = arguments.out / device_name(torch.device("cuda"))
    folder.mkdir(parents=True, exist_ok=True)
    path, now = folder / "gpu-first.json", commit()
    record = json.loads(path.read_text()) if path.exists() else {}
    if record.get("commit") != now or arguments.again:
        record = {"commit": now, "versions": versions(), "device": torch.cuda.get_device_name(), "stages": {}}
    end, failed = time.monotonic() + arguments.minutes * 60, []
    for stage in chosen:
        before = record["stages"].get(stage.name, {})
        if before.get("status") == 0:
            print(f"{stage.name:22s} done before, in {before['seconds']} s", flush=True)
            continue
        limit = min(stage.share * arguments.minutes * 60, end - time.monotonic())
        if limit < SHORTEST:
            record["stages"].setdefault(stage.name, {"status": "not reached"})
            continue
        log = folder / f"gpu-first-{stage.name}.log"
        status, seconds = run(stage, limit, log)
        record["stages"][stage.name] = {
            "status": "cut off" if status is None else status,
            "seconds": seconds,
            "limit": round(limit),
            "command": " ".join(stage.command),
        }
        path.write_text(json.dumps(record, indent=1) + "\n")
        if status != 0:
            failed.append(stage.name)
        outcome = {None: "cut off at its limit", 0: "done"}.get(status, f"exit {status}, see {log}")
        print(f"{stage.name:22s} {seconds:6.1f} s  {outcome}", flush=True)
    path.write_text(json.dumps(record, indent=1) + "\n")
    left = [name for name, of in record["stages"].items() if of["status"] in ("not reached", "cut off")]
    if left:
        print(f"for the next call: {', '.join(left)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
