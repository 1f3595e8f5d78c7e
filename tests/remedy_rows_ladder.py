"""Ladders that are refused, and what the message says to do: rows of test_remedies."""

import shutil
from collections.abc import Callable

import yaml

from remedy_rows import At, Row

STABLE = {"stable": {"set": {"training.schedule.kind": "constant"}}}
DECAY = {"decay": {"after": "stable", "set": {"training.schedule.kind": "wsd"}}}


def status(at: At, *arguments: str, **keys: object) -> list[str]:
    """Of a ladder of one run, with other keys as given."""
    tree = {
        "name": "small",
        "config": str(at.config),
        "out": str(at.folder / "rungs"),
        "tokens": [1024],
        "sizes": {"a": {}},
    }
    path = at.write("ladder.yaml", yaml.safe_dump({k: v for k, v in (tree | keys).items() if v is not None}))
    return ["ladder", str(path), *(arguments or ["--status"])]


def ladder(says: str, wrong: dict, right: dict) -> Row:
    """Keys that are refused, and those that the message asks for."""
    return Row(says, lambda at: status(at, **wrong), lambda at: status(at, **right))


def after(says: str, prepare: Callable[[At], object], right: Callable[[At], list[str]]) -> Row:
    """A command that is refused after files were written."""

    def wrong(at: At) -> list[str]:
        prepare(at)
        return status(at)

    return Row(says, wrong, right)


def damaged_notes(at: At) -> None:
    at.write("rungs/ladder-logs/starts.json", "{")


def without_notes(at: At) -> list[str]:
    (at.folder / "rungs" / "ladder-logs" / "starts.json").unlink()
    return status(at)


def as_index(at: At, text: str) -> list[str]:
    at.write("rungs/ladder.json", text)
    return ["report", str(at.folder / "rungs"), "--out", str(at.folder / "page")]


def with_the_run(at: At) -> list[str]:
    """The index with a run that has checkpoints."""
    shutil.copytree(at.trained(), at.folder / "rungs" / "run", dirs_exist_ok=True)
    return as_index(at, '{"runs": ["run"]}')


LADDERS = [
    ladder("see {} for examples", {"sizes": {}}, {}),
    ladder("list each of tokens and seeds once", {"seeds": [1, 1]}, {"seeds": [1]}),
    ladder("give its path relative to the ladder's file", {"config": "none.yaml"}, {}),
    ladder("is the ladder's to give; leave it out, {} of the ladder says it", {"set": {"seed": 3}}, {"seeds": [3]}),
    ladder("as the ladder's own; rename sizes.{}", {"sizes": {"ladder-logs": {}}}, {"sizes": {"logs": {}}}),
    ladder("is too long; shorten sizes.{}", {"sizes": {"x" * 300: {}}}, {"sizes": {"x": {}}}),
    ladder(
        "differ in case alone, and some file systems take their runs for one; rename one",
        {"sizes": {"a": {}, "A": {}}},
        {"sizes": {"a": {}, "b": {}}},
    ),
    ladder(
        "rename sizes.{} or sizes.{}",
        {"tokens": [1024, 2048], "sizes": {"a": {}, "a-1.024k": {"tokens": [1024]}}},
        {"tokens": [1024, 2048], "sizes": {"a": {}, "b": {"tokens": [1024]}}},
    ),
    ladder(
        "has lowered the rate where decays branch from it; give it training.schedule.kind: constant under set",
        {"schedules": {"stable": {"set": {"training.schedule.kind": "cosine"}}} | DECAY, "tokens": [4096]},
        {"schedules": STABLE | DECAY, "tokens": [4096]},
    ),
    ladder("is no number of tokens; give one", {"tokens": [True]}, {"tokens": [1024]}),
    ladder("has no tokens; give them there or for the whole ladder", {"tokens": None}, {"tokens": [1024]}),
    ladder(
        "is no schedule that runs by itself; choose from {}",
        {"schedules": STABLE | {"decay": {"after": "stabel"}}},
        {"schedules": STABLE | DECAY, "tokens": [4096]},
    ),
    ladder(
        "is not one of {}",
        {"schedules": STABLE | DECAY, "tokens": [4096], "sizes": {"a": {"schedules": ["stabel"]}}},
        {"schedules": STABLE | DECAY, "tokens": [4096], "sizes": {"a": {"schedules": ["stable"]}}},
    ),
    ladder(
        "list that as well",
        {"schedules": STABLE | DECAY, "tokens": [4096], "sizes": {"a": {"schedules": ["decay"]}}},
        {"schedules": STABLE | DECAY, "tokens": [4096], "sizes": {"a": {"schedules": ["stable", "decay"]}}},
    ),
    ladder(
        "lower checkpoints.every_tokens, or raise the budget",
        {"schedules": STABLE | DECAY},
        {"schedules": STABLE | DECAY, "set": {"checkpoints.every_tokens": 256}},
    ),
    ladder(
        "give all runs one, without keys of the configuration in it",
        {"out": "rungs-${seed}", "seeds": [1, 2]},
        {"seeds": [1, 2]},
    ),
    after("starts.json: cannot be read ({}); delete it", damaged_notes, without_notes),
    Row("{}: cannot be read ({}); run the ladder again", lambda at: as_index(at, "{"), with_the_run),
    Row("has a checkpoint yet; wait for one", lambda at: as_index(at, '{"runs": ["run"]}'), with_the_run),
]
LADDER_EXEMPT = {  # of a message: why it has no row
    "holds a result and its page and no runs; open {}, or leave it out": "ladder/test_collect.py",
    "has named its runs meanwhile; run the same": "tried where its situation is made: ladder/test_collect.py",
    "no run has begun; run `emergence-train ladder {}` first": "tried where its situation is made: ladder/test_collect.py",
    "without {}: restore that, or move the run away": "tried where its situation is made: ladder/test_local.py",
    "give the ladder another out, or its file the former value": "tried where its situation is made: ladder/test_local.py",
    "in a directory mean something else to Slurm; choose another out": "tried where its situation is made: ladder/test_submit.py",
    "without {}: restore that, or move {} away": "tried where its situation is made: ladder/test_local.py",
    "runs failed, {} {}; fix that": "tried where its situation is made: ladder/test_local.py",
    "of Slurm is ending; run the same command again": "tried where its situation is made: ladder/test_submit.py",
    "stopped; run the same command to submit": "tried where its situation is made: ladder/test_submit.py",
    "see squeue --me before you run the same command again": "a command of Slurm's: ladder/test_submit.py",
    "not submitted, run the same command again": "tried where its situation is made: ladder/test_submit.py",
    "prepare ended with exit code {}; run the same command": "tried where its situation is made: ladder/test_local_stops.py",
    "of Slurm; give --slurm, or cancel it before": "tried where its situation is made: ladder/test_submit.py",
    "is gone; run ladder --slurm again": "tried where its situation is made: ladder/test_ladder_progress.py",
    "stopped, every run has saved; run the same command": "tried where its situation is made: ladder/test_local_stops.py",
    "give --slurm, or lower gpus": "tried where its situation is made: ladder/test_local.py",
    "slurm.script: no file {}; give one": "tried where its situation is made: ladder/test_submit.py",
    "run the same command again when Slurm answers": "tried where its situation is made: ladder/test_submit.py",
    "run on a machine that submits jobs, or leave out --slurm": "a machine without Slurm: ladder/test_submit.py",
}
