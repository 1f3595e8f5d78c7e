"""`emergence-train evaluate`: tasks and validation splits on any saved checkpoint of a run."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from emergence_train import config as configs
from emergence_train import files
from emergence_train.checkpoint import format as checkpoints
from emergence_train.config import TaskConfig
from emergence_train.data import identity
from emergence_train.data.dataset import Dataset
from emergence_train.errors import InputError, OneLine
from emergence_train.evaluation.at_checkpoint import Evaluator, Scores, renamed
from emergence_train.evaluation.positions import validate
from emergence_train.evaluation.saved_model import load_model
from emergence_train.evaluation.suite import KNOWN, LM_EVAL
from emergence_train.faults.joined import joined
from emergence_train.models.config import ModelConfig
from emergence_train.models.imported import Imported
from emergence_train.parallel.mesh import Mesh
from emergence_train.parallel.ranks import broadcast_from_rank0, on_every_rank
from emergence_train.recorder import evaluations

BATCH = 8  # validation sequences in a forward pass


def evaluate(
    run: Path,
    step: int | None = None,
    tasks: list[str] | None = None,
    splits: list[str] | None = None,
    log: Callable[[str], None] = print,
    *,
    include_path: str | None = None,
    replace: bool = False,
) -> dict:
    """Score the run's newest checkpoint (or that of `step`) and add the rows to its evaluations.

    `tasks` as `chosen` has them; None: the run's own. `splits` of the returned losses; None: all. `replace`: scores of
    these tasks that are known to be on other items, at other checkpoints, are removed once there are new ones; else the
    tasks are refused.

    Returns {"run", "step", "tokens", "loss", "bits_per_byte", "log_pplu", "tasks": [rows]}.
    """
    config = configs.load_run(run)
    folder = checkpoints.newest(run, step)
    step = checkpoints.read_state(folder)["step"]
    with joined(run, config.training.threads, config.faults.silent_seconds) as mesh:
        broadcast_from_rank0(lambda: identity.check(run, Dataset(config.data, config.seed, verify=True)))
        dataset = on_every_rank(lambda: Dataset(config.data, config.seed, verify=False))
        on_every_rank(lambda: _check_splits(run, dataset, splits))
        evaluator = on_every_rank(lambda: Evaluator(chosen(config.tasks, tasks, include_path), dataset))
        path = run / "evaluations" / f"{checkpoints.step_name(step)}.parquet"
        if evaluator.suite:
            broadcast_from_rank0(lambda: files.check_writable(path.parent, evaluations.OTHER))
            if not replace:
                broadcast_from_rank0(lambda: evaluator.check_items(path.parent, _replace, but=path))
        measured = measure(config.model, config.training.precision, folder, evaluator, mesh, config.imported)
        losses, scores = measured.losses, measured.scores
        tokens = step * config.step_tokens
        also = evaluator.comparable(losses)
        shown = splits or list(losses)
        result = {
            "run": config.name,
            "step": step,
            "tokens": tokens,
            "loss": {name: losses[name] for name in shown},
            **{key: {name: value for name, value in part.items() if name in shown} for key, part in also.items()},
            "tasks": [{key: None if value != value else value for key, value in row.items()} for row in scores.rows],
        }
        if scores.rows:
            params = config.model.non_embedding_parameters()
            frame = evaluator.table(scores, run=config.name, params=params, step=step, tokens=tokens, losses=losses)
            try:
                warning = broadcast_from_rank0(lambda: evaluations.add(path, frame, dataset.fingerprint))
                if replace:
                    broadcast_from_rank0(lambda: evaluations.remove(path.parent, evaluator.digests.differs, path))
            except OneLine:
                log(format_result(result))  # they may have taken hours
                raise
            kept = broadcast_from_rank0(lambda: evaluator.unknown_items(path.parent)) if replace else []
            for note in [*evaluator.notes, *kept, *([warning] if warning else [])]:
                log(note)
            log(f"written: {path} ({scores.seconds:.1f} s)")
        return result


def _replace(task: TaskConfig) -> str:
    """What to do about scores of other items."""
    return f"{renamed(task)}give this command --replace, which removes its old scores, and score the other checkpoints again"


def _check_splits(run: Path, dataset: Dataset, splits: list[str] | None) -> None:
    known = dataset.index["validation"]["splits"]
    for split in splits or ():
        if split not in known:
            raise InputError(f"{run}: has no validation split {split!r} (it has {', '.join(known)})")


class Measured(NamedTuple):
    """sums: [4, T] of each split (count, loss, loss squared, correct); losses: their means, nats per token."""

    sums: dict[str, Tensor]
    losses: dict[str, float]
    scores: Scores


def measure(
    model: ModelConfig,
    precision: str,
    checkpoint: Path,
    evaluator: Evaluator,
    mesh: Mesh,
    imported: Imported | None = None,
) -> Measured:
    """Validate a verified checkpoint and score the tasks. Collective: all ranks call it."""
    loaded = on_every_rank(lambda: load_model(model, checkpoint, imported).to(mesh.device))
    if precision == "bf16" and mesh.device.type == "cuda":
        loaded = loaded.bfloat16()
    sums = validate(loaded, evaluator.dataset, mesh, BATCH)
    assert sums is not None, "nothing stops this validation"
    losses = {name: float(part[1].sum() / part[0].sum()) for name, part in sums.items() if part[0].sum() > 0}
    return Measured(sums, losses, evaluator.score(loaded, mesh))


def format_result(result: dict) -> str:
    """The table that the command line prints."""
    lines = [f"{result['run']}, step {result['step']}, {result['tokens']:,} tokens"]
    for split, loss in result["loss"].items():
        line = f"  {split:<16} {loss:.4f} nats/token  {result['bits_per_byte'].get(split, float('nan')):.4f} bits/byte"
        lines.append(line + (f"  log PPLu {result['log_pplu'][split]:+.4f}" if split in result["log_pplu"] else ""))
    for row in result["tasks"]:
        stderr = "" if row["stderr"] is None else f" +- {row['stderr']:.4f}"
        chance = "" if row["chance"] is None else f"  chance {row['chance']:.3g}"
        lines.append(f"  {row['task']}, {row['metric']}: {row['value']:.4f}{stderr}  {row['items']} items{chance}")
    return "\n".join(lines)


def chosen(tasks: list[TaskConfig], names: list[str] | None, include_path: str | None = None) -> list[TaskConfig]:
    """The run's tasks, or those in `names`: its own by name, items of a file as NAME=FILE, otherwise known ones.

    `include_path`: a directory of lm-eval's task files, beside its own, for tasks named lm-eval/NAME.
    """
    kinds = [task.task for task in tasks]  # a task's kind names it where it is the only one
    own = {task.task: task for task in tasks if not task.name and kinds.count(task.task) == 1}
    own |= {task.table_name: task for task in tasks}
    wanted = [own.get(name) or _named(name) for name in names] if names else tasks
    if include_path is None:
        return wanted
    if not Path(include_path).is_dir():
        raise InputError(f"--include-path {include_path}: no such directory; give one that holds lm-eval's task files")
    if not any(task.task.startswith(LM_EVAL) for task in wanted):
        raise InputError(f"--include-path {include_path}: is for tasks of lm-eval; name one, as --tasks {LM_EVAL}NAME")
    added = {"include_path": include_path}
    return [task.model_copy(update=added) if task.task.startswith(LM_EVAL) else task for task in wanted]


def _named(text: str) -> TaskConfig:
    """A task of the command line: NAME=FILE, or a name."""
    name, equals, file = text.partition("=")
    if not text:
        raise InputError(
            "--tasks: an empty name; give names or NAME=ITEMS.jsonl, or leave --tasks out for the run's own"
        )
    if not equals:
        return TaskConfig(task=name)
    if not name or not file or name.startswith(LM_EVAL):
        raise InputError(f"--tasks {text}: write it as NAME=ITEMS.jsonl")
    if name in KNOWN:
        raise InputError(
            f"--tasks {text}: {name} is a task that is generated, and its scores would be in one table; give the file another "
            f"name, as my-{name}={file}"
        )
    return TaskConfig(task=name, file=file)
