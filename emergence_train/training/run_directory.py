"""A run's directory: claimed for its configuration, and what later starts change in the one that it keeps."""

import contextlib
import shlex
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from emergence_train import files
from emergence_train.checkpoint.format import complete, step_of
from emergence_train.config import Config, TaskConfig, load
from emergence_train.data_config import Data
from emergence_train.errors import InputError
from emergence_train.evaluation import at_checkpoint
from emergence_train.evaluation.at_checkpoint import Evaluator
from emergence_train.evaluation.suite import LM_EVAL
from emergence_train.faults.flight_recorder import STACKS
from emergence_train.input_files import read_text, regular
from emergence_train.run_differences import NOTHING, VOLATILE, flat, within
from emergence_train.training.checkpoint_plan import Plan

# What a run has that has begun, and what one has besides that was refused before: it may start with another configuration.
BEGUN = ("metrics.jsonl", "checkpoints", "positions", "parent.json")
REFUSED = ("data.json", "tokenizer.json")
BUSY = "another process is training this run; wait for it or choose another name"


def begun(run: Path) -> bool:
    """Whether anything was trained there: until then its configuration binds no one."""
    return any((run / name).exists() for name in BEGUN)


def claim(run: Path, config: Config, held: contextlib.ExitStack) -> str | None:
    """Create the run directory, or check that it belongs to this configuration, and lock it until `held` is closed; return a
    note for the log, or None. Raises InputError where it is another run's, in use or not writable."""
    # A finished run may be another user's
    note = held.enter_context(files.lock(run, busy=BUSY, other="out", wait=0.2, writes=False))
    path = run / "config.yaml"
    for rest in [*run.glob(".*.tmp"), *run.glob("*/.*.tmp")]:  # of interrupted writes
        if rest.is_file():
            with contextlib.suppress(OSError):  # another user's, in a directory of theirs
                rest.unlink()
    if path.is_file() and not begun(run):
        for name in REFUSED:  # of a start that was refused before it began: it binds no one, nor does its configuration
            (run / name).unlink(missing_ok=True)
        write_config(run, config)
        return note
    if not path.is_file():
        # A killed start leaves hidden files, and stacks where rank 0 was lost before it wrote anything.
        if any(not entry.name.startswith(".") and entry.name != STACKS for entry in run.iterdir()):
            raise InputError(f"{run}: holds files but no config.yaml; choose another name or empty it")
        write_config(run, config)
        return note
    try:
        tree = yaml.safe_load(read_text(path))
    except (OSError, yaml.YAMLError) as error:
        raise InputError(f"{path}: cannot be read ({' '.join(str(error).split())}); choose another name") from None
    if not isinstance(tree, dict):
        raise InputError(f"{path}: is empty or no configuration; restore it, or choose another name")
    tree = _with_defaults(tree)
    before = flat(tree)
    now, extended = flat(config.model_dump(mode="json")), None
    for key in sorted(before.keys() | now.keys()):
        if not within(key, VOLATILE) and before.get(key) != now.get(key):
            if key == "training.tokens" and (extended := _extended(run, tree, config)):
                continue
            if key == "name":
                raise InputError(
                    f"{run}: is the run {before.get(key)}, renamed; rename it back, or choose another name"
                )
            raise InputError(
                f"{run}: is a run with {key} = {before.get(key, NOTHING)}, not {now.get(key, NOTHING)}; choose another name "
                f"or restore the configuration"
            )
    if extended:
        write_config(run, config)
    return extended or note


def _extended(run: Path, before: Any, now: Config) -> str | None:
    """A note for the log where a run's plan is extended, else None.

    Raises InputError where the longer plan would have given the steps so far another learning rate.
    """
    old = Config.model_validate(before)
    states = complete(run / "checkpoints")
    if not states or now.training.tokens <= old.training.tokens:
        return None
    done = step_of(states[-1]) * old.training.batch * old.data.sequence
    schedule, decay = old.training.schedule, old.training.schedule.decay_tokens
    total = Plan(old.training, old.checkpoints, old.data.sequence).total_tokens
    steady = schedule.kind == "constant" or (schedule.kind == "wsd" and done <= total - decay)
    if not steady:
        raise InputError(
            f"{run}: is a run with training.tokens = {old.training.tokens}, not {now.training.tokens}, and its rate has been "
            f"falling towards that end; begin another from a state before that (train CONFIG name=... --from {run}@STEP)"
        )
    return f"extended from {old.training.tokens:,} to {now.training.tokens:,} tokens"


def keep_data_path(run: Path, data: Data) -> None:
    """Keep in config.yaml where the run's data are, if they were moved: what reads the run looks there."""
    before = load(run / "config.yaml")
    path = files.from_run(run, before.data.path, "dataset.json") or ""
    if not (Path(path) / "dataset.json").is_file():
        moved = before.data.model_copy(update={"path": data.path})
        write_config(run, before.model_copy(update={"data": moved}))


def other_items(run: Path, evaluator: Evaluator) -> list[str]:
    """Warnings where tasks of lm-eval have scores of other items: their data are the hub's, and end no run that resumes.

    Raises InputError where others do.
    """
    warnings = []
    for task, table in evaluator.other_items(run / "evaluations").values():
        says = at_checkpoint.other_items(task, table)
        if not task.task.startswith(LM_EVAL):
            raise InputError(f"{says}; {_remedy(run, task)}")
        warnings.append(f"{says}; the analyses part its scores by task_digest")
    return warnings


def _remedy(run: Path, task: TaskConfig) -> str:
    """`evaluate` scores the tasks as the run's config.yaml has them, so it helps only where what they ask has changed."""
    if task not in load(run / "config.yaml").tasks:
        return "restore its items and settings, or give it another `name`"
    return (
        f"restore the items, give the task another `name`, or remove its old scores with "
        f"`emergence-train evaluate {run} --tasks {shlex.quote(task.table_name)} --replace`"
    )


def other_tasks(run: Path, tasks: list[TaskConfig], others: Callable[[], Iterable[str]]) -> str:
    """Keep the tasks of a finished run's later start in its config.yaml; returns what is left to do about them, or "". `others`:
    the tasks that have scores of other items."""
    before = load(run / "config.yaml")
    if before.tasks == tasks:
        return ""
    known, scored = {task.table_name for task in before.tasks}, _scored(run)
    changed = [task.table_name for task in tasks if task not in before.tasks]
    left = [
        name
        for name in changed  # a tag of lm-eval has rows NAME/TASK
        if name in known or not any(f"{row}/".startswith(f"{name}/") for row in scored)
    ]
    write_config(run, before.model_copy(update={"tasks": tasks}))
    if not left:
        return ""
    says = f", but tasks {', '.join(left)} are new or changed: score them with `emergence-train evaluate {run}"
    if names := list(others()):
        return f"{says} --replace`, which removes the scores of {', '.join(names)} on other items"
    return f"{says}`"


def _scored(run: Path) -> set[str]:
    """Tasks in the last table of evaluations."""
    import pyarrow.parquet as pq

    files_of_run = sorted((run / "evaluations").glob("step-*.parquet"))
    return (
        set(pq.read_table(regular(files_of_run[-1]), columns=["task"])["task"].to_pylist()) if files_of_run else set()
    )


def _with_defaults(tree: Any) -> Any:
    """A stored configuration with the defaults of newer keys; unchanged if it is not a configuration."""
    try:
        return Config.model_validate(tree).model_dump(mode="json")
    except ValidationError:
        return tree


def write_config(directory: Path, config: Config) -> None:
    files.write_bytes(directory / "config.yaml", config.to_yaml().encode())
