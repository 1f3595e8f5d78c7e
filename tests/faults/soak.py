"""Train for hours, and see whether memory, open files and threads of each process stay flat.

    python tests/faults/soak.py [--seconds 7200] [--processes 2] [--out FILE]

Two processes train the small model at ZeRO 1, with a state every 20 steps and tables, validation and tasks every 100, saved
asynchronously, with a copy on the node and W&B offline. Every few seconds the memory of each process (its own pages, not
shared ones), its descriptors and threads are read from /proc. The first fifth is left out, as start-up. A quantity is flat
where the median of its last fifth is at most 1% (memory: or 4 MB) above that of the fifth before the middle. The run is then told
to stop, must end with 75, and its tables must have every step once. Exit code 1 where anything of this does not hold.
"""

import argparse
import datetime
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "tests")]

import torch
import yaml

from emergence_train import files
from emergence_train.recorder import tables
from emergence_train.recorder.environment import environment
from support import small_config

STEP_TOKENS = 8 * 32
LIMITS = {"memory_mb": (0.01, 4.0), "descriptors": (0.01, 0.0), "threads": (0.01, 0.0)}  # relative, or absolute


def configured(place: Path) -> Path:
    tree = small_config(place / "data", place / "runs")
    tree["training"] |= {"tokens": 10**9 // STEP_TOKENS * STEP_TOKENS, "micro_batch": 2}
    tree["checkpoints"] = {
        "every_tokens": 100 * STEP_TOKENS,
        "state_tokens": 20 * STEP_TOKENS,
        "asynchronous": True,
        "local_path": str(place / "node"),
    }
    tree["tasks"] = [{"task": "copying", "items": 8}]
    tree["logging"] = {"wandb": "offline", "console_seconds": 5}
    path = place / "config.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def start(config: Path, processes: int, log: Path) -> list[subprocess.Popen]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = os.environ | {
        "PYTHONPATH": os.pathsep.join(sys.path[:3]),
        "WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "WANDB_MODE": "offline",
    }
    started = []
    for rank in range(processes):
        with open(log.with_suffix(f".{rank}.log"), "w") as output:
            started.append(
                subprocess.Popen(
                    [sys.executable, "-m", "emergence_train", "train", str(config)],
                    env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                    stdout=output,
                    stderr=subprocess.STDOUT,
                )
            )
    return started


def sample(pid: int) -> dict[str, float]:
    """Memory of its own in MB, open descriptors and threads of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    status = dict(line.split(":", 1) for line in lines if ":" in line)
    return {
        "memory_mb": int(status["RssAnon"].split()[0]) / 1e3,
        "descriptors": len(os.listdir(f"/proc/{pid}/fd")),
        "threads": int(status["Threads"]),
    }


def judged(samples: list[dict[str, float]]) -> dict[str, dict]:
    """For each quantity its medians in two fifths of the time, and whether it is flat."""
    fifth = len(samples) // 5
    out = {}
    for name, (relative, absolute) in LIMITS.items():
        before, after = (
            statistics.median(s[name] for s in part) for part in (samples[fifth : 2 * fifth], samples[-fifth:])
        )
        flat = after <= before + max(relative * before, absolute)
        out[name] = {"second_fifth": round(before, 2), "last_fifth": round(after, 2), "flat": flat}
    return out


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=7200.0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, help="where the result goes as JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        config = configured(place)
        prepare = [sys.executable, "-m", "emergence_train", "prepare", str(config)]
        subprocess.run(prepare, check=True, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path[:3])})
        running = start(config, arguments.processes, place / "train")
        samples: list[list[dict[str, float]]] = [[] for _ in running]
        every, began = max(arguments.seconds / 500, 0.5), time.monotonic()
        while time.monotonic() - began < arguments.seconds and all(each.poll() is None for each in running):
            time.sleep(every)
            for rank, each in enumerate(running):
                samples[rank].append(sample(each.pid))
        alive = all(each.poll() is None for each in running)
        for each in running:
            each.send_signal(signal.SIGTERM)
        codes = [each.wait(300) for each in running]
        run = place / "runs" / "run"
        steps = [row["step"] for row in tables.read_metrics(run) if row["kind"] == "train"]
        positions = tables.read(tables.POSITIONS, run)
        saves = len(list((run / "checkpoints").glob("step-*")))
        whole = (
            steps == list(range(1, len(steps) + 1)) and not positions.duplicated(["step", "split", "position"]).any()
        )
        result = {
            "command": f"python tests/faults/soak.py --seconds {arguments.seconds:g} --processes {arguments.processes}",
            "utc": datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M"),
            "environment": environment(torch.device("cpu")),
            "seconds": round(time.monotonic() - began),
            "steps": len(steps),
            "tables": int(positions["step"].nunique()),
            "states_left": saves,
            "alive_to_the_end": alive,
            "codes": codes,
            "each_step_once": whole,
            "ranks": [judged(of_rank) for of_rank in samples],
        }
        if not alive or set(codes) != {75}:
            print((place / "train.0.log").read_text()[-2000:], file=sys.stderr)
    print(json.dumps(result, indent=2))
    if arguments.out:
        files.write_json(arguments.out, result)
    flat = all(quantity["flat"] for rank in result["ranks"] for quantity in rank.values())
    return 0 if alive and set(codes) == {75} and whole and flat else 1


if __name__ == "__main__":
    sys.exit(main())
