"""The processes of one training as named groups: whoever deals out, sums or agrees names the group it means.

    world   every process of the launch: what all must agree on (errors, signals to stop), whose files are whose
    data    processes that train on different samples: what samples, gradients and ZeRO's partitions are dealt out over

Today both hold every process. A further way to share the work is a further group here, and a look at who meant `data`.
"""

from dataclasses import dataclass, field

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Group:
    """This process in a group of processes."""

    rank: int  # from 0 to size - 1
    size: int
    handle: dist.ProcessGroup | None = None  # None: torch's default group, which holds all processes


@dataclass(frozen=True)
class Mesh:
    """This process in every group. `device` is where its tensors live."""

    world: Group
    data: Group
    local_rank: int  # on its machine
    device: torch.device
    launch_id: str = ""  # a name that these processes alone have, for what they leave in a store that may outlive them
    note: str | None = None  # of the launcher, for the screen
    secret: bytes = field(default=b"", repr=False)  # of this start: signs what its processes write to the store

    @property
    def is_rank0(self) -> bool:
        """Whether this process is the one that writes files and lines for all."""
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
    """The mesh of `size` processes that all train on different samples."""
    everyone = Group(rank, size)
    return Mesh(everyone, everyone, local_rank, device, launch_id, note, secret)
