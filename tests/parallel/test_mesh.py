"""Every use of a rank or a number of processes names the group that it means."""

import re
from pathlib import Path

import pytest
import torch

from emergence_train.errors import InputError
from emergence_train.parallel.mesh import Group, Mesh, data_parallel, sequence_parallel
from emergence_train.parallel.ranks import all_reduce_sum

SOURCE = Path(__file__).parents[2] / "emergence_train"


def test_data_parallel_processes_are_in_every_group():
    mesh = data_parallel(1, 4, 1, torch.device("cpu"))
    assert mesh.world == mesh.data == Group(1, 4) and not mesh.is_rank0
    assert data_parallel(0, 4, 0, torch.device("cpu")).is_rank0


def test_a_group_of_one_needs_no_collective():
    """The world may be larger: the sum is over the group that the caller names."""
    mesh = Mesh(Group(1, 2), Group(0, 1), 1, torch.device("cpu"))
    assert all_reduce_sum(torch.tensor([3.0]), mesh.data).item() == 3.0


def test_ranks_come_from_the_mesh_only():
    """Ranks and sizes come from the mesh, except in the module that makes it, and in others' loops, which have none."""
    asks = re.compile(r"get_rank\(|get_world_size\(|mesh\.(rank|size|world_size)\b")
    calls = {
        str(path.relative_to(SOURCE)) for path in SOURCE.rglob("*.py") if asks.search(path.read_text(encoding="utf-8"))
    }
    others = {"recorder/api.py", "callbacks/trained_tokens.py"}
    assert calls == {"parallel/ranks.py", "training/main_gradients.py", *others}  # the second of DeepSpeed's own group


def test_neighbours_share_sequences(monkeypatch):
    """8 processes, 4 a sequence: every process is in one group of either kind, whose members are known to it alone."""
    joined = []

    def new_group(members, **options):
        assert options == {"use_local_synchronization": True}, (
            "else every process would take part in making every group"
        )
        joined.append(members)
        return members

    monkeypatch.setattr(torch.distributed, "new_group", new_group)
    meshes = [sequence_parallel(data_parallel(rank, 8, rank, torch.device("cpu")), 4) for rank in range(8)]
    assert [mesh.sequence.handle for mesh in meshes] == [[0, 1, 2, 3]] * 4 + [[4, 5, 6, 7]] * 4
    assert [(mesh.sequence.rank, mesh.data.rank) for mesh in meshes] == [(r % 4, r // 4) for r in range(8)]
    assert [mesh.data.handle for mesh in meshes] == [[r % 4, r % 4 + 4] for r in range(8)] and len(joined) == 16
    assert all(mesh.gradients == mesh.world for mesh in meshes)
    positions = [list(range(32))[mesh.own_positions(32)] for mesh in meshes]
    assert sum(positions[:4], []) == sum(positions[4:], []) == list(range(32))
    with pytest.raises(InputError, match="does not divide 8 processes"):
        sequence_parallel(data_parallel(0, 8, 0, torch.device("cpu")), 3)
