"""Files of offloaded optimizer state on NVMe: a folder of the run on each node, emptied before a start and removed at its end.

The files are no checkpoint: a start writes them anew from the run's own (checkpoint.swapped). What a killed start has left is
removed by the next one of the run.

    NVME_PATH/<run>-<digest of its directory>/zero_stage_3/optimizer/rank0/
"""

import contextlib
import functools
import hashlib
import shutil
from pathlib import Path

from emergence_train import files
from emergence_train.config import Training
from emergence_train.errors import InputError, RunError
from emergence_train.parallel.mesh import Mesh
from emergence_train.parallel.nodes import node_name
from emergence_train.parallel.ranks import all_gather_objects, on_every_rank

SPARE = 1 << 28  # bytes that stay free: files are padded
BYTES = 16  # of a parameter: weights, two moments and gradients in float32


def in_own_folder(training: Training, parameters: int, run: Path, mesh: Mesh, held: contextlib.ExitStack) -> Training:
    """The section with its nvme_path in a folder of the run's own; as it is where nothing is offloaded there. Collective. The
    files are removed when `held` is closed.

    Raises:
        InputError: DeepSpeed's asynchronous I/O cannot be compiled here. RunError: the disk is too small or not writable.
    """
    if training.zero.nvme_path is None:
        return training
    digest = hashlib.sha256(str(run.resolve()).encode()).hexdigest()[:12]
    folder = Path(training.zero.nvme_path) / f"{run.name}-{digest}"
    nodes = all_gather_objects(node_name())
    own = nodes[mesh.world.rank]
    needed = parameters * BYTES * nodes.count(own) // mesh.world.size
    cleans = nodes.index(own) == mesh.world.rank
    on_every_rank(functools.partial(_prepare, folder, needed, cleans))
    held.callback(_remove, folder, mesh.world.rank)
    zero = training.zero.model_copy(update={"nvme_path": str(folder)})
    return training.model_copy(update={"zero": zero})


def _prepare(folder: Path, needed: int, cleans: bool) -> None:
    from deepspeed.ops.op_builder import AsyncIOBuilder

    if not AsyncIOBuilder().is_compatible():
        raise InputError(
            "training.zero.offload_optimizer nvme: DeepSpeed's async_io needs libaio and its headers; install them "
            "(libaio-dev), or give cpu"
        )
    if not cleans:
        return
    with files.named_errors(folder):
        shutil.rmtree(folder, ignore_errors=True)
        files.make_directory(folder)
    free = shutil.disk_usage(folder).free
    if free < needed + SPARE:
        raise RunError(
            f"{folder}: optimizer state needs {(needed + SPARE) / 1e9:,.1f} GB of this disk, {free / 1e9:,.1f} GB are free; "
            f"make room, or set training.zero.nvme_path to another"
        )


def _remove(folder: Path, rank: int) -> None:
    """This rank's files, and the folders of them that are empty then."""
    own = folder / "zero_stage_3" / "optimizer" / f"rank{rank}"
    shutil.rmtree(own, ignore_errors=True)
    with contextlib.suppress(OSError):
        for empty in list(own.parents)[:3]:
            empty.rmdir()
