"""End-to-end speed of `emergence-train train`, our kernels on and off, side by side: tokens/s and MFU, as JSON.

    python benchmarks/gpu_training.py [CONFIG] [a.b=value ...] [--out DIR] [--backends auto,torch]

Each backend trains the same run in a process of its own (EMERGENCE_KERNELS_BACKEND), first without and then with
torch.compile of the blocks; the figure is the median over the steps of the second half. MFU = tokens/s x
flops_per_token (emergence_train/models/counting.py) / dense bf16 peak of the device.
"""

import argparse
import datetime
import json
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]


def speed(arguments: list[str], out: Path, backend: str) -> dict:
    """Train once and read the run's own metrics."""
    shutil.rmtree(out, ignore_errors=True)
    paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"EMERGENCE_KERNELS_BACKEND": backend, "PYTHONPATH": paths}
    command = [sys.executable, "-m", "emergence_train", "train", *arguments, f"out={out}", "logging.console_seconds=20"]
    done = subprocess.run(command, env=environment, text=True, stderr=subprocess.PIPE)
    if done.returncode:
        return {"failed": done.stderr.strip().splitlines()[-1:]}
    run = next(path.parent for path in out.glob("*/metrics.jsonl"))
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    speeds = [row["tokens_per_second"] for row in rows if row["kind"] == "train" and row["tokens_per_second"]]
    session = json.loads((run / "environment.json").read_text())["sessions"][-1]
    half = speeds[len(speeds) // 2 :]
    return {
        "tokens_per_second": statistics.median(half),
        "least": min(half),
        "greatest": max(half),
        "final_loss": next(row["loss"] for row in reversed(rows) if row["kind"] == "train"),
        "flops_per_token": rows[0]["flops_per_token"],
        "environment": session,
    }


def main() -> None:
    from emergence_train.models.counting import peak_flops

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("config", nargs="?", default=str(ROOT / "configs" / "gpu-468m.yaml"))
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--backends", default="auto,torch")
    parser.add_argument("--out", default=str(ROOT / "benchmarks" / "results"))
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("gpu-bench: PyTorch sees no CUDA device here; benchmarks/cpu_training.py is for processors")
    given = [arguments.config, *arguments.overrides]
    subprocess.run([sys.executable, "-m", "emergence_train", "prepare", *given], check=True, env=os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")])})  # fmt: skip
    results, device = [], "cpu"
    for backend in arguments.backends.split(","):
        for compiled in ("false", "true"):
            found = speed([*given, f"training.compile={compiled}"], ROOT / "runs" / "gpu-training", backend)
            row = {"backend": backend, "compile": compiled == "true", **found}
            if "environment" in found:
                device = found["environment"]["device"]
                peak = peak_flops(device)
                row["mfu"] = found["tokens_per_second"] * found["flops_per_token"] / peak if peak else None
            results.append(row)
            mfu = f"{row['mfu']:.1%}" if row.get("mfu") else "n/a"
            print(f"{backend:8s} compile {compiled:5s} {row.get('tokens_per_second', 0):12,.0f} tokens/s  MFU {mfu}  "
                  f"{row.get('failed', '')}", flush=True)  # fmt: skip
            folder = Path(arguments.out) / device.replace(" ", "-").lower()
            folder.mkdir(parents=True, exist_ok=True)
            record = {"date": datetime.date.today().isoformat(), "command": ["python", *sys.argv], "rows": results}
            (folder / "training.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
