"""Faults and changes with a known outcome: one process forks every run and prints one JSON object, which the tests check.

python tests/faults/scenarios.py PLACE [--few] [NAME ...]
"""

import contextlib
import json
import os
import pickle
import re
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

sys.path[:0] = [
    str(Path(__file__).parents[1]),
    str(Path(__file__).parents[2]),
    str(Path(__file__).parents[2] / "kernels"),
]

import numpy as np
import torch

from emergence_train import files
from emergence_train.checkpoint import local_copies
from emergence_train.checkpoint.local_copies import LocalCopies
from emergence_train.checkpoint.saver import Saver
from emergence_train.faults import operations, watchdog
from emergence_train.faults.signals import StopSignal
from emergence_train.faults.watchdog import Watchdog
from emergence_train.models.decoder import Decoder
from emergence_train.recorder import tables
from emergence_train.training.recording import RunWriter
from emergence_train.training.samples import Samples
from emergence_train.training.step import Stepper
from faults.runs import Runs, some  # first: it must not be imported after anything that computes


def poison(batches: set[int], factor: float):
    """Multiply the loss of these batches, in any step that trains on them."""
    now = {"batch": -1}
    load, forward = Samples.__call__, Decoder.forward

    def loading(self, step):
        now["batch"] = self.skipped.batch(step)
        return load(self, step)

    def wrong(self, *given, **named):
        out = forward(self, *given, **named)
        if not self.training or now["batch"] not in batches:
            return out
        return out._replace(
            loss=out.loss * factor,
            positions=out.positions._replace(
                loss_sum=out.positions.loss_sum * factor, loss_sq_sum=out.positions.loss_sq_sum * factor**2
            ),
        )

    def patch(rank: int) -> None:
        Samples.__call__, Decoder.forward = loading, wrong

    return patch


# ------------------------------------------------------------------------------------------------------------ elastic


def elastic(runs: Runs) -> dict:
    """Another world size, stage and micro-batch at every start, against one process that was never stopped."""
    outcome = {}
    for precision in some(["fp32", "bf16"], runs.few, 1):
        base = [f"training.precision={precision}"]
        whole = runs.start(f"whole-{precision}", *base)
        name, ends = f"elastic-{precision}", []
        chain = [(4, 1, 1, 4), (2, 3, 2, 9), (1, 2, 3, 15), (3, 1, 4, None)]  # processes, stage, micro-batch, stop at
        for world, stage, micro, stop_at in chain:
            over = [*base, f"training.zero_stage={stage}", f"training.micro_batch={micro}"]
            ends.append(runs.start(name, *over, world=world, stop_at=stop_at))
        losses = [np.array([row["loss"] for row in runs.rows(n, "train")]) for n in (f"whole-{precision}", name)]
        positions = [tables.read(tables.POSITIONS, runs.path(n)) for n in (f"whole-{precision}", name)]
        same = len(losses[0]) == len(losses[1]) and len(positions[0]) == len(positions[1])
        outcome[precision] = {
            "chain": [f"{w} processes, stage {s}, micro-batch {m}" for w, s, m, _ in chain],
            "codes": [whole["codes"], *[end["codes"] for end in ends]],
            "said": "" if same else "".join(end["said"] for end in ends)[-3000:],
            "rows": [len(losses[0]), len(losses[1])],
            "loss_difference": float(np.max(np.abs(losses[1] / losses[0] - 1))) if same else None,
            "table_difference": float((positions[1]["loss_sum"] / positions[0]["loss_sum"] - 1).abs().max())
            if same
            else None,
            "counts_equal": same and bool((positions[0]["count"] == positions[1]["count"]).all()),
        }
    return outcome


def exact(runs: Runs) -> dict:
    """Stopped by SIGTERM and started again, in every precision, at every stage, saved during training or not."""
    outcome = {}
    cases = [
        ("fp32", 2, 2, True),
        ("bf16", 1, 2, False),
        ("fp32", 0, 2, False),
        ("fp32", 3, 1, True),
        ("bf16", 2, 2, False),
        ("bf16", 3, 2, False),
    ]
    for precision, stage, world, asynchronous in some(cases, runs.few, 1):
        key = f"{precision}-{stage}-{world}-{asynchronous}"
        over = [
            f"training.precision={precision}",
            f"training.zero_stage={stage}",
            f"checkpoints.asynchronous={asynchronous}",
        ]
        whole = runs.start(f"one-{key}", *over, world=world)
        first = runs.start(f"two-{key}", *over, world=world, stop_at=5)
        second = runs.start(f"two-{key}", *over, world=world)
        outcome[key] = {
            "codes": [whole["codes"], first["codes"], second["codes"]],
            "differs": runs.differs(f"one-{key}", f"two-{key}"),
        }
        if any(second["codes"]):
            outcome[key]["said"] = second["said"][-2000:]
    return outcome


# --------------------------------------------------------------------------------------------------- numbers, replicas


def rewind(runs: Runs) -> dict:
    """A batch whose loss is not finite (or a spike): rewind, then equal a run that never had the skipped batches."""
    outcome = {}
    cases = [(3, 2, float("nan")), (1, 1, float("nan")), (2, 1, 30.0)]
    for stage, world, factor in some(cases, runs.few, 1):
        key = f"{stage}-{world}-{factor}"
        over = [f"training.zero_stage={stage}", "faults.not_finite=rewind", "faults.spike=rewind"]
        hurt = runs.start(f"rewind-{key}", *over, world=world, patch=poison({19}, factor))
        # The reference: the same skips known from the start of the state it goes back to.
        rewinds = runs.rows(f"rewind-{key}", "rewind")
        runs.start(f"skips-{key}", *over, world=world, stop_at=2)
        (runs.path(f"skips-{key}") / "rewinds.json").write_text(
            json.dumps({"rewinds": [{k: v for k, v in row.items() if k != "kind"} for row in rewinds]})
        )
        whole = runs.start(f"skips-{key}", *over, world=world, patch=poison({19}, factor))
        outcome[key] = {
            "codes": [hurt["codes"], whole["codes"]],
            "rewinds": rewinds,
            "said": hurt["said"][-1500:],
            "differs": runs.differs(f"skips-{key}", f"rewind-{key}"),
        }
    return outcome


def skip(runs: Runs) -> dict:
    """A bad batch is skipped, at every stage, and named; the others are trained on."""
    outcome = {}
    cases = [
        (0, 2, "fp32", float("nan")),
        (3, 1, "fp32", 30.0),
        (1, 1, "bf16", float("nan")),
        (1, 1, "fp32", float("nan")),
        (2, 2, "fp32", 30.0),
        (0, 1, "fp32", 30.0),
        (1, 2, "bf16", 30.0),
    ]
    for stage, world, precision, factor in some(cases, runs.few, 2):
        key = f"{stage}-{world}-{precision}-{factor}"
        over = [f"training.zero_stage={stage}", f"training.precision={precision}", "faults.spike=skip"]
        end = runs.start(f"skip-{key}", *over, world=world, patch=poison({19}, factor))
        losses = [row["loss"] for row in runs.rows(f"skip-{key}", "train")]
        outcome[key] = {
            "codes": end["codes"],
            "skipped": runs.rows(f"skip-{key}", "skipped"),
            "losses": losses,
            "curve_steps": len(tables.read(tables.CURVES, runs.path(f"skip-{key}"))),
            "tables": len(tables.read(tables.POSITIONS, runs.path(f"skip-{key}"))),
        }
    return outcome


def drift(runs: Runs) -> dict:
    """Rank 1's copy of a weight changes by one unit in the last place."""
    call = Stepper.__call__

    def stepping(self, step, lr, stop=False):
        out = call(self, step, lr, stop)
        if step == 4 and self.mesh.data.rank == 1:
            with torch.no_grad():
                weight = self.engine.module.norm.weight
                weight.view(-1)[3] = torch.nextafter(weight.view(-1)[3], torch.tensor(9.0))
        return out

    def patch(rank: int) -> None:
        Stepper.__call__ = stepping

    end = runs.start("drift", "training.zero_stage=0", "faults.compare_replicas=true", world=4, patch=patch)
    calm = runs.start("calm", "faults.compare_replicas=true", world=2)
    return {"codes": end["codes"], "said": end["said"], "events": runs.rows("drift", "drift"), "calm": calm["codes"]}


# ----------------------------------------------------------------------------------------------------------- processes


def hang(runs: Runs) -> dict:
    """Rank 1 sleeps while loading; and the error of a rank that fails is reported by the others."""
    load = Samples.__call__

    def loading(self, step):
        if step == 5 and self.mesh.data.rank == 1:
            time.sleep(60)
        return load(self, step)

    def failing(self, step):
        if step == 5 and self.mesh.data.rank == 1:
            raise OSError(5, "Input/output error")
        return load(self, step)

    def asleep(rank: int) -> None:
        Samples.__call__ = loading

    def broken(rank: int) -> None:
        Samples.__call__ = failing

    over = ["faults.hang_seconds=4", "faults.silent_seconds=10"]
    launched = runs.start("hang", *over, world=3, patch=asleep)
    two = runs.start("broken", *over, world=3, patch=broken)
    folder = runs.path("hang") / "stacks"
    stacks = {path.name: path.read_text() for path in folder.glob("*.txt")}
    records = [pickle.loads(path.read_bytes()) for path in sorted(folder.glob("flight-*"))]
    open_calls = [[e["profiling_name"] for e in record["entries"] if not e["retired"]] for record in records]
    return {"hang": launched, "stacks": stacks, "open_calls": open_calls, "broken": two}


def slow(runs: Runs) -> dict:
    """Rank 1 takes a fifth of a second more over its data at every step."""
    load = Samples.__call__

    def loading(self, step):
        time.sleep(0.2 * (self.mesh.data.rank == 1))
        return load(self, step)

    def patch(rank: int) -> None:
        Samples.__call__, operations.STEPS = loading, 4
        watchdog.COMPARE_SECONDS, watchdog.TIMES_EVERY = 2.0, 1

    end = runs.start("slow", "training.micro_batch=6", world=2, patch=patch)
    return {"codes": end["codes"], "said": end["said"], "rows": runs.rows("slow", "straggler")}


PHASES = ["validation", "saving", "backward", "loading samples", "forward", "optimizer step", "reducing the loss"]
STARTS = ["building the engine", "opening the data", "loading a checkpoint"]


def phases(runs: Runs) -> dict:
    """SIGTERM in each phase of step 6, a planned checkpoint, to one rank of two; and while a single process starts."""
    at, phases_seen = Watchdog.at, {}

    def signalling(phase: str, to: int):
        def hooked(self, operation, step=0):
            at(self, operation, step)
            if operation == phase and step in (0, 6) and self.mesh.data.rank == to and not hasattr(self, "sent"):
                self.sent = True
                os.kill(os.getpid(), signal.SIGTERM)
                if not step:
                    time.sleep(5)  # the thread ends the process; the main thread would continue

        def patch(rank: int) -> None:
            Watchdog.at = hooked

        return patch

    runs.start("phases-whole", world=2)
    for number, phase in enumerate(some(PHASES, runs.few, 2)):
        name = f"phases-{number}"
        first = runs.start(name, world=2, patch=signalling(phase, number % 2))
        steps = [row["step"] for row in runs.rows(name, "train")]
        second = runs.start(name, world=2)
        phases_seen[phase] = {
            "codes": [first["codes"], second["codes"]],
            "last": max(steps),
            "said": first["said"][-600:],
            "differs": runs.differs("phases-whole", name),
            "seconds": first["seconds"],
        }
    save, fsync = Saver.save, files.fsync

    def beside(self, engine, step, *given):
        save(self, engine, step, *given)
        if step == 6 and self.mesh.data.rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.2)  # it was received, and the save continues

    def slowly(file):
        time.sleep(0.2)
        fsync(file)

    def slow_and_signalled(rank: int) -> None:
        Saver.save, files.fsync = beside, slowly

    first = runs.start("phases-beside", "checkpoints.asynchronous=true", world=2, patch=slow_and_signalled)
    second = runs.start("phases-beside", world=2)
    phases_seen["saving beside training"] = {
        "codes": [first["codes"], second["codes"]],
        "last": 6,
        "said": first["said"][-600:],
        "differs": runs.differs("phases-whole", "phases-beside"),
        "seconds": first["seconds"],
    }
    for phase in some(STARTS, runs.few, 1):
        end = runs.start(f"phases-{phase[:4]}", patch=signalling(phase, 0))
        phases_seen[phase] = {"codes": [end["codes"]], "said": end["said"], "seconds": end["seconds"]}
    return phases_seen


def deferred(runs: Runs) -> dict:
    """A stop at a planned checkpoint puts its tables off; the next start writes them, and is killed before it saves a state."""
    step, checkpoint, flush = Stepper.__call__, RunWriter.checkpoint, RunWriter.flush
    listen, signals = StopSignal.__init__, []

    def listening(self, *given):
        listen(self, *given)
        signals.append(self)

    def stopping(self, number, *given):
        if number == 6:
            os.kill(os.getpid(), signal.SIGTERM)
            while not signals[-1].requested:  # another thread notes it, on a busy machine after the step
                time.sleep(0.01)
        return step(self, number, *given)

    def writing(self, number, *given):
        checkpoint(self, number, *given)
        if number == 6:
            flush(self)
            os._exit(9)

    def stop(rank: int) -> None:
        StopSignal.__init__, Stepper.__call__ = listening, stopping

    def kill(rank: int) -> None:
        RunWriter.checkpoint = writing

    tasks = "tasks=[{task: copying, items: 4}]"
    runs.start("deferred-whole", tasks)
    ends = [runs.start("deferred", tasks, patch=patch) for patch in (stop, kill, kill, None)]
    return {
        "codes": [end["codes"] for end in ends],
        "differs": runs.differs("deferred-whole", "deferred"),
        "said": ends[-1]["said"][-1500:],
    }


def compiling(runs: Runs) -> dict:
    """SIGTERM while validation compiles, which would take a minute: in a compiler that propagates the exception, and in
    one that catches the first. torch's own compiler is tested by test_compiling.py."""
    compile, at, now = torch.nn.Module.compile, Watchdog.at, {}

    def noting(self, operation, step=0):
        at(self, operation, step)
        now["operation"] = operation

    def signalling():
        print(f"signalled at {time.monotonic()} s", flush=True)
        os.kill(os.getpid(), signal.SIGTERM)

    def patch_of(case: str, interrupted: bool):
        def backend(graph, inputs):
            if interrupted and now["operation"] == "validation" and "sent" not in now:
                now["sent"] = True
                threading.Timer(0.3, signalling).start()
                with contextlib.suppress(*([Exception] if case == "swallowed" else [])):
                    time.sleep(60)
                time.sleep(60)
            return graph.forward

        def patch(rank: int) -> None:
            torch.nn.Module.compile = lambda self: compile(self, backend=backend)
            Watchdog.at = noting

        return patch

    outcome = {}
    for case, world, stage in some([("raised", 2, 1), ("swallowed", 1, 1), ("raised", 2, 3)], runs.few, 2):
        key, over = f"compiling-{case}-{stage}", ["training.compile=true", f"training.zero_stage={stage}"]
        whole = runs.start(f"whole-{key}", *over, world=world, patch=patch_of(case, False))
        first = runs.start(key, *over, world=world, patch=patch_of(case, True))
        signalled = re.search(r"signalled at (\S+) s", first["said"])  # by the clock of the machine
        answered = time.monotonic() - float(signalled[1]) if signalled else None
        second = runs.start(key, *over, world=world, patch=patch_of(case, False))
        outcome[key] = {
            "codes": [whole["codes"], first["codes"], second["codes"]],
            "said": first["said"],
            "differs": runs.differs(f"whole-{key}", key),
            "answered": answered,
        }
    return outcome


def pinned(runs: Runs) -> dict:
    """Retention in a run: the last two, each second planned one, the best, and a pinned one."""
    over = ["checkpoints.keep_every=2", "checkpoints.keep_last=1"]
    first = runs.start("pinned", *over, stop_at=4)
    newest = sorted((runs.path("pinned") / "checkpoints").glob("step-*"))[-1]
    (newest / "keep").write_text("for the paper\n")
    second = runs.start("pinned", *over)
    left = sorted(path.name for path in (runs.path("pinned") / "checkpoints").glob("step-*"))
    return {"codes": [first["codes"], second["codes"]], "pinned": newest.name, "left": left}


def copies(runs: Runs) -> dict:
    """Four ranks on two made-up nodes, stopped again and again; meanwhile something happens to the nodes' copies."""
    nodes = [runs.place / "nodes" / f"{node}" for node in range(2)]

    def until(last: int | None):
        """In each process: its node, and a signal to stop in step `last`."""
        plain, load = LocalCopies.__init__, Samples.__call__

        def loading(self, step):
            if step == last:
                os.kill(os.getpid(), signal.SIGTERM)
            return load(self, step)

        def patch(rank: int) -> None:
            local_copies.node_name = lambda: nodes[rank // 2].name
            LocalCopies.__init__ = lambda self, path, run, mesh: plain(self, nodes[rank // 2], run, mesh)
            Samples.__call__ = loading

        return patch

    def of(shard: int, node: int) -> Path:
        (path,) = nodes[node].glob(f"copies-*/step-*.shard-{shard:05d}-of-00004.safetensors")
        return path

    def alter(*files: Path) -> None:
        for path in files:
            data = bytearray(path.read_bytes())
            data[-100] ^= 1
            path.write_bytes(data)

    between = {
        "a node replaced": lambda: shutil.rmtree(nodes[1]),
        "both copies altered": lambda: alter(of(1, 0), of(1, 1)),
        "a copy altered": lambda: alter(of(0, 0)),
        "a copy cut": lambda: of(2, 1).write_bytes(b""),
        "nothing": lambda: None,
        "all gone": lambda: [shutil.rmtree(node) for node in nodes],
    }
    over = [
        f"checkpoints.local_path={runs.place / 'nodes'}",
        "training.zero_stage=1",
        f"training.tokens={54 * 12 * 32}",
    ]
    whole = runs.start("whole-copies", *over[1:], world=4)
    ends, taken = [runs.start("copies", *over, world=4, patch=until(3))], {}

    def restart(name: str, last: int | None, world: int, *more: str) -> None:
        ends.append(runs.start("copies", *over, *more, world=world, patch=until(last)))
        shown = re.search(r"\((\d) of (\d) shards from the nodes\)", ends[-1]["said"])
        taken[name] = [int(shown[1]), int(shown[2])] if shown else ends[-1]["said"]

    for number, (name, happens) in enumerate(some(list(between.items()), runs.few, 2)):
        happens()
        restart(name, 6 * number + 9, 4, *(["checkpoints.asynchronous=true"] if number % 2 else []))
    restart("as saved", None, 4)
    same = runs.differs("whole-copies", "copies")
    left = [str(path) for node in nodes for path in node.glob("*")]
    shutil.rmtree(runs.path("copies"))
    ends.append(runs.start("copies", *over, world=4, patch=until(3)))
    held = sorted([node.name, path.name.partition(".")[2]] for node in nodes for path in node.glob("copies-*/*"))
    restart("fewer ranks", None, 2)
    return {
        "codes": [whole["codes"], *[end["codes"] for end in ends]],
        "taken": taken,
        "held": held,
        "left": left,
        "differs": same,
        "said": "".join(end["said"] for end in ends)[-3000:],
    }


SCENARIOS = {
    f.__name__: f
    for f in (elastic, exact, rewind, skip, drift, hang, slow, phases, deferred, compiling, pinned, copies)
}


def main() -> None:
    few = "--few" in sys.argv
    place, *chosen = (argument for argument in sys.argv[1:] if argument != "--few")
    chosen = chosen or list(SCENARIOS)
    runs = Runs(Path(place), few)
    out = {}
    for name in chosen:
        began = time.monotonic()
        out[name] = SCENARIOS[name](runs)
        print(f"{name}: {time.monotonic() - began:.1f} s", file=sys.stderr, flush=True)
    print(json.dumps(out))


if __name__ == "__main__":
    main()
