"""The processes of one training as named groups; a collective names the group it runs over.

    world   every process of the launch: errors, requests to stop, ownership of files
    data    data-parallel processes: samples, gradients and ZeRO's partitions are distributed over them

Today both contain every process. Another kind of parallelism adds a group here, and its callers choose between the groups.
"""

from dataclasses import dataclass, field

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Group:
    """This process in a group of processes."""

    rank: int  # from 0 to size - 1
    size: int
    handle: dist.ProcessGroup | None = None  # None: torch's default group, of all processes


@dataclass(frozen=True)
class Mesh:
    """This process in every group, and the device of its tensors."""

    world: Group
    data: Group
    local_rank: int  # on its machine
    device: torch.device
    launch_id: str = ""  # a name that these processes alone have, for what they leave in a store that may outlive them
    note: str | None = None  # of the launcher, for the screen
    secret: bytes = field(default=b"", repr=False)  # of this start: signs what its processes write to the store

    @property
    def is_rank0(self) -> bool:
        """Whether this process writes files and logs for all."""
        return self.world.rank == 0


def data_parallel(
    rank: int,
    size: int,
    local_rank: int,
    device: torch.device,
    launch_id: str = "",
    note: str | None = None,
    secret: bytes = b"",
) -> Mesh:
    """A mesh of `size` data-parallel processes."""
    everyone = Group(rank, size)
    return Mesh(everyone, everyone, local_rank, device, launch_id, note, secret)
