"""Start-up of a run: complete the configuration, claim the run directory, print the first line."""

import contextlib
import hashlib
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from emergence_train import files
from emergence_train.checkpoint.format import complete, step_of
from emergence_train.config import Config, TaskConfig, Training, Zero, load
from emergence_train.data.dataset import Dataset, load_index
from emergence_train.data_config import Data
from emergence_train.errors import InputError
from emergence_train.faults.flight_recorder import STACKS
from emergence_train.input_files import read_text, regular
from emergence_train.models.config import ModelConfig
from emergence_train.parallel.mesh import Mesh
from emergence_train.parallel.ranks import all_gather_objects
from emergence_train.recorder.environment import device_name
from emergence_train.run_differences import VOLATILE, within
from emergence_train.training import auto_micro_batch
from emergence_train.training.auto_micro_batch import Device
from emergence_train.training.checkpoint_plan import Plan

# What a run has that has begun, and what one has besides that was refused before: it may start with another configuration.
BEGUN = ("metrics.jsonl", "checkpoints", "positions", "parent.json")
REFUSED = ("data.json", "tokenizer.json")
BUSY = "another process is training this run; wait for it or choose another name"


def agree_on(config: Config, mesh: Mesh) -> None:
    """Raise InputError where the processes of one start have different configurations: the launcher meant several runs, or
    their machines read different files."""
    flat = _flat(config.model_dump(mode="json"))
    digests = all_gather_objects(hashlib.sha256(repr(sorted(flat.items())).encode()).hexdigest())
    if len(set(digests)) == 1:
        return
    every = all_gather_objects(flat)
    rank = next(rank for rank, digest in enumerate(digests) if digest != digests[0])
    ours, theirs = every[0], every[rank]
    key = next(key for key in sorted(ours.keys() | theirs.keys()) if ours.get(key) != theirs.get(key))
    error = InputError(
        f"rank {rank} was given {key} = {theirs.get(key)} and rank 0 {ours.get(key)}: the processes of one start "
        f"train one run; start each run by itself (under Slurm a job array, or srun --ntasks 1)"
    )
    error.already_reported = not mesh.is_rank0
    raise error


def resolve(config: Config, mesh: Mesh, device: Device | None = None) -> tuple[Config, str | None]:
    """The configuration completed by the data set, the world size and the device, and a line for the log where micro_batch is
    auto."""
    training = config.training
    if config.imported:
        raise InputError(
            f"{config.name}: is an imported run, which is not trained on; begin another from it: train CONFIG --from "
            f"{config.run_directory}"
        )
    kind: str = config.model.kind
    if kind == "hf":
        raise InputError("model.kind hf is that of imported runs, and is not trained; set model.kind to decoder")
    if training.micro_batch != "auto" and training.batch % (training.micro_batch * mesh.data.size):
        ranks = mesh.sequence.size
        shares = f"{mesh.data.size} processes" if ranks == 1 else f"{mesh.data.size} groups of {ranks} processes"
        raise InputError(
            f"training.batch {training.batch} is not a multiple of micro_batch {training.micro_batch} x {shares}; change one "
            f"of them"
        )
    _check_options(training.zero, mesh)
    vocabulary = load_index(Path(config.data.path))["tokenizer"]["vocabulary"]
    model, note = config.model.with_vocabulary(vocabulary, config.data.path), None
    if training.micro_batch == "auto":
        sequence, run = config.data.sequence, config.run_directory
        micro_batch, note = auto_micro_batch.choose(training, model, sequence, mesh.data.size, device, run)
        training = training.model_copy(update={"micro_batch": micro_batch})
    return config.model_copy(update={"model": model, "training": training}), note


def _check_options(options: Zero, mesh: Mesh) -> None:
    """Raise InputError for options of ZeRO that these processes or their devices do not have."""
    if options.quantized_weights and mesh.device.type != "cuda":
        raise InputError("training.zero.quantized_weights: DeepSpeed quantises on GPUs only; set it to false")
    if mesh.world.size % options.hpz_partition_size:
        raise InputError(
            f"training.zero.hpz_partition_size {options.hpz_partition_size} does not divide {mesh.world.size} processes; give "
            f"the number of a node"
        )


def claim(run: Path, config: Config, held: contextlib.ExitStack) -> str | None:
    """Create the run directory, or check that it belongs to this configuration, and lock it until `held` is closed; return a
    note for the log, or None. Raises InputError where it is another run's, in use or not writable."""
    path, note = run / "config.yaml", held.enter_context(files.lock(run, busy=BUSY, other="out"))
    for rest in [*run.glob(".*.tmp"), *run.glob("*/.*.tmp")]:  # of interrupted writes
        if rest.is_file():
            rest.unlink()
    if path.is_file() and not any((run / name).exists() for name in BEGUN):
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
    before = _flat(tree)
    now, extended = _flat(config.model_dump(mode="json")), None
    for key in sorted(before.keys() | now.keys()):
        if not within(key, VOLATILE) and before.get(key) != now.get(key):
            if key == "training.tokens" and (extended := _extended(run, tree, config)):
                continue
            raise InputError(
                f"{run}: is a run with {key} = {before.get(key)}, not {now.get(key)}; choose another name "
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


def other_tasks(run: Path, tasks: list[TaskConfig]) -> str:
    """Keep the tasks of a finished run's later start in its config.yaml; returns what is left to do about them, or ""."""
    before = load(run / "config.yaml")
    if before.tasks == tasks:
        return ""
    known, scored = {task.table_name for task in before.tasks}, _scored(run)
    names = [(task.table_name, task) for task in tasks if task not in before.tasks]
    left = [name for name, _ in names if name in known or name not in scored]
    write_config(run, before.model_copy(update={"tasks": tasks}))
    if not left:
        return ""
    return f", but tasks {', '.join(left)} are new or changed: score them with `emergence-train evaluate {run}`"


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


def run_header(
    name: str, model: ModelConfig, training: Training, plan: Plan, dataset: Dataset, parent: dict | None
) -> dict:
    """The first line of metrics.jsonl, which identifies the run; `parent` is the run whose state it
    began from."""
    return {
        "run": name,
        "params": model.non_embedding_parameters(),
        "parameters": model.parameters(),
        "vocabulary": dataset.fingerprint,
        "sequence": dataset.sequence,
        "batch": training.batch,
        "flops_per_token": model.flops_per_token(dataset.sequence),
        "total_tokens": plan.total_tokens,
        **({"parent": {key: parent[key] for key in ("run", "step", "tokens")}} if parent else {}),
    }


def _flat(tree: dict, prefix: str = "") -> dict:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def startup_line(training: Training, plan: Plan, dataset: Dataset, mesh: Mesh, header: dict, first_step: int) -> str:
    epochs = dataset.sampler.epochs(plan.total_steps * training.batch)
    shown = ", ".join(f"{domain} {epoch:.2g}" for domain, epoch in zip(dataset.domains, epochs))
    split = f", {mesh.sequence.size} a sequence" if mesh.sequence.size > 1 else ""
    where = f"{mesh.world.size} x {device_name(mesh.device)}{split}, ZeRO {training.zero_stage}, {training.precision}"
    begin = f"resuming from step {first_step}" if first_step else f"{plan.total_steps} steps"
    return (
        f"{header['run']}: {header['params']:,} parameters + {header['parameters'] - header['params']:,} embedding, "
        f"{plan.total_tokens:,} tokens, {begin}; {where}; epochs: {shown}"
    )
