"""Seeded trials: a run with injected faults is restarted until it is finished, and compared with an uninterrupted one.

A trial passes when
- every start ends by itself within its time, with an exit code that fits the fault;
- a start resumes from the newest checkpoint that was complete when it began, so nothing durable is lost;
- the finished run's metrics and tables equal the uninterrupted run's exactly (within 1e-4 where its starts had other
  numbers of processes, stages and micro-batches), and its checkpoints are whole.

Half of the runs, by chance, have documents masked, a micro-batch of 1 and a task at each table. A link is cut between two
nodes that are network namespaces.

    python tests/faults/trials.py --count 1000 --out benchmarks/results/cpu/faults.json
"""

import argparse
import contextlib
import json
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [
    str(Path(__file__).parents[1]),
    str(Path(__file__).parents[2]),
    str(Path(__file__).parents[2] / "kernels"),
]

import yaml

from emergence_train.checkpoint import format as checkpoints
from faults.comparing import Wrong, compare, compare_closely
from faults.damage import damage
from faults.launch import Launched, launch  # first: it must not be imported after anything that computes
from faults.network import TwoNodes, may_make_nodes
from support import small_config

STEPS = 16
STARTS = 8  # starts after which a trial has failed
SILENT = 5.0  # seconds
JOIN = 20.0  # seconds for the rendezvous
BOUND = 40.0  # seconds for the others to end once a process is lost


def trial_config(data: Path, out: Path) -> dict:
    """16 steps, tables every fourth, state every second: as many saves as a short run can have."""
    tree = small_config(data, out)
    tree["model"] |= {"layers": 1}
    tree["training"] |= {"tokens": STEPS * 8 * 32, "micro_batch": 2}
    tree["checkpoints"] |= {"state_tokens": 2 * 8 * 32}
    tree["faults"] = {"silent_seconds": SILENT}
    return tree


MORE = {  # what half of the runs have beside: overrides of the configuration
    "training": {"document_mask": True, "micro_batch": 1},
    "tasks": [{"task": "copying", "items": 4}],
}


class Trial:
    """One run with random faults."""

    def __init__(self, kind: str, stage: int, world: int, seed: int, place: Path, data: Path, more: bool) -> None:
        self.kind, self.stage, self.world, self.place, self.more = kind, stage, world, place, more
        self.random = random.Random(f"{kind}/{stage}/{world}/{seed}")
        place.mkdir(parents=True, exist_ok=True)
        tree = trial_config(data, place / "runs")
        if more:
            tree["training"] |= MORE["training"]
            tree["tasks"] = MORE["tasks"]
        (place / "config.yaml").write_text(yaml.safe_dump(tree))
        self.run = place / "runs" / "run"
        self.nodes: TwoNodes | None = None
        self.slow = self.random.choice([0.0, 0.003, 0.01])
        self.asynchronous = kind != "whole" and self.random.random() < 0.5  # saves beside training
        self.events: list[str] = []
        self.again = False  # a fault after it had ended
        self.whole = place.parent / whole_name(stage, world, more)
        seconds = self.whole / "seconds"
        self.usual = float(seconds.read_text()) if seconds.is_file() else 1.0  # seconds of an uninterrupted run

    def start(self) -> Launched:
        arguments = [
            "train",
            str(self.place / "config.yaml"),
            f"training.zero_stage={self.stage}",
            f"checkpoints.asynchronous={self.asynchronous}",
        ]
        enter = self.nodes.enter if self.nodes else None
        return launch(arguments, self.world, self.place / "logs", slow_disk=self.slow, patch=enter)

    # ------------------------------------------------------------------------------------------------- the moments

    def until(self, launched: Launched, moment: str) -> None:
        """Wait for a moment of the run: some random time in it, or while it saves."""
        if moment == "any":
            end = time.monotonic() + self.random.uniform(0.02, 0.95) * self.usual
            while launched.poll() and time.monotonic() < end:
                time.sleep(0.005)
            return
        folder = self.run / "checkpoints"
        target = self.random.randint(1, 5)  # which of the saves
        seen: set[str] = set()
        while launched.poll():
            now = {p.name for p in folder.glob(".step-*.tmp")} if folder.is_dir() else set()
            seen |= now
            if now and len(seen) >= target:
                break
            time.sleep(0.0005)
        time.sleep(self.random.uniform(0, 0.03))

    # -------------------------------------------------------------------------------------------------- the faults

    def hurt(self, launched: Launched) -> None:
        """Inject this trial's fault into a start, and check how it ends."""
        getattr(self, f"do_{self.kind}")(launched)

    def do_kill_all(self, launched: Launched) -> None:
        self.until(launched, "any")
        launched.send(signal.SIGKILL)

    def do_kill_save(self, launched: Launched) -> None:
        self.until(launched, "save")
        launched.send(signal.SIGKILL)

    def do_kill_one(self, launched: Launched) -> None:
        self.until(launched, self.random.choice(["any", "save"]))
        self.lose_one(launched, signal.SIGKILL)

    def do_stop_one(self, launched: Launched) -> None:
        self.until(launched, "any")
        self.lose_one(launched, signal.SIGSTOP)

    def lose_one(self, launched: Launched, number: int) -> None:
        """The others must end in bounded time, and name the rank if they had begun to train."""
        victim = self.random.randrange(self.world)
        launched.poll()
        if launched.codes:
            return  # it was over
        training = re.search(r"step \d+/", launched.output())
        launched.send(number, [victim])
        began = time.monotonic()
        others = set(range(self.world)) - {victim}
        if not launched.wait(BOUND if training else BOUND + JOIN, others):
            raise Wrong(
                f"ranks {sorted(others - set(launched.codes))} did not end in {BOUND} s after rank {victim} was lost"
            )
        took = time.monotonic() - began
        launched.send(signal.SIGKILL, [victim])
        codes = {launched.codes[rank] for rank in others}
        if training and codes == {76}:
            output = launched.output()
            if victim and f"rank {victim} " not in output or not victim and "rank 0" not in output:
                raise Wrong(f"no line names rank {victim}: {output[-500:]}")
        elif training and codes - {76, 0, 1}:
            raise Wrong(f"the others ended with {codes}: {launched.output()[-500:]}")
        self.events.append(f"rank {victim} lost, others ended in {took:.1f} s with {sorted(codes)}")

    def do_slow_one(self, launched: Launched) -> None:
        """A process that stops for less than silent_seconds is waited for."""
        for _ in range(3):
            self.until(launched, "any")
            victim = [self.random.randrange(self.world)]
            launched.send(signal.SIGSTOP, victim)
            time.sleep(self.random.uniform(0.1, 0.4) * SILENT)
            launched.send(signal.SIGCONT, victim)

    def do_elastic(self, launched: Launched) -> None:
        """Killed or asked to stop; the next start has other processes, another stage."""
        self.until(launched, self.random.choice(["any", "save"]))
        launched.send(self.random.choice([signal.SIGKILL, signal.SIGTERM]))
        launched.wait(BOUND)
        self.world, self.stage = self.random.choice([1, 2, 4]), self.random.choice([1, 2, 3])
        self.events.append(f"then {self.world} processes, stage {self.stage}")

    def do_cut_link(self, launched: Launched) -> None:
        """The nodes lose each other: for a moment that is waited for, or until each has given the other up."""
        self.until(launched, "any")
        seconds = self.random.choice([0.3, 2.0]) * SILENT
        training = re.search(r"step \d+/", launched.output())
        self.nodes.cut(seconds)
        if not launched.wait(BOUND if training else BOUND + JOIN):
            raise Wrong(f"did not end in {BOUND} s after a cut of {seconds} s")
        codes = set(launched.codes.values())
        if codes - {0, 76}:
            raise Wrong(f"a cut of {seconds} s gave {codes}: {launched.output()[-500:]}")
        self.events.append(f"cut for {seconds} s: ended with {sorted(codes)}")

    def do_sigterm(self, launched: Launched) -> None:
        self.ask(launched, signal.SIGTERM, None)

    def do_sigusr1_one(self, launched: Launched) -> None:
        self.ask(launched, signal.SIGUSR1, [self.random.randrange(self.world)])

    def ask(self, launched: Launched, number: int, ranks: list[int] | None) -> None:
        """Every rank ends within seconds, with 75; before the handler is installed a signal ends it as any program."""
        self.until(launched, self.random.choice(["any", "any", "save"]))
        launched.poll()
        began = time.monotonic()
        listening = re.search(r"step \d+/", launched.output())
        launched.send(number, ranks)
        if not launched.wait(BOUND):
            raise Wrong(f"did not end in {BOUND} s after {number.name}")
        codes = set(launched.codes.values())
        allowed = {0, 75} if listening else {0, 75, 76, 1, -number}
        if codes - allowed:
            raise Wrong(f"{number.name} gave {codes}: {launched.output()[-500:]}")
        self.events.append(f"{number.name}: ended in {time.monotonic() - began:.1f} s with {sorted(codes)}")

    def do_damage(self, launched: Launched) -> None:
        """Killed, and the newest checkpoint damaged."""
        self.until(launched, self.random.choice(["any", "save"]))
        launched.send(signal.SIGKILL)
        launched.wait(10)
        there = checkpoints.complete(self.run / "checkpoints")
        if there:
            self.events.append(damage(there, self.random))
            self.again = True

    def do_disk_full(self, launched: Launched) -> None:
        """The file system is full during training, and freed later."""
        ballast = self.place / "runs" / "ballast"
        self.until(launched, "any")
        with open(ballast, "wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(b"x" * 4096)
        end = time.monotonic() + self.random.uniform(0.1, 3.0)
        while launched.poll() and time.monotonic() < end:
            time.sleep(0.01)
        ballast.unlink()
        self.events.append("the disk was full for a while")

    # -------------------------------------------------------------------------------------------------- the verdict

    def play(self) -> dict:
        """Inject faults into the first starts, none into later ones, and compare; raises Wrong."""
        began = time.monotonic()
        hurts, misses = self.random.choice([1, 1, 2, 3]), 0
        with contextlib.ExitStack() as around:
            if self.kind == "disk_full":
                around.enter_context(small_disk(self.place / "runs"))
            if self.kind == "cut_link":
                self.nodes = around.enter_context(TwoNodes(self.world))
            number = -1
            while number < STARTS:
                number += 1
                durable, self.again = self.newest_whole(), False
                launched = self.start()
                try:
                    if number < hurts:
                        self.hurt(launched)
                    if not launched.wait():
                        raise Wrong(f"start {number} hangs: {launched.output()[-500:]}")
                finally:
                    launched.end()
                self.check_start(launched, durable)
                if set(launched.codes.values()) == {0} and not self.again:
                    if number or misses == 3 or self.kind in UNBROKEN:
                        break
                    misses, number = misses + 1, -1  # it had ended before the fault
                    shutil.rmtree(self.run)
                    self.events.clear()
            else:
                raise Wrong(f"not done after {STARTS} starts: {launched.output()[-800:]}")
            (compare_closely if self.kind == "elastic" else compare)(self.whole / "runs" / "run", self.run)
            self.check_end("no other state is whole" in launched.output())
        hurt = number > 0 or self.kind in UNBROKEN
        took = round(time.monotonic() - began, 2)
        return {
            "starts": number + 1,
            "hurt": hurt,
            "asynchronous": self.asynchronous,
            "more": self.more,
            "seconds": took,
            "events": self.events,
        }

    def newest_whole(self) -> int:
        """The step of the newest checkpoint whose every byte is right."""
        for path in reversed(checkpoints.complete(self.run / "checkpoints")):
            if not checkpoints.problems(path):
                return int(path.name.removeprefix("step-"))
        return 0

    def check_start(self, launched: Launched, durable: int) -> None:
        output = launched.output()
        if "Traceback" in output or "a bug?" in output:
            raise Wrong(f"a traceback or an unknown error: {output[-1500:]}")
        if ": is missing " in output:
            raise Wrong(f"rows or tables were lost: {output[-800:]}")
        match = re.search(r"resuming from step (\d+)", output)
        if match and int(match[1]) != durable:
            raise Wrong(f"resumed after step {match[1]}; the newest whole checkpoint was of step {durable}")
        if durable and not match and f"{STEPS} steps; " in output:
            raise Wrong(f"started over; the newest whole checkpoint was of step {durable}")

    def check_end(self, all_damaged: bool) -> None:
        """All states are whole, unless the trial damaged the last one of a finished run and there was no other."""
        if all_damaged and self.kind == "damage":
            return
        folder = self.run / "checkpoints"
        for path in checkpoints.complete(folder):
            if checkpoints.problems(path):
                raise Wrong(f"a checkpoint of the finished run is damaged: {checkpoints.problems(path)}")
        if self.newest_whole() != STEPS:
            raise Wrong(f"the newest whole checkpoint is of step {self.newest_whole()}")


def whole_name(stage: int, world: int, more: bool) -> str:
    return f"whole-{stage}-{world}{'-more' if more else ''}"


def reference(stage: int, world: int, place: Path, data: Path, more: bool) -> None:
    """The uninterrupted run that trials of this stage and world are compared with."""
    whole = Trial("whole", stage, world, 0, place / whole_name(stage, world, more), data, more)
    if (whole.run / "positions" / f"{checkpoints.step_name(STEPS)}.parquet").is_file():
        return
    launched = whole.start()
    if not launched.wait() or set(launched.codes.values()) != {0}:
        launched.end()
        raise RuntimeError(f"the uninterrupted run failed: {launched.output()}")
    (whole.place / "seconds").write_text(str(time.monotonic() - launched.began))


@contextlib.contextmanager
def small_disk(place: Path):
    place.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(place)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(place)], check=False)


KINDS = (
    "kill_all",
    "kill_save",
    "kill_one",
    "stop_one",
    "slow_one",
    "sigterm",
    "sigusr1_one",
    "damage",
    "disk_full",
    "elastic",
    "cut_link",
)
UNBROKEN = ("slow_one", "disk_full", "cut_link")  # kinds that a run may survive in one start
ALONE = ("kill_all", "kill_save", "sigterm", "sigusr1_one", "damage", "disk_full", "elastic")  # for a single process


def plan(count: int, seed: int, worlds: list[int]) -> list[tuple[str, int, int, int]]:
    """`count` trials (kind, stage, world, seed): every kind at every stage and world before any comes again."""
    rng = random.Random(seed)
    kinds = [
        kind for kind in KINDS if (kind != "disk_full" or may_mount()) and (kind != "cut_link" or may_make_nodes())
    ]
    trials = []
    while len(trials) < count:
        turn = [
            (kind, stage, world)
            for world in worlds
            for kind in kinds
            for stage in (1, 2, 3)
            if world > 1 or kind in ALONE
        ]
        rng.shuffle(turn)
        trials += [(*chosen, seed + len(trials) + i) for i, chosen in enumerate(turn)]
    return trials[:count]


def may_mount() -> bool:
    """Whether a small file system can be mounted, to be filled: it needs a permission."""
    with tempfile.TemporaryDirectory() as place:
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], capture_output=True)
        if mounted.returncode:
            print("no permission to mount a small file system: the trials of a full disk are skipped")
            return False
        subprocess.run(["umount", place], check=True)
    return True


def play(trial: tuple[str, int, int, int], place: Path, data: Path) -> dict:
    """One trial's outcome: {"passed", "wrong", ...}."""
    kind, stage, world, seed = trial
    more = random.Random(seed).random() < 0.5
    reference(stage, world, place, data, more)
    folder = place / f"{kind}-{stage}-{world}-{seed}"
    shutil.rmtree(folder, ignore_errors=True)  # of an interrupted trial
    outcome = {"kind": kind, "stage": stage, "world": world, "seed": seed, "passed": True}
    try:
        outcome |= Trial(kind, stage, world, seed, folder, data, more).play()
        shutil.rmtree(folder)
    except Wrong as wrong:
        outcome |= {"passed": False, "wrong": str(wrong)}
    return outcome


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=220)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--worlds", type=int, nargs="+", default=[1, 2, 4], help="numbers of processes")
    parser.add_argument("--only", help="one kind of trial")
    parser.add_argument("--place", type=Path, default=Path("runs/fault-trials"))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--go-on", action="store_true", help="keep what passed of the file named by --out")
    arguments = parser.parse_args()
    data = prepared(arguments.place)
    every = plan(arguments.count * 20, arguments.seed, arguments.worlds)
    chosen = [trial for trial in every if arguments.only in (None, trial[0])]
    before = json.loads(arguments.out.read_text()) if arguments.go_on else {"outcomes": [], "seconds": 0}
    passed = {(o["kind"], o["stage"], o["world"], o["seed"]): o for o in before["outcomes"] if o["passed"]}
    outcomes, began = [], time.monotonic() - before["seconds"]
    for trial in chosen[: arguments.count]:
        outcomes.append(passed.get(trial) or play(trial, arguments.place, data))
        last = outcomes[-1]
        print(f"{len(outcomes):4d}  {'passed' if last['passed'] else 'FAILED'}  {last}", flush=True)
        if arguments.out:
            write(arguments.out, outcomes, arguments, time.monotonic() - began)
    failed = sum(not outcome["passed"] for outcome in outcomes)
    print(f"{len(outcomes)} trials, {failed} failed, {time.monotonic() - began:.0f} s")
    return 1 if failed else 0


def prepared(place: Path) -> Path:
    """Prepare the data set in another process, so that this one can fork."""
    data = place / "data"
    place.mkdir(parents=True, exist_ok=True)
    (place / "config.yaml").write_text(yaml.safe_dump(trial_config(data, place / "runs")))
    if not (data / "dataset.json").is_file():
        launched = launch(["prepare", str(place / "config.yaml")], 1, place / "logs")
        if not launched.wait() or launched.codes != {0: 0}:
            raise RuntimeError(launched.output())
    return data


def write(out: Path, outcomes: list[dict], arguments: argparse.Namespace, seconds: float) -> None:
    import torch

    from emergence_train import files
    from emergence_train.recorder.environment import environment

    by_kind = {kind: [o for o in outcomes if o["kind"] == kind] for kind in KINDS}
    summary = {
        "trials": len(outcomes),
        "passed": sum(outcome["passed"] for outcome in outcomes),
        "unhurt": sum(not outcome.get("hurt", True) for outcome in outcomes),  # ended before the fault
        "asynchronous": sum(outcome.get("asynchronous", False) for outcome in outcomes),  # saved during training
        "more": sum(outcome.get("more", False) for outcome in outcomes),  # documents masked, micro-batch 1, a task
        "seed": arguments.seed,
        "seconds": round(seconds),
        "command": f"python tests/faults/trials.py --count {arguments.count} --seed {arguments.seed}",
        "environment": environment(torch.device("cpu")),
        "by_kind": {k: {"trials": len(v), "passed": sum(o["passed"] for o in v)} for k, v in by_kind.items() if v},
        "outcomes": outcomes,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    files.write_bytes(out, (json.dumps(summary, indent=1) + "\n").encode())


if __name__ == "__main__":
    sys.exit(main())
