"""training.micro_batch auto: the largest micro-batch that is estimated to fit; and what to do where memory ran out.

By the model of memory alone (models.memory), so that the same start gives the same bits; a resumed run keeps its own.
"""

import json
from pathlib import Path
from typing import NamedTuple

import torch

from emergence_train.config import Training
from emergence_train.errors import InputError, RunError
from emergence_train.input_files import read_text
from emergence_train.models.config import ModelConfig
from emergence_train.models.memory import GIB
from emergence_train.parallel.mesh import Mesh
from emergence_train.parallel.ranks import all_gather_objects
from emergence_train.planning.fit import SHARE, divisors, needed_bytes

CPU_TOKENS = 2048


class Device(NamedTuple):
    """A GPU."""

    memory: int  # bytes
    capability: int  # compute capability, major


def smallest_device(mesh: Mesh) -> Device | None:
    """The GPU with the least memory among the ranks', or None on CPUs; collective."""
    own = None
    if mesh.device.type == "cuda":
        properties = torch.cuda.get_device_properties(mesh.device)
        own = Device(properties.total_memory, properties.major)
    return min((device for device in all_gather_objects(own) if device is not None), default=None)


def choose(
    training: Training, model: ModelConfig, sequence: int, ranks: int, device: Device | None, run: Path
) -> tuple[int, str]:
    """The micro-batch, and a line for the log.

    Args:
        ranks: that share the batch; of those that share sequences one counts. device: the smallest, None on CPUs. run: the run's
        directory, where an earlier start of it with as many ranks has left its micro-batch.
    """
    if training.batch % ranks:
        raise InputError(f"training.batch {training.batch} is not a multiple of {ranks} processes; change one of them")
    sizes, world = divisors(training.batch // ranks), ranks * training.sequence_parallel
    if device is None:
        needs, room = {size: size * sequence / training.sequence_parallel for size in sizes}, float(CPU_TOKENS)
    else:
        needs = _needs(training, model, sequence, world, sizes, device)
        room = SHARE * device.memory
    fits = [size for size in sizes if needs[size] <= room] or [1]
    before = _last_start(run, world)
    chosen = before if before in fits else fits[0]
    line = f"micro_batch auto: {chosen} of the rank's {sizes[0]} sequences"
    if device is not None:
        line += f", {needs[chosen] / GIB:.1f} of {device.memory / GIB:.1f} GiB by estimate"
        if needs[chosen] > room:
            line += "; it may not fit"
    return chosen, line + ("; as in its last start" if before == chosen else "")


def _needs(
    training: Training, model: ModelConfig, sequence: int, ranks: int, sizes: list[int], device: Device
) -> dict[int, float]:
    """Bytes by the size of the micro-batch; InputError for a kind of model that cannot tell."""
    try:
        return {size: needed_bytes(training, model, sequence, ranks, size, device.capability) for size in sizes}
    except NotImplementedError:
        raise InputError(
            f"training.micro_batch auto: the section of model.kind {model.kind} has no `activations`; set "
            f"training.micro_batch=1, or as many as fit"
        ) from None


def out_of_memory(training: Training, model: ModelConfig, mesh: Mesh) -> RunError:
    """The error of a rank whose GPU had too little memory, with what to change; a resumed run may change it."""
    micro_batch = training.micro_batch_size
    smaller = [size for size in divisors(training.batch // mesh.data.size) if size < micro_batch]
    if smaller:
        remedy = f"run again with training.micro_batch={smaller[0]}"
    elif less := model.checkpointings[model.checkpointings.index(training.activation_checkpointing) + 1 :]:
        remedy = f"run again with training.activation_checkpointing={less[0]}"
    else:
        remedy = "run again on more GPUs with training.zero_stage=3"
    return RunError(f"rank {mesh.world.rank}: the GPU's memory does not hold micro_batch {micro_batch}; {remedy}")


def _last_start(run: Path, ranks: int) -> int | None:
    """The micro-batch of the run's last start, if that had as many ranks."""
    try:
        settings = json.loads(read_text(run / "deepspeed.json"))
        micro_batch = settings["train_micro_batch_size_per_gpu"]
        rounds = settings["gradient_accumulation_steps"]
        return micro_batch if micro_batch * rounds * ranks == settings["train_batch_size"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None  # of no start, or of another version
