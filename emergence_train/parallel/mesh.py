"""The processes of one training as named groups; a collective names the group it runs over.

    world       every process of the launch: errors, requests to stop, ownership of files
    sequence    neighbouring processes that share each sequence: the exchange in attention
    data        processes with the same part of their sequences: samples are distributed over them
    gradients   every data-parallel and sequence-parallel process: gradients are averaged, ZeRO's partitions, loss sums and the
                batches of whole sequences (tasks) distributed over them

With one process a sequence, `data` contains every process. `gradients` is the world so far. Another kind of parallelism adds a
group here, and its callers choose between the groups.
"""

from dataclasses import dataclass, field, replace

import torch
import torch.distributed as dist

from emergence_train.errors import InputError


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
    sequence: Group = Group(0, 1)

    @property
    def is_rank0(self) -> bool:
        """Whether this process writes files and logs for all."""
        return self.world.rank == 0

    @property
    def gradients(self) -> Group:
        """The processes over which gradients are averaged and ZeRO's partitions distributed."""
        return self.world

    def own_positions(self, sequence: int) -> slice:
        """This process's part of the positions of a sequence."""
        part = sequence // self.sequence.size
        return slice(self.sequence.rank * part, (self.sequence.rank + 1) * part)


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


def sequence_parallel(mesh: Mesh, ranks: int) -> Mesh:
    """The mesh with `ranks` neighbours of the launch sharing each sequence. Collective; each process joins its own groups alone.

    Raises:
        InputError: they do not divide the processes.
    """
    rank, size = mesh.world.rank, mesh.world.size
    if size % ranks:
        error = InputError(
            f"training.sequence_parallel {ranks} does not divide {size} processes; change it, or start a multiple of {ranks}"
        )
        error.already_reported = not mesh.is_rank0
        raise error
    if ranks == 1:
        return mesh
    number, place = divmod(rank, ranks)
    together = _group(range(number * ranks, (number + 1) * ranks), place)
    return replace(mesh, sequence=together, data=_group(range(place, size, ranks), number))


def _group(members: range, rank: int) -> Group:
    """This process's group; not of all processes, which torch's default group is."""
    return Group(rank, len(members), dist.new_group(list(members), use_local_synchronization=True))
