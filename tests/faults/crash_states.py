"""A power cut after every operation of a run: what the disk may then hold is laid out, and the run is started from it.

Real runs are recorded (disk_shim.c), power_cut.py says what may be left at each point, and of each such state is asked:

- read as it is: rows of metrics.jsonl from the first on without a gap or an error, tables whole;
- started: from the newest state that the run had called saved, or one that it was saving; weights, moments, rows and
  tables are those of that state, bit for bit;
- some of them trained to the end: as if nothing had happened.

    python tests/faults/crash_states.py [--few] [--limit 48] [--out benchmarks/results/cpu/crash-states.json] [NAME ...]
"""

import argparse
import contextlib
import errno
import functools
import json
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

sys.path[:0] = [
    str(Path(__file__).parents[1]),
    str(Path(__file__).parents[2]),
    str(Path(__file__).parents[2] / "kernels"),
]

from faults import disk

if __name__ == "__main__":
    disk.ensure()

import safetensors.torch
import torch
import yaml

from emergence_train import config as configs
from emergence_train import files
from emergence_train.checkpoint import format as checkpoints
from emergence_train.checkpoint.engine_state import EngineState
from emergence_train.checkpoint.saver import Saver
from emergence_train.errors import OneLine
from emergence_train.recorder import environment, run_log, tables
from emergence_train.training import engine as engines
from emergence_train.training import run as training
from emergence_train.training.samples import Samples
from emergence_train.training.session import Session
from emergence_train.training.step import Stepper
from faults.comparing import MEASURED, Wrong, compare
from faults.disk import Operation
from faults.launch import launch
from faults.power_cut import FileSystem, Tree
from faults.trials import prepared, trial_config

STEPS = 8
BRANCH = 6  # the step of the first workload that another begins from


@dataclass(frozen=True)
class Workload:
    """A run to record: its processes, what is changed of its configuration, and at which step its first start is killed."""

    name: str
    world: int = 1
    over: tuple[str, ...] = ()
    kill_at: int | None = None
    poison: int | None = None  # a batch whose loss is not a number
    parent: bool = False  # begins from the state of the first workload
    fails: int | None = None  # which fsync of the log fails


WORKLOADS = [
    Workload("plain"),
    Workload("asynchronous", over=("checkpoints.asynchronous=true",)),
    Workload("two processes", world=2),
    Workload("two processes, asynchronous", world=2, over=("checkpoints.asynchronous=true",)),
    Workload("keep one", over=("checkpoints.keep_last=1",)),
    Workload("killed and resumed", kill_at=6),
    Workload("rewound", over=("faults.not_finite=rewind",), poison=4),
    Workload("a failed fsync", fails=3),
    Workload("from another's state", parent=True),
]


# ---------------------------------------------------------------------------------------------------------- recording


def recorded(workload: Workload, place: Path) -> list[Operation]:
    """The trace of the workload's starts, under place/runs-NAME, which is empty before."""
    out = place / f"runs-{WORKLOADS.index(workload)}"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    trace = out.with_suffix(".trace")
    trace.unlink(missing_ok=True)
    arguments = ["train", str(place / "config.yaml"), f"out={out}", *workload.over]
    if workload.parent:
        arguments += ["--from", f"{place / 'runs-0' / 'run'}@{BRANCH}"]
    starts = 1 if workload.kill_at is None else 2
    for number in range(starts):
        kill_at = workload.kill_at if number < starts - 1 else None
        launched = launch(arguments, workload.world, place / "logs", patch=_patch(workload, out, trace, kill_at))
        if not launched.wait(120) or set(launched.codes.values()) != {70 if kill_at else 0}:
            launched.end()
            raise RuntimeError(f"{workload.name}: {launched.codes} {launched.output()[-2000:]}")
    return disk.read_trace(trace)


def _patch(workload: Workload, out: Path, trace: Path | None, kill_at: int | None):
    """What a recorded process does besides: marks where a save begins and where it is called durable; every row is written at
    once, so that many are on their way to the disk between two fsyncs."""
    write, load, call = Saver._write, Samples.__call__, Stepper.__call__

    def marked(self, step, *given):
        if self.mesh.is_rank0:
            disk.mark(f"begin {step}")
        write(self, step, *given)
        if self.mesh.is_rank0 and self.problem is None:
            disk.mark(f"durable {step}")

    def poisoned(self, step):
        batch = load(self, step)
        self.poisoned = self.skipped.batch(step) == workload.poison
        return batch

    def killed(self, step, *given):
        if step == kill_at:
            os._exit(70)
        out = call(self, step, *given)
        return (out[0] * float("nan"), *out[1:]) if getattr(self.samples, "poisoned", False) else out

    fsync, synced = os.fsync, []

    def failing(descriptor):
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith("/metrics.jsonl"):
            synced.append(descriptor)
            if len(synced) == workload.fails:
                disk.fail(disk.count(), errno.EIO)
        return fsync(descriptor)

    def patch(rank: int) -> None:
        if workload.fails and trace:
            os.fsync = failing
        run_log.WRITE_SECONDS = -1.0
        Saver._write, Samples.__call__, Stepper.__call__ = marked, poisoned, killed
        if trace:
            disk.start(out, trace)

    return patch


# ------------------------------------------------------------------------------------------------------- what is right


@dataclass
class Saved:
    """What belongs to one step: its checkpoint's tensors as whole parameters, rows and tables."""

    tensors: dict[str, torch.Tensor]
    rows: list[dict] = field(default_factory=list)
    tables: dict[str, bytes] = field(default_factory=dict)


@dataclass
class Right:
    """What a trace says is right, from its last operation on back: nothing here asks the code under test."""

    saved: dict[int, Saved]
    logs: list[bytes]  # every content of metrics.jsonl that was replaced or is the last
    tables: dict[str, set[bytes]]  # every whole content a table has had


def right_of(trace: list[Operation], out: Path, first: int = 0) -> Right:
    """`first`: the step of a parent's state, which is no save of this run."""
    system, right, rows = FileSystem(str(out)), Right({0: Saved({})}, [], {}), {}
    for op in trace:
        if op.name == "rename" and op.other == str(out / "run" / "metrics.jsonl"):
            right.logs.append(system.now().get("run/metrics.jsonl", b""))
        system.apply(op)
        if op.name == "rename" and op.other.endswith(".parquet"):
            name = str(Path(op.other).relative_to(out))
            right.tables.setdefault(name, set()).add(system.now()[name])
        if op.name == "rename" and first and op.other.endswith(f"/step-{first:010d}"):
            right.saved[first] = Saved(_tensors(system.now(), first))
        if op.name == "mark":
            what, step = op.path.split()
            tree = system.now()
            if what == "begin":
                rows[int(step)] = _rows(tree["run/metrics.jsonl"], int(step)), _tables(tree, int(step))
            else:
                right.saved[int(step)] = Saved(_tensors(tree, int(step)), *rows[int(step)])
    right.logs.append(system.now()["run/metrics.jsonl"])
    return right


def _rows(log: bytes, step: int) -> list[dict]:
    rows = [json.loads(line) for line in log.splitlines()]
    rows = [row for row in rows if row.get("step", 0) <= step and row["kind"] not in ("run", "rewind", "save_failed")]
    return [{key: value for key, value in row.items() if key not in MEASURED} for row in rows]


def _tables(tree: Tree, step: int) -> dict[str, bytes]:
    return {
        path: content
        for path, content in tree.items()
        if path.endswith(".parquet") and path.count("/") == 2 and int(Path(path).stem.removeprefix("step-")) <= step
    }


def _tensors(tree: Tree, step: int) -> dict[str, torch.Tensor]:
    """The whole parameters and moments of a checkpoint, put together with the library's own reader."""
    pieces: dict[str, list] = {}
    for path, content in tree.items():
        if path.startswith(f"run/checkpoints/step-{step:010d}/shard-"):
            for key, value in safetensors.torch.load(content).items():
                if "|" in key:
                    kind, start, name = key.split("|", 2)
                    pieces.setdefault(f"{kind}|{name}", []).append((int(start), value))
    return {key: torch.cat([value for _, value in sorted(parts, key=lambda p: p[0])]) for key, parts in pieces.items()}


# ------------------------------------------------------------------------------------------------------- what a start yields


class Starts:
    """Starts of a run in this process: all that a start does up to its first step, with one engine for all of them."""

    def __init__(self, place: Path, workload: Workload) -> None:
        self.out = place / "state"
        self.config = configs.load(place / "config.yaml", [f"out={self.out}", *workload.over])
        self.parent = f"{place / 'runs-0' / 'run'}@{BRANCH}" if workload.parent else None
        self.session: Session | None = None
        self.step = 0

    @contextlib.contextmanager
    def patched(self):
        """Within: train() ends where the first step would begin. What does not depend on the run's files is made once."""

        def run_from(session, step, last):
            self.session, self.step = session, step

        with contextlib.ExitStack() as stack:
            for place, name, other in (
                (Session, "run_from", run_from),
                (Session, "close", lambda session: session.writer.close()),
                (engines, "build", _once(engines.build)),
                (training, "Dataset", _once(training.Dataset)),
                (training, "_evaluator", _once(training._evaluator)),
                (environment, "environment", lambda device: {}),
                (yaml, "safe_load", functools.cache(yaml.safe_load)),
            ):
                stack.enter_context(mock.patch.object(place, name, other))
            yield

    def __call__(self, right: Right) -> tuple[int, str | None]:
        """(the step it resumes from, what is wrong)"""
        run, self.session = self.out / "run", None
        if problem := _read(run, right):
            return 0, problem
        lines: list[str] = []
        try:
            training.train(self.config, lines.append, parent=self.parent)
        except OneLine as error:
            return 0, f"start refused: {error}"
        except Exception as error:
            return 0, f"start: {type(error).__name__}: {error}"
        if self.session is None:
            return STEPS, None  # finished: nothing to do
        if output := [line for line in lines if "is missing" in line]:
            return self.step, output[0]
        return self.step, self._differs(run, right)

    def _differs(self, run: Path, right: Right) -> str | None:
        saved = right.saved.get(self.step)
        if saved is None:
            return f"resumes from step {self.step}, which was never saved"
        rows = _rows((run / "metrics.jsonl").read_bytes(), self.step)
        if rows != saved.rows:
            return f"{len(rows)} rows instead of {len(saved.rows)}, or others by content"
        there = {p.relative_to(self.out).as_posix(): p.read_bytes() for p in run.glob("*/step-*.parquet")}
        if there != saved.tables:
            return f"step {self.step}: tables {sorted(there)} instead of {sorted(saved.tables)}, or others by content"
        if not self.step:
            return None
        state = EngineState(self.session.engine, self.session.mesh)
        outcome = {"|".join(key.split("|")[::2]): value for key, value in state.tensors().items()}
        same = outcome.keys() == saved.tensors.keys() and all(
            torch.equal(outcome[k], saved.tensors[k]) for k in outcome
        )
        return None if same else f"step {self.step}: other weights or moments"


def _read(run: Path, right: Right) -> str | None:
    """What is wrong with a run's files as the cut has left them, for one who reads them before any start."""
    try:
        if (run / "metrics.jsonl").is_file():
            rows = tables.read_metrics(run)
            lines = [[json.loads(line) for line in log.splitlines()] for log in right.logs]
            if not any(rows == known[: len(rows)] for known in lines):
                return f"metrics.jsonl reads as {len(rows)} rows that were never written so"
        for path in checkpoints.complete(run / "checkpoints"):
            if problems := checkpoints.problems(path):
                return f"half a checkpoint: {problems[0]}"
        for path in run.glob("*/step-*.parquet"):
            if path.read_bytes() not in right.tables[f"run/{path.relative_to(run).as_posix()}"]:
                return f"{path.name}: a table that was never written so"
    except OneLine as error:
        return f"reading: {error}"
    except Exception as error:
        return f"reading: {type(error).__name__}: {error}"
    return None


def _once(make):
    produced: list = []

    def remembered(*given, **named):
        produced.extend([] if produced else [make(*given, **named)])
        return produced[0]

    return remembered


class Pool:
    """Trees as directories, quickly: the same content is one file with many names."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.known: dict[bytes, Path] = {}
        place.mkdir(exist_ok=True)

    def lay_out(self, tree: Tree, out: Path) -> None:
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        for path, content in sorted(tree.items()):
            if content is None:
                (out / path).mkdir(parents=True, exist_ok=True)
                continue
            if not content:  # locks among them, which must not be one file
                (out / path).touch()
                continue
            if content not in self.known or self.known[content].stat().st_nlink > 30_000:
                self.known[content] = self.place / str(len(list(self.known)) + random.getrandbits(40))
                self.known[content].write_bytes(content)
            os.link(self.known[content], out / path)


# ------------------------------------------------------------------------------------------------------------ all of it


def check(workload: Workload, place: Path, limit: int, every: int, trained: int = 0, drop: str = "") -> dict:
    """Every crash state of a workload, by numbers; "first wrong" tells of some that are not right.

    `limit`: states at a point above which they are sampled; `every`: only each so many-th point; `trained`: of how many states
    the run is trained to its end. `drop`: fsyncs of files and directories that have this in their path are left out.
    """
    trace, note = recorded(workload, place), place / "outcome.json"
    samples = [place / f"sample-{number}" for number in range(trained)]
    note.unlink(missing_ok=True)
    sys.stdout.flush()
    if (
        pid := os.fork()
    ) == 0:  # what computes must not fork again, and the workloads still to come are forked from here
        try:
            note.write_text(json.dumps(_checked(workload, place, trace, limit, every, samples, drop)))
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(0)
    os.waitpid(pid, 0)
    outcome = json.loads(note.read_text())
    for sample in (path for path in samples if path.exists()):
        problem = trained_to_end(workload, place, sample / "run")
        outcome["trained to the end"] = outcome.get("trained to the end", 0) + 1
        if problem:
            outcome["wrong"] += 1
            outcome["first wrong"].append({"after": "training to the end", "wrong": problem})
        shutil.rmtree(sample)
    return outcome


def _checked(
    workload, place: Path, trace: list[Operation], limit: int, every: int, samples: list[Path], drop: str
) -> dict:
    rng, began, out = random.Random(workload.name), time.monotonic(), place / f"runs-{WORKLOADS.index(workload)}"
    acked = first = BRANCH if workload.parent else 0
    right = right_of(trace, out, first)
    outcome = Counter(wrong=0, operations=sum(op.name not in ("mark", "close", "open") for op in trace))
    seen: dict[frozenset, tuple[int, str | None]] = {}
    ordered: set[frozenset] = set()
    wrong: list[dict] = []
    system, starts, pool = FileSystem(str(out)), Starts(place, workload), Pool(place / "pool")
    with starts.patched():
        for number, op in enumerate(trace):
            if op.name == "fsync" and drop and drop in system.name_of(op):
                outcome["dropped"] += 1
                continue
            system.apply(op)
            if op.name == "mark" and op.path.startswith("durable"):
                acked = int(op.path.split()[1])
            if op.name in ("open", "close") or (number % every and op.name != "mark"):
                continue
            states, whole = system.after_power_cut(rng, limit)
            outcome["points"] += 1
            outcome["enumerated" if whole else "sampled"] += 1
            for tree, in_order in states:
                key = frozenset(tree.items())
                if key not in seen:
                    pool.lay_out(tree, starts.out)
                    seen[key] = starts(right)
                if in_order:
                    ordered.add(key)
                step, problem = seen[key]
                if problem is None and step < acked:
                    problem = f"resumes from step {step}; step {acked} was called saved"
                if problem:
                    outcome["wrong"] += 1
                    wrong.append({"operation": number, "after": f"{op.name} {op.path or op.number}", "wrong": problem})
    for key, sample in zip(rng.sample(list(seen), min(len(samples), len(seen))), samples):
        pool.lay_out(dict(key), sample)
    more = {"states": len(seen), "of them ordered": len(ordered), "seconds": round(time.monotonic() - began, 1)}
    return {**outcome, **more, "first wrong": wrong[:: max(1, len(wrong) // 10)]}


def trained_to_end(workload: Workload, place: Path, run: Path) -> str | None:
    """What is wrong with the run once its command has been given again, for real."""
    arguments = ["train", str(place / "config.yaml"), f"out={run.parent}", *workload.over]
    if workload.parent:
        arguments += ["--from", f"{place / 'runs-0' / 'run'}@{BRANCH}"]

    def patch(rank: int) -> None:
        _patch(workload, run.parent, None, None)(rank)

    launched = launch(arguments, workload.world, place / "logs", patch=patch)
    if not launched.wait(120) or set(launched.codes.values()) != {0}:
        launched.end()
        return f"{launched.codes}: {launched.output()[-600:]}"
    try:
        compare(place / f"runs-{WORKLOADS.index(workload)}" / "run", run)
    except Wrong as wrong:
        return str(wrong)
    return None


def place_for(folder: Path) -> Path:
    """The data set and the configuration of all workloads."""
    tree = trial_config(prepared(folder), folder / "runs")
    tree["training"] |= {"tokens": STEPS * 8 * 32}
    tree["tasks"] = [{"task": "copying", "items": 4}]
    (folder / "config.yaml").write_text(yaml.safe_dump(tree))
    return folder


def write(out: Path, results: dict[str, dict], **more) -> None:
    """`results` with the command and what it ran on."""
    place = environment.environment(torch.device("cpu"))
    total = {
        key: sum(r.get(key, 0) for r in results.values()) for key in ("points", "states", "of them ordered", "wrong")
    }
    record = {"command": ["python", *sys.argv], "environment": place, "total": total, **more, "workloads": results}
    files.write_json(out, record)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", help="workloads (default: all)")
    parser.add_argument("--limit", type=int, default=48, help="states at a point above which they are sampled")
    parser.add_argument("--every", type=int, default=1, help="look at each so many-th operation only")
    parser.add_argument("--trained", type=int, default=20, help="states of each workload to train to the end")
    parser.add_argument(
        "--drop", default="", help="leave out fsyncs of what has this in its path: the checker must object"
    )
    parser.add_argument("--place", type=Path)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    place = place_for(arguments.place or Path(tempfile.mkdtemp(dir="/dev/shm")))
    results = {}
    for workload in WORKLOADS:
        if not arguments.names or workload.name in arguments.names:
            outcome = check(workload, place, arguments.limit, arguments.every, arguments.trained, arguments.drop)
            results[workload.name] = outcome
            print(workload.name, json.dumps(outcome), flush=True, file=sys.stderr)
    if arguments.out:
        write(arguments.out, results)
    print(json.dumps(results))
    if not arguments.place:
        shutil.rmtree(place)
    return 1 if any(outcome["wrong"] for outcome in results.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
