"""Start-up of a run: complete the configuration, and the first lines of log and console."""

import hashlib
from pathlib import Path

from emergence_train.config import Config, Training, Zero
from emergence_train.data.dataset import Dataset, load_index
from emergence_train.errors import InputError
from emergence_train.models.config import ModelConfig
from emergence_train.parallel.mesh import Mesh
from emergence_train.parallel.ranks import all_gather_objects
from emergence_train.recorder.environment import device_name
from emergence_train.run_differences import NOTHING, flat
from emergence_train.training import auto_micro_batch
from emergence_train.training.auto_micro_batch import Device
from emergence_train.training.checkpoint_plan import Plan


def agree_on(config: Config, mesh: Mesh) -> None:
    """Raise InputError where the processes of one start have different configurations: the launcher meant several runs, or
    their machines read different files."""
    values = flat(config.model_dump(mode="json"))
    digests = all_gather_objects(hashlib.sha256(repr(sorted(values.items())).encode()).hexdigest())
    if len(set(digests)) == 1:
        return
    every = all_gather_objects(values)
    rank = next(rank for rank, digest in enumerate(digests) if digest != digests[0])
    ours, theirs = every[0], every[rank]
    key = next(key for key in sorted(ours.keys() | theirs.keys()) if ours.get(key) != theirs.get(key))
    error = InputError(
        f"rank {rank} was given {key} = {theirs.get(key, NOTHING)} and rank 0 {ours.get(key, NOTHING)}: the processes of one "
        f"start train one run; start each run by itself (under Slurm a job array, or srun --ntasks 1)"
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
