"""Which rank keeps whose shard, and what is kept; how ranks fetch them after a restart is in tests/faults/test_scenarios.py."""

import torch

from emergence_train.checkpoint import local_copies
from emergence_train.checkpoint.format import shard_name, step_name
from emergence_train.checkpoint.local_copies import LocalCopies, replicas_of
from emergence_train.parallel.mesh import data_parallel


def test_each_shard_is_kept_on_two_nodes():
    assert replicas_of(["a"] * 3) == [None] * 3
    assert replicas_of(["a", "a", "b", "b"]) == [2, 3, 0, 1]
    assert replicas_of(["a", "b", "c"] * 2) == [2, 0, 1, 5, 3, 4]  # ranks dealt out in turn
    nodes = ["a", "a", "a", "b", "c", "c"]
    kept = replicas_of(nodes)  # a node of fewer ranks keeps fewer
    assert kept == [4, 5, None, 0, 3, None]
    assert all(other is None or nodes[other] != nodes[rank] for rank, other in enumerate(kept))


def of_rank(monkeypatch, tmp_path, rank: int, nodes: list[str]) -> LocalCopies:
    monkeypatch.setattr(local_copies, "all_gather_objects", lambda value: nodes)
    mesh = data_parallel(rank, len(nodes), 0, torch.device("cpu"))
    return LocalCopies(tmp_path / nodes[rank], tmp_path / "runs" / "mine", mesh)


def checkpoint(tmp_path, step: int, ranks: int):
    path = tmp_path / "runs" / "mine" / "checkpoints" / step_name(step)
    path.mkdir(parents=True)
    for rank in range(ranks):
        (path / shard_name(rank, ranks)).write_bytes(bytes([step, rank]) * 10)
    return path


def test_the_newest_takes_the_place_of_the_older(monkeypatch, tmp_path):
    """Also of what other ranks, or another number of them, left on the node."""
    for rank in range(3):
        assert of_rank(monkeypatch, tmp_path, rank, ["a", "a", "a"]).keep(checkpoint(tmp_path, rank + 1, 3)) is None
    first, second = (of_rank(monkeypatch, tmp_path, rank, ["a", "b"]) for rank in (0, 1))
    path = checkpoint(tmp_path, 8, 2)
    (first.folder / f"{step_name(4)}.{shard_name(1, 2)}.tmp").write_bytes(b"cut")
    assert first.keep(path) is None and second.keep(path) is None
    for copies in (first, second):
        held = {file.name: file.read_bytes() for file in copies.folder.iterdir()}
        assert held == {f"{path.name}.{shard_name(rank, 2)}": bytes([8, rank]) * 10 for rank in (0, 1)}
    assert first.folder.stat().st_mode & 0o777 == 0o700
    first.forget()
    assert not first.folder.exists() and second.folder.exists()


def test_what_cannot_be_copied_is_one_line(monkeypatch, tmp_path):
    copies, path = of_rank(monkeypatch, tmp_path, 0, ["a"]), checkpoint(tmp_path, 2, 1)

    def full(source, target):
        target.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(local_copies.shutil, "copyfile", full)
    assert copies.keep(path) == f"{copies.folder}: no copy of {path.name} is kept (No space left on device)"
    assert list(copies.folder.iterdir()) == []


def test_two_runs_of_one_name_have_copies_of_their_own(monkeypatch, tmp_path):
    mesh = data_parallel(0, 1, 0, torch.device("cpu"))
    monkeypatch.setattr(local_copies, "all_gather_objects", lambda value: ["a"])
    folders = {LocalCopies(tmp_path, tmp_path / place / "mine", mesh).folder for place in ("one", "two")}
    assert len(folders) == 2
