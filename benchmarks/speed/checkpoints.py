"""The cost of a durable save and a verified load against DeepSpeed's own, in one run.

    python benchmarks/speed/checkpoints.py [--width 384] [--stage 2] [--rounds 7] [--out FILE]
    torchrun --nproc-per-node 2 benchmarks/speed/checkpoints.py ...

The candidates take turns with the same engine and directory. `deepspeed` is engine.save_checkpoint and load_checkpoint
unmodified; `deepspeed, fsynced` adds an fsync of every file, without which a power cut may lose the checkpoint. Ours writes,
hashes and fsyncs, synchronises the ranks, writes the manifest and renames; loading hashes every file again before it reads
one. `held up` is the time that an asynchronous save blocks the loop.
"""

import argparse
import datetime
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[2] / "kernels")]

from emergence_train import files
from emergence_train.checkpoint import format as checkpoints
from emergence_train.checkpoint import saver as checkpoint
from emergence_train.config import Config
from emergence_train.parallel import ranks as distributed
from emergence_train.recorder.environment import environment
from emergence_train.training import engine as engines


def configuration(width: int, stage: int, asynchronous: bool = False) -> Config:
    return Config.model_validate(
        {
            "name": "bench",
            "data": {
                "path": "none",
                "sequence": 64,
                "tokenizer": {"vocab_size": 8192},
                "sources": [{"domain": "manuals", "sample": "manuals"}],
            },
            "model": {
                "layers": 6,
                "width": width,
                "heads": 4,
                "kv_heads": 4,
                "ffn": 8 * width // 3 // 16 * 16,
                "vocab_size": 8192,
                "max_sequence": 64,
            },
            "training": {
                "tokens": 10**6,
                "batch": 4,
                "micro_batch": 1,
                "precision": "fp32",
                "zero_stage": stage,
                "schedule": {"lr": 1e-3},
            },
            "checkpoints": {"every_tokens": 10**5, "keep_last": 1, "asynchronous": asynchronous},
        }
    )


def timed(mesh, work) -> float:
    """Seconds until all ranks are done."""
    distributed.barrier()
    began = time.perf_counter()
    work()
    distributed.barrier()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--stage", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--place", type=Path, help="directory to write to (default: the temporary directory)")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    mesh = distributed.start(1)
    config = configuration(arguments.width, arguments.stage)
    engine = engines.build(config.model, config.training, config.seed, mesh)
    tokens = torch.randint(0, 8192, (1, 64), generator=torch.Generator().manual_seed(mesh.data.rank))
    for _ in range(4 // mesh.data.size):  # one update, so that there are moments to save
        engine.backward(engine(tokens, tokens).loss)
        engine.step()
    place = distributed.broadcast_from_rank0(lambda: Path(tempfile.mkdtemp(dir=arguments.place)))
    theirs, sums = place / "deepspeed", torch.zeros(4, 64, dtype=torch.float64)
    savers = {
        wait: checkpoint.Saver(
            place / name, configuration(arguments.width, arguments.stage, not wait).checkpoints, {1}, mesh, print
        )
        for wait, name in ((True, "ours"), (False, "beside"))
    }

    def deepspeed(sync: bool) -> None:
        engine.save_checkpoint(str(theirs), tag="state")
        if sync:
            distributed.barrier()
            for path in sorted(p for p in theirs.rglob("*") if p.is_file())[mesh.data.rank :: mesh.data.size]:
                files.fsync_file(path)

    def beside() -> float:
        seconds = timed(mesh, lambda: savers[False].save(engine, 1, {}, sums))
        savers[False].wait()
        return seconds

    rows: dict[str, list[float]] = {}
    for turn in range(arguments.rounds + 1):  # the first is warm-up
        measured = {
            "save: deepspeed": timed(mesh, lambda: deepspeed(False)),
            "save: deepspeed, fsynced": timed(mesh, lambda: deepspeed(True)),
            "save: ours": timed(mesh, lambda: savers[True].save(engine, 1, {}, sums)),
            "save: ours beside training, held up": beside(),
            "load: deepspeed": timed(mesh, lambda: engine.load_checkpoint(str(theirs), tag="state")),
            "load: ours": timed(mesh, lambda: checkpoint.load_newest(engine, place / "ours", mesh, lambda line: None)),
            "of which verification": timed(
                mesh,
                lambda: checkpoints.problems(
                    place / "ours" / "checkpoints" / checkpoints.step_name(1),
                    slice(mesh.data.rank, None, mesh.data.size),
                ),
            ),
        }
        for name, seconds in measured.items():
            rows.setdefault(name, []).extend([seconds] if turn else [])
    assert all(saver.problem is None for saver in savers.values())
    if mesh.is_rank0:
        record = {
            "date": datetime.date.today().isoformat(),
            "command": ["python", *sys.argv],
            "environment": environment(mesh.device),
            "load_average": os.getloadavg(),
            "processes": mesh.data.size,
            "zero_stage": arguments.stage,
            "parameters": config.model.parameters(),
            "megabytes": {"deepspeed": _megabytes(theirs), "ours": _megabytes(place / "ours" / "checkpoints")},
            "rounds": arguments.rounds,
            "seconds": {
                name: {"median": statistics.median(v), "least": min(v), "greatest": max(v)} for name, v in rows.items()
            },
        }
        for name, values in rows.items():
            print(f"{name:38s} {statistics.median(values):7.3f} s  [{min(values):.3f}, {max(values):.3f}]")
        print(record["megabytes"])
        if arguments.out:
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            arguments.out.write_text(json.dumps(record, indent=1) + "\n")
        shutil.rmtree(place)
    distributed.leave(0)


def _megabytes(folder: Path) -> float:
    return round(sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6, 1)


if __name__ == "__main__":
    main()
