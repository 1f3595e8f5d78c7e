"""The whole way once on a GPU: prepare, train in bf16 on ZeRO-1, stop by a signal, resume, evaluate, analyse.

    python benchmarks/gpu_quickstart.py

Exits with 0 where every command succeeded: 75 for the stopped one, no row duplicated or missing after the resume, a table at
every checkpoint, an analysis. Runs on a CPU too (in a test).
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def start(*arguments: str) -> subprocess.Popen:
    paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "emergence_train", *arguments]
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": paths})


def run(*arguments: str, expected: int = 0) -> None:
    code = start(*arguments).wait()
    assert code == expected, f"emergence-train {arguments[0]}: exit {code}, expected {expected}"


def rows(run_directory: Path, kind: str) -> list[dict]:
    log = run_directory / "metrics.jsonl"
    lines = log.read_text().splitlines() if log.exists() else []
    return [row for row in map(json.loads, lines) if row["kind"] == kind]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--preset", default="tiny-0.9m")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--stop-at", type=int, default=100)
    parser.add_argument("--patience", type=float, default=120.0, help="seconds until that step")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        tokens, every, data = 8 * 128, max(1, arguments.steps // 8), f"data.path={scratch}/data"
        settings = [
            "configs/tiny.yaml",
            "name=gpu",
            f"model.preset={arguments.preset}",
            f"out={scratch}",
            data,
            "training.precision=bf16",
            "training.zero_stage=1",
            "training.micro_batch=4",
            "logging.wandb=disabled",
            f"training.tokens={arguments.steps * tokens}",
            f"training.schedule.warmup_tokens={every * tokens}",
            f"checkpoints.every_tokens={every * tokens}",
            "checkpoints.log_spaced_start=false",
            "tasks=[]",
        ]
        run("prepare", "configs/tiny.yaml", data)
        directory = Path(scratch) / "gpu"
        training, end = start("train", *settings), time.monotonic() + arguments.patience
        while training.poll() is None and len(rows(directory, "train")) < arguments.stop_at and time.monotonic() < end:
            time.sleep(0.2)
        training.send_signal(signal.SIGTERM)
        code = training.wait()
        assert code == 75, f"after SIGTERM: exit {code}, expected 75"
        reached = len(rows(directory, "train"))
        run("train", *settings)
        steps = [row["step"] for row in rows(directory, "train")]
        assert steps == list(range(1, arguments.steps + 1)), f"{len(steps)} rows, stopped after {reached}"
        losses = [row["loss"] for row in rows(directory, "train")]
        assert losses[-1] < losses[0] - 0.5, f"loss went from {losses[0]:.3f} to {losses[-1]:.3f}"
        assert len(list((directory / "positions").glob("*.parquet"))) >= 8
        run("evaluate", str(directory))
        run("analyze", "temporal", str(directory), "--split", "iid", "--out", f"{scratch}/temporal")
        assert json.loads(Path(scratch, "temporal", "result.json").read_text())["runs"]
        print(
            f"stopped after {reached} of {arguments.steps} steps and resumed; loss {losses[0]:.3f} to {losses[-1]:.3f}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
