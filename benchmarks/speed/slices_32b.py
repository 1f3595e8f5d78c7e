"""What a rank does at the start of a 32B run on many ranks: its initial weights, and the index of a checkpoint's pieces.

    python benchmarks/speed/slices_32b.py [--ranks 512] [--rank 300] [--out benchmarks/results/cpu/slices_32b.json]

Nothing of the model is made: shapes are those of the preset 32b on the meta device, slices those of ZeRO-3, and only this rank's
values are drawn. The index is that of a checkpoint of all ranks, with weights and two moments; a reader with one rank fewer asks
it for its slices.
"""

import argparse
import datetime
import json
import math
import resource
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

from emergence_train.checkpoint.format import shard_name, write_index  # noqa: E402
from emergence_train.checkpoint.pieces import Index  # noqa: E402
from emergence_train.models.decoder import Decoder  # noqa: E402
from emergence_train.models.decoder_config import DecoderConfig  # noqa: E402
from emergence_train.models.initial_values import DRAWN_AT_ONCE, Slice, draw_normal  # noqa: E402
from emergence_train.models.presets import PRESETS  # noqa: E402
from emergence_train.recorder.environment import environment  # noqa: E402

KINDS = ("weights", "exp_avg", "exp_avg_sq")


def part(size: int, rank: int, ranks: int) -> tuple[int, int]:
    """First element and number of elements of a rank's partition."""
    each = -(-size // ranks)
    start = min(rank * each, size)
    return start, min(each, size - start)


def drawn(shapes: dict[str, torch.Size], rank: int, ranks: int) -> dict:
    def draw(name: str) -> int:
        start, count = part(shapes[name].numel(), rank, ranks)
        draw_normal(Slice(shapes[name], start, torch.empty(count)), 0.02, f"1/{name}")
        return count

    began, before = time.monotonic(), time.process_time()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with ThreadPoolExecutor(DRAWN_AT_ONCE) as pool:
        elements = sum(pool.map(draw, [name for name, shape in shapes.items() if len(shape) > 1]))
    more = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak)
    seconds = {"wall": time.monotonic() - began, "cpu": time.process_time() - before}
    return {"elements": elements, "seconds": seconds, "more_peak_bytes": more}


def indexed(shapes: dict[str, torch.Size], ranks: int, folder: Path) -> dict:
    held = {}
    for rank in range(ranks):
        parts = [(name, *part(shape.numel(), rank, ranks)) for name, shape in shapes.items()]
        held[shard_name(rank, ranks)] = [
            (f"{kind}|{start}|{name}", count) for name, start, count in parts if count for kind in KINDS
        ]
    began = time.process_time()
    entry = write_index(folder, held)
    written = time.process_time() - began
    began = time.process_time()
    index = Index.read(folder / entry["file"], held)
    opened = set()
    for name, shape in shapes.items():
        start, count = part(shape.numel(), ranks // 2, ranks - 1)
        for kind in KINDS:
            opened |= {span.file for span in index.spans(kind, name, start, start + count)}
    seconds = {"write_cpu": written, "read_cpu": time.process_time() - began}
    return {"pieces": len(index.file), "bytes": entry["bytes"], "files_opened": len(opened), "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=512)
    parser.add_argument("--rank", type=int, default=300)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "cpu" / "slices_32b.json")
    arguments = parser.parse_args()
    config = DecoderConfig(**PRESETS["32b"] | {"vocab_size": 65024})
    with torch.device("meta"):
        shapes = {name: parameter.shape for name, parameter in Decoder(config).named_parameters()}
    assert sum(math.prod(shape) for shape in shapes.values()) == config.parameters()
    with tempfile.TemporaryDirectory() as folder:
        result = {
            "parameters": config.parameters(),
            "ranks": arguments.ranks,
            "rank": arguments.rank,
            "largest_parameter": max(shape.numel() for shape in shapes.values()),
            "initial_weights": drawn(shapes, arguments.rank, arguments.ranks),
            "index": indexed(shapes, arguments.ranks, Path(folder)),
        }
    record = {
        "date": datetime.date.today().isoformat(),
        "command": " ".join(["python", "benchmarks/speed/slices_32b.py", *sys.argv[1:]]),
        "environment": environment(torch.device("cpu")),
        **result,
    }
    print(json.dumps(result, indent=1))
    arguments.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
