"""Start a run from another run's state: `train CONFIG --from RUN[@STEP]`, for decay branches of one stable run and for
continued pretraining with another learning rate, batch, data or length.

The parent's checkpoint becomes the child's first one (linked, not copied, where the file system allows it), and the child resumes
from it as any run does. Tokens are counted from the start of the parent, so plan and learning rate cover both. The child's tables
begin after the parent's step, under its own name; parent.json records the parent.
"""

import os
import shutil
from pathlib import Path

import torch

from emergence_train import config as configs
from emergence_train import files
from emergence_train.checkpoint import format as checkpoints
from emergence_train.checkpoint import saver
from emergence_train.checkpoint.format import STATE, WEIGHTS, complete, step_name
from emergence_train.checkpoint.shards import Shards
from emergence_train.config import Training
from emergence_train.data import identity
from emergence_train.data.dataset import Dataset
from emergence_train.data.lineage import FILE, parent_of, same_samples
from emergence_train.errors import InputError
from emergence_train.faults.anomalies import SkippedBatches
from emergence_train.models.config import ModelConfig
from emergence_train.models.registry import build_model
from emergence_train.run_differences import flat
from emergence_train.training.checkpoint_plan import Plan


def parse(text: str) -> tuple[Path, int | None]:
    """RUN or RUN@STEP."""
    name, sign, step = text.rpartition("@")
    if not sign:
        return Path(text), None
    if not step.isdigit():
        raise InputError(f"--from {text}: write it as RUN or RUN@STEP, for example runs/stable@4000")
    return Path(name), int(step)


def skipped_batches(run: Path) -> SkippedBatches:
    """What the run leaves out: its own rewinds', and what its parent had left out before it began."""
    return SkippedBatches(run, (parent_of(run) or {}).get("skipped_samples", ()))


def begin(run: Path, model: ModelConfig, training: Training, plan: Plan, dataset: Dataset, parent: str | None) -> int:
    """Give `run` its parent's state, where it has none yet; returns the step that its own steps begin after (0: no parent).

    Raises:
        InputError: the run has another parent or none; the parent has no such state, another tokenizer, optimizer or shape; its
            tokens are not a whole number of the child's steps, or more than the child's.
    """
    known = parent_of(run)
    if known is not None:
        _same_parent(run, known, parent)
        if not complete(run / "checkpoints") and not plan.finished(run, lambda line: None):  # cut off, or all were lost
            again = checkpoints.newest(Path(known["path"]), known["step"])
            saver.commit(*_linked(again, run / "checkpoints", known["first_step"]))
        return known["first_step"]
    if parent is None:
        return 0
    path, step = parse(parent)
    if complete(run / "checkpoints") or (run / "positions").exists():
        raise InputError(f"{run}: has begun without a parent; choose another name, or omit --from to resume it")
    if path.resolve() == run.resolve():
        raise InputError(f"{run}: cannot begin from itself; choose another name")
    theirs, chosen = configs.load_run(path), checkpoints.newest(path, step)
    identity.check_tokenizer(path, dataset)
    _check_shapes(parent, checkpoints.read_state(chosen)["parameters"], theirs.model, model)
    kind, has_moments = theirs.training.optimizer.kind, Shards(chosen).kinds != [WEIGHTS]
    if has_moments and kind != training.optimizer.kind:
        raise InputError(
            f"--from {parent}: its state is of the optimizer {kind}, not {training.optimizer.kind}; give "
            f"training.optimizer.kind={kind}"
        )
    step = checkpoints.read_state(chosen)["step"]
    tokens = step * theirs.step_tokens
    if tokens % plan.step_tokens:
        raise InputError(
            f"--from {parent}: its {tokens:,} tokens are not a whole number of steps of {plan.step_tokens:,} tokens; choose "
            f"another training.batch or step"
        )
    first = tokens // plan.step_tokens
    if first >= plan.total_steps:
        raise InputError(
            f"--from {parent}: has trained {tokens:,} tokens, and training.tokens, which counts them in, is "
            f"{training.tokens:,}; raise it"
        )
    # Without them the child's samples would begin that many earlier, among those that the parent has trained on.
    skipped = skipped_batches(path).samples_before(step, theirs.training.batch)
    same = same_samples(path, theirs.seed, theirs.data, dataset)
    linked = _linked(chosen, run / "checkpoints", first)
    source = {"run": theirs.name, "path": str(path.resolve()), "step": step, "tokens": tokens, "first_step": first}
    source |= {"skipped_samples": skipped if same else []}
    before = parent_of(path)
    source |= {"same_samples": same and not theirs.imported and (before is None or before.get("same_samples", False))}
    files.write_json(run / FILE, source)  # before the state, which alone would be a run's that began without a parent
    saver.commit(*linked)
    return first


def _check_shapes(parent: str, shapes: dict, theirs: ModelConfig, model: ModelConfig) -> None:
    """Raise InputError where the model's parameters have not the parent's `shapes`."""
    with torch.device("meta"):
        own = {name: tuple(parameter.shape) for name, parameter in build_model(model).named_parameters()}
    if own == {name: tuple(shape) for name, shape in shapes.items()}:
        return
    before, now = (flat({"model": each.model_dump(mode="json")}) for each in (theirs, model))
    keys = [f"{key}={value}" for key, value in before.items() if value != now.get(key)]
    raise InputError(f"--from {parent}: its model has another shape; give {' '.join(keys)}")


def _same_parent(run: Path, known: dict, parent: str | None) -> None:
    """Raise InputError where `parent`, if it is given, is not the one that `run` began from."""
    path, step = (Path(known["path"]), None) if parent is None else parse(parent)
    if Path(known["path"]) != path.resolve() or step not in (None, known["step"]):
        raise InputError(f"{run}: began from {known['path']}@{known['step']}, not {parent}; choose another name")


def _linked(source: Path, folder: Path, step: int) -> tuple[Path, Path, int, list[dict], dict]:
    """Link the files of the verified checkpoint `source`, as what saver.commit makes the checkpoint `step` of `folder` from."""
    files.make_directory(folder)
    temporary = saver.begin(folder, step)
    state = checkpoints.read_state(source) | {"step": step, "loop": {}}
    entries = [entry for entry in checkpoints.entries(source) if entry["file"] != STATE]
    for entry in entries:
        _link(source / entry["file"], temporary / entry["file"])
    return temporary, folder / step_name(step), step, entries, state


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # across file systems, or on one without links
        try:
            shutil.copyfile(source, target)
        except OSError as error:
            checkpoints.refuse_removed(source.parent)
            raise files.disk_error(error, target) from None
        files.fsync_file(target)
