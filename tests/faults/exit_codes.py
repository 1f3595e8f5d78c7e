"""Every way in which a run ends, made to happen on a chosen rank; one process forks the runs and prints how each rank ended.

python tests/faults/exit_codes.py PLACE CASES.json

CASES.json holds [[name, world, rank], ...], with a fourth number the ranks of a node (rank 0's has one less); what is printed
is [{"codes": [...], "said": "...", "seconds": s}, ...].
"""

import dataclasses
import importlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path[:0] = [
    str(Path(__file__).parents[1]),
    str(Path(__file__).parents[2]),
    str(Path(__file__).parents[2] / "kernels"),
]

import yaml

from emergence_train.errors import InputError, RunError
from emergence_train.faults import relay
from emergence_train.parallel import node_check
from faults.launch import launch  # first: it must not be imported after anything that computes
from faults.trials import prepared, trial_config

Patch = Callable[[], None]  # called in the process that is to fail


def replaced(place: str, make: Callable) -> Patch:
    """A patch that puts `make(what was there)` at module:name or module:class.name."""

    def patch() -> None:
        owner, name = target(place)
        setattr(owner, name, make(getattr(owner, name)))

    patch.place = place
    return patch


def target(place: str) -> tuple[object, str]:
    """The owner and the name of what a patch replaces."""
    module, _, path = place.partition(":")
    owner = importlib.import_module(f"emergence_train.{module}")
    *classes, name = path.split(".")
    for part in classes:
        owner = getattr(owner, part)
    return owner, name


def raising(place: str, error: BaseException) -> Patch:
    def fails(*given, **named):
        raise error

    return replaced(place, lambda plain: fails)


def at_step(error: BaseException, *, after: int = 5) -> Patch:
    """Raised while samples are loaded, between collectives."""

    def make(load):
        def loading(self, step):
            if step == after:
                raise error
            return load(self, step)

        return loading

    return replaced("training.samples:Samples.__call__", make)


def signalled(number: int, *moment) -> Patch:
    def make(at):
        def hooked(self, operation, step=0):
            at(self, operation, step)
            if (operation, step) == moment:
                os.kill(os.getpid(), number)
                if not step:
                    time.sleep(20)  # the thread ends the process; the main thread would go on

        return hooked

    return replaced("faults.watchdog:Watchdog.at", make)


def another_gpu() -> Patch:
    def make(facts):
        return lambda *given: dataclasses.replace(facts(*given), gpu="made up")

    return replaced("parallel.node_check:rank_facts", make)


def log_line(place: Path) -> None:
    with open(place / "metrics.jsonl", "a") as file:
        file.write("no JSON\n")


def log_lost(change: Callable[[Path], object]) -> Patch:
    """The log is changed after the first checkpoint, as another program might."""

    def make(flush):
        def flushed(self):
            if any((self.directory / "checkpoints").glob("step-*")):
                change(self.path)
            return flush(self)

        return flushed

    return replaced("recorder.run_log:RunLog.flush", make)


WRONG, BROKEN, LOST = InputError("made to be wrong"), RunError("made to fail"), OSError(5, "Input/output error", "disk")
UNPICKLED = type("Local", (Exception,), {})("an error that pickle does not know")

# By name, what fails in the process; where the name ends in "again" an earlier start has saved a state. The codes are the test's.
CASES: dict[str, Patch] = {
    "configuration": raising("config:load", WRONG),
    "device": raising("parallel.ranks:_device", WRONG),
    "sizes": raising("training.run:resolve", WRONG),
    "directory": raising("training.run:claim", WRONG),
    "disk at the start": raising("training.run_directory:write_config", LOST),
    "data": raising("training.run:Dataset", WRONG),
    "identity": raising("data.identity:keep", WRONG),
    "tasks": raising("training.run:Evaluator", WRONG),
    "engine": raising("training.engine:deepspeed_config", MemoryError("no memory")),
    "session": raising("training.session:Stepper", RuntimeError("a bug")),
    "rewinds": raising("training.branch:skipped_batches", WRONG),
    "listing": raising("checkpoint.saver:complete", BROKEN),
    "environment": raising("training.recording:write_environment", LOST),
    "log": raising("training.recording:RunLog", PermissionError(13, "Permission denied", "metrics.jsonl")),
    "W&B": raising("training.tracker_views:Mirror", UNPICKLED),
    "verifying again": raising("checkpoint.format:problems", BROKEN),
    "loading again": raising("checkpoint.shards:Shards.read", WRONG),
    "log again": replaced("training.run:start", lambda plain: plain),
    "samples": at_step(LOST),
    "wrong input in the loop": at_step(WRONG),
    "interrupted": at_step(KeyboardInterrupt()),
    "rows": raising("training.run_rows:StepRows.on_step", LOST),
    "tables": raising("recorder.run_log:RunLog.positions", LOST),
    "forecast": raising("analysis.temporal:forecast_final", ZeroDivisionError("a bug")),
    "last rows": replaced("recorder.run_log:RunLog.close", lambda plain: lambda self: "the disk is full"),
    "log deleted": log_lost(lambda path: path.unlink(missing_ok=True)),
    "run moved": log_lost(lambda path: path.parent.rename(f"{path.parent}-moved") if path.exists() else None),
    "signal at the start": signalled(signal.SIGTERM, "building the engine", 0),
    "signal in a step": signalled(signal.SIGTERM, "forward", 5),
    "kill at the start": signalled(signal.SIGKILL, "building the engine", 0),
    "kill in a step": signalled(signal.SIGKILL, "forward", 5),
    "stopped in a step": signalled(signal.SIGSTOP, "forward", 5),
    "another GPU": another_gpu(),
    "node's disk": raising("parallel.node_check:rank_facts", OSError(5, "Input/output error", "disk")),
    "kill while nodes are checked": signalled(signal.SIGKILL, "checking the nodes", 0),
    "nothing": lambda: None,
}


def run(place: Path, number: int, name: str, world: int, rank: int | list[int], per_node: int | None = None) -> dict:
    hurt = rank if isinstance(rank, list) else [rank]

    def patch(own: int) -> None:
        if per_node:
            relay.node_name = node_check.node_name = lambda: f"node {(own + 1) // per_node}"
        if own in hurt:
            CASES[name]()

    arguments = ["train", str(place / "config.yaml"), f"name=run{number}"]
    if name.endswith("again"):
        launch(arguments, 1, place / "logs" / "first", patch=lambda _: signalled(signal.SIGTERM, "forward", 5)()).wait()
        if name == "log again":
            log_line(place / "runs" / f"run{number}")
    logs = place / "logs" / str(number)
    launched = launch(arguments, world, logs, patch=patch)
    ended = launched.wait(60)
    launched.end()
    return {
        "codes": [launched.codes[r] for r in range(world)] if ended else None,
        "said": launched.output(),
        "seconds": time.monotonic() - launched.began,
    }


def main() -> None:
    place, cases = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())
    place.mkdir(parents=True, exist_ok=True)
    tree = trial_config(prepared(place), place / "runs")
    tree["training"] |= {"batch": 12, "micro_batch": 1, "tokens": 8 * 12 * 32}
    tree["checkpoints"] |= {"every_tokens": 4 * 12 * 32, "state_tokens": None}
    tree["faults"] = {"silent_seconds": 5.0}
    (place / "config.yaml").write_text(yaml.safe_dump(tree))
    print(json.dumps([run(place, number, *case) for number, case in enumerate(cases)]))


if __name__ == "__main__":
    main()
