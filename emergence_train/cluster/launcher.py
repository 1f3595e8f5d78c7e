"""Detect the launcher of this process (torchrun, deepspeed, srun or none), its rank and the world size."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from emergence_train.cluster import slurm
from emergence_train.errors import InputError

# Variables of MPI's launchers, not used for the rank: srun --mpi=pmi2 sets PMI_SIZE too.
MPI = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE")


@dataclass(frozen=True)
class LaunchInfo:
    """Rank of this process, world size, and the launcher."""

    launcher: str  # for messages
    rank: int = 0
    world: int = 1
    local_rank: int = 0
    task: slurm.SlurmTask | None = None  # under srun
    note: str | None = None  # for the console

    @property
    def is_rank0(self) -> bool:
        return self.rank == 0


def find(environment: Mapping[str, str] | None = None, seen: slurm.Ancestry | None = None) -> LaunchInfo:
    """Detect how this process was started. RANK, WORLD_SIZE and LOCAL_RANK take precedence over Slurm's variables, since
    torchrun may itself be a task of srun. Raises InputError where several processes would each run as the only one."""
    environment = os.environ if environment is None else environment
    if "RANK" in environment or "WORLD_SIZE" in environment:
        launcher = "torchrun" if "TORCHELASTIC_RUN_ID" in environment else "RANK and WORLD_SIZE of the environment"
        rank, world, local_rank = (
            slurm.number(environment, name) if name in environment else default
            for name, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))
        )
        if rank >= world:
            raise InputError(f"RANK {rank} is not below WORLD_SIZE {world}; fix or unset them")
        return LaunchInfo(launcher, rank, world, local_rank)
    task = slurm.task(environment, seen)
    for name in MPI:
        if environment.get(name, "1") not in ("1", str(task.world if task else 1)):
            raise InputError(
                f"{name}={environment[name]}: mpirun is not supported; use srun, torchrun or "
                f"deepspeed instead, or set RANK, WORLD_SIZE and LOCAL_RANK for each process"
            )
    if task is None:
        return LaunchInfo("none: one process", note=slurm.alone_in_a_job(environment))
    if task.world == 1:
        return LaunchInfo("srun: one task")
    return LaunchInfo(f"srun: task {task.rank} of {task.world}", task.rank, task.world, task.local_rank, task)
