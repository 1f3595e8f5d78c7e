"""A disk that fails, fills up, is slow or hangs, at each operation of a run in turn; and a clock that jumps.

A run whose every operation on its files is counted (disk_shim.c) is made again with one of them failing, once or from then
on. It must end by itself: with 0, and then as if nothing had happened; or with 1 or 2 and one line. Started again on a disk that
works it must end as if nothing had happened, whatever the failure left.

    python tests/faults/disk_errors.py [--every 1] [--kinds "EIO once" ...] [--out benchmarks/results/cpu/disk-errors.json]
"""

import argparse
import errno
import json
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path[:0] = [
    str(Path(__file__).parents[1]),
    str(Path(__file__).parents[2]),
    str(Path(__file__).parents[2] / "kernels"),
]

from faults import disk

if __name__ == "__main__":
    disk.ensure()

import torch

from emergence_train import files
from emergence_train.checkpoint import format as checkpoints
from emergence_train.recorder.environment import environment
from faults.comparing import Wrong, compare
from faults.crash_states import place_for
from faults.launch import Launched, launch

KINDS = {
    "EIO once": (errno.EIO, 1),
    "EIO from then on": (errno.EIO, disk.FOREVER),
    "ENOSPC once": (errno.ENOSPC, 1),
    "ENOSPC from then on": (errno.ENOSPC, disk.FOREVER),
    "EDQUOT from then on": (errno.EDQUOT, disk.FOREVER),
}


class Disk:
    """Runs in directories under `place`, one on a disk that works to compare with."""

    def __init__(self, place: Path, over: tuple[str, ...] = (), world: int = 1) -> None:
        self.place, self.over, self.world = place, over, world
        self.whole = place / f"whole-{world}-{len(over)}"
        shutil.rmtree(self.whole, ignore_errors=True)
        trace = self.whole.with_suffix(".trace")
        trace.unlink(missing_ok=True)
        launched = self.start(self.whole, lambda rank: disk.start(self.whole, trace))
        if set(launched.codes.values()) != {0}:
            raise RuntimeError(launched.output())
        trace_of = disk.read_trace(trace)
        self.operations = {  # of rank 0 by number
            op.count: f"{op.name} {Path(op.path).name}" for op in trace_of if op.process == launched.pids[0]
        }
        self.count = max(self.operations) + 1

    def start(self, out: Path, patch=None, seconds: float = 90, over: tuple[str, ...] = ()) -> Launched:
        """One start of the run under `out`, to its end."""
        arguments = ["train", str(self.place / "config.yaml"), f"out={out}", *self.over, *over]
        out.mkdir(exist_ok=True)
        launched = launch(arguments, self.world, self.place / "logs", patch=patch)
        if not launched.wait(seconds):
            launched.end()
            raise Wrong(f"hangs: {launched.output()[-500:]}")
        return launched

    def anew(self, name: str) -> Path:
        """An empty place for a run."""
        shutil.rmtree(self.place / name, ignore_errors=True)
        return self.place / name

    def hurt(self, kind: str, number: int) -> dict:
        """The run with operation `number` failing, and again without; raises Wrong."""
        error, times = KINDS[kind]
        out = self.anew("hurt")

        def patch(rank: int) -> None:
            disk.start(out)
            disk.fail(number, error, count=times)

        first = self.start(out, patch)
        _one_line(first)
        code = first.codes[0]
        if code == 0:
            compare(self.whole / "run", out / "run")
        second = self.start(out)
        _one_line(second)
        if set(second.codes.values()) != {0}:
            raise Wrong(f"the next start ended with {second.codes}: {second.output()[-500:]}")
        if code != 0 and "is missing" in second.output():
            raise Wrong(f"rows or tables were lost: {second.output()[-500:]}")
        compare(self.whole / "run", out / "run")
        for path in checkpoints.complete(out / "run" / "checkpoints"):
            if wrong := checkpoints.problems(path):
                raise Wrong(f"a damaged checkpoint is left: {wrong}")
        return {"code": code}


def _one_line(launched: Launched) -> None:
    output, codes = launched.output(), set(launched.codes.values())
    lines = [line for line in output.splitlines() if line.startswith("emergence-train:")]
    if "Traceback" in output or "a bug?" in output or codes - {0, 1, 2} or (codes != {0}) != (len(lines) == 1):
        raise Wrong(f"ended with {codes}: {output[-800:]}")


def all_of(place: Path, kinds: list[str], every: int, first: int = 0) -> dict:
    """Each kind of failure at each `every`-th operation."""
    runs, outcomes, wrong, began = Disk(place), Counter(), [], time.monotonic()
    for kind in kinds:
        for number in range(first, runs.count, every):
            try:
                outcomes[f"{kind}: ended with {runs.hurt(kind, number)['code']}"] += 1
            except Wrong as failure:
                wrong.append(
                    {"kind": kind, "operation": number, "at": runs.operations.get(number), "wrong": str(failure)}
                )
                print(wrong[-1], file=sys.stderr, flush=True)
    took = round(time.monotonic() - began, 1)
    return {"operations": runs.count, "every": every, "outcomes": outcomes, "wrong": wrong, "seconds": took}


# ------------------------------------------------------------------------------------------------- slow, hanging, clocks


def hanging(place: Path, asynchronous: bool) -> dict:
    """One of rank 1's shards never reaches the disk: the watchdog says in which operation, and of which rank where the save does
    not run beside training."""
    runs = Disk(place, (f"checkpoints.asynchronous={asynchronous}", "faults.silent_seconds=20"), world=2)
    out = runs.anew("hanging")

    def patch(rank: int) -> None:
        disk.start(out)
        if rank == 1:
            disk.fail(5, seconds=300)  # open, write, write, fsync, close of a shard: the second one's open

    launched = runs.start(out, patch, over=("faults.hang_seconds=4",))
    seconds = time.monotonic() - launched.began
    again = runs.start(out)
    compare(runs.whole / "run", out / "run")
    return {"codes": launched.codes, "output": launched.output(), "seconds": seconds, "again": again.codes}


def slow(place: Path) -> dict:
    """Every operation takes a fiftieth of a second."""
    runs = Disk(place)
    out = runs.anew("slow")

    def patch(rank: int) -> None:
        disk.start(out)
        disk.fail(0, seconds=0.02, count=disk.FOREVER)

    launched = runs.start(out, patch)
    compare(runs.whole / "run", out / "run")
    return {"codes": launched.codes}


def jumping(place: Path) -> dict:
    """The clock of the wall is up to three hours off, otherwise each time it is read, in two processes that save and beat."""
    runs = Disk(place, ("faults.silent_seconds=5",), world=2)
    out = runs.anew("jumping")
    launched = runs.start(out, lambda rank: disk.jump(3 * 3600.0), over=("faults.hang_seconds=20",))
    compare(runs.whole / "run", out / "run")
    return {"codes": launched.codes, "output": launched.output()[-800:]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--others", action="store_true", help="slow, hanging, clocks instead")
    parser.add_argument("--place", type=Path)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    place = place_for(arguments.place or Path(tempfile.mkdtemp(dir="/dev/shm")))
    if arguments.others:
        results = {f"hanging {mode}": hanging(place, mode == "beside") for mode in ("alone", "beside")}
        results |= {"slow": slow(place), "jumping": jumping(place)}
    else:
        results = all_of(place, arguments.kinds, arguments.every, arguments.first)
    if arguments.out:
        command = {"command": ["python", *sys.argv], "environment": environment(torch.device("cpu"))}
        files.write_json(arguments.out, command | results)
    print(json.dumps(results))
    if not arguments.place:
        shutil.rmtree(place)
    return 1 if results.get("wrong") else 0


if __name__ == "__main__":
    sys.exit(main())
