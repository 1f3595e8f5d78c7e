"""Peak memory of a rank while a model is built, saved and loaded at ZeRO-3, and the seconds of each.

    torchrun --nproc-per-node 4 benchmarks/speed/start_memory.py --width 1024 [--layers 8] [--out FILE]

Peaks are of the process (VmHWM, reset before each phase), less what it had before the model: libraries. On a CPU in float32,
where a rank keeps 4 bytes a parameter and shares 12 more; a row is added to FILE.
"""

import argparse
import datetime
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

from emergence_train.checkpoint import saver as checkpoint  # noqa: E402
from emergence_train.config import Checkpoints, Config  # noqa: E402
from emergence_train.models.config import ModelConfig  # noqa: E402
from emergence_train.parallel import ranks as distributed  # noqa: E402
from emergence_train.recorder.environment import environment  # noqa: E402
from emergence_train.training import engine as engines  # noqa: E402


def configuration(width: int, layers: int) -> Config:
    model = {"layers": layers, "width": width, "heads": 8, "kv_heads": 8, "ffn": 4 * width, "vocab_size": 8192}
    training = {"tokens": 10**6, "batch": 8, "micro_batch": 1, "precision": "fp32", "zero_stage": 3}
    source = {"domain": "manuals", "sample": "manuals"}
    return Config.model_validate(
        {
            "name": "bench",
            "data": {"path": "none", "sequence": 8, "tokenizer": {"vocab_size": 8192}, "sources": [source]},
            "model": model | {"max_sequence": 8},
            "training": training | {"schedule": {"kind": "constant", "lr": 1e-3}},
            "checkpoints": {"every_tokens": 1},
        }
    )


def status(key: str) -> int:
    """Bytes of a line of /proc/self/status."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(lines[key].split()[0])


def measured(name: str, work, into: dict):
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    began = time.monotonic()
    result = work()
    into[name] = {"peak": status("VmHWM"), "after": status("VmRSS"), "seconds": round(time.monotonic() - began, 2)}
    distributed.barrier()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    config = configuration(arguments.width, arguments.layers)
    mesh = distributed.start(1)
    distributed.import_deepspeed()
    model: ModelConfig = config.model
    before, phases = status("VmRSS"), {}
    engine = measured("build", lambda: engines.build(model, config.training, 1, mesh), phases)
    place = Path(distributed.broadcast_from_rank0(lambda: tempfile.mkdtemp()))
    try:
        saver = checkpoint.Saver(place, Checkpoints(every_tokens=1), set(), mesh, print)
        measured("save", lambda: saver.save(engine, 1, {}, torch.zeros(4, 8)), phases)
        measured("load", lambda: checkpoint.load_newest(engine, place, mesh, lambda line: None), phases)
    finally:
        distributed.barrier()
        if mesh.is_rank0:
            shutil.rmtree(place)
    windows = torch.arange(9).view(1, 9)

    def update() -> None:  # afterwards: a pass keeps what it gathered
        for _ in range(engine.gradient_accumulation_steps()):
            engine.backward(engine(windows[:, :-1].contiguous(), windows[:, 1:].contiguous()).loss)
            engine.step()

    measured("update", update, phases)
    every = distributed.all_gather_objects((before, phases))
    if mesh.is_rank0:
        shares = {name: max(ranks[name]["peak"] - base for base, ranks in every) for name in phases}
        seconds = {name: max(ranks[name]["seconds"] for _, ranks in every) for name in phases}
        row = {"parameters": model.parameters(), "ranks": mesh.world.size, "peak": shares, "seconds": seconds}
        row["largest_parameter"] = max(8192 * arguments.width, 8 * arguments.width**2)
        print(json.dumps(row))
        if arguments.out:
            keep(arguments.out, row)
    distributed.leave(0)


def keep(path: Path, row: dict) -> None:
    """Add a row to the results' file."""
    record = {
        "date": datetime.date.today().isoformat(),
        "command": "torchrun --nproc-per-node RANKS benchmarks/speed/start_memory.py --width WIDTH --layers LAYERS",
        "environment": environment(torch.device("cpu")),
        "units": "bytes and seconds, of the rank that has most",
    }
    rows = json.loads(path.read_text())["rows"] if path.is_file() else []
    path.write_text(json.dumps(record | {"rows": [*rows, row]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
