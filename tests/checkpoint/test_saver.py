"""A checkpoint is made by one rename, and what is not known to be on the disk does not keep its name."""

import errno
import os
from types import SimpleNamespace

import pytest
import torch

from emergence_train import files
from emergence_train.checkpoint import format as checkpoints
from emergence_train.checkpoint import saver
from emergence_train.checkpoint.format import complete, problems, shard_name, step_name
from emergence_train.checkpoint.shards import Shards, read_weights
from emergence_train.parallel.mesh import data_parallel


def commit(folder, step=4, value=1.0):
    temporary = folder / f".{step_name(step)}.tmp"
    files.make_directory(temporary)
    entry = checkpoints.write_tensors(temporary / shard_name(0, 1), {"weights|0|w": torch.full((3,), value)})
    saver.commit(temporary, folder / step_name(step), step, [entry], {"step": step, "parameters": {"w": [3]}})


def test_commit_makes_a_whole_checkpoint_and_replaces_another(tmp_path):
    commit(tmp_path / "checkpoints")
    commit(tmp_path / "checkpoints", value=2.0)
    (path,) = complete(tmp_path / "checkpoints")
    assert problems(path) == [] and read_weights(path)["w"].tolist() == [2.0] * 3
    assert sorted(p.name for p in path.parent.iterdir()) == ["latest", path.name]


def test_a_name_that_could_not_be_synced_is_taken_back(tmp_path, monkeypatch):
    """Reported as not saved, it must not be what a rewind loads."""
    folder = tmp_path / "checkpoints"
    commit(folder)
    plain = files.fsync_directory

    def failing(path):
        if path == folder:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        plain(path)

    monkeypatch.setattr(files, "fsync_directory", failing)
    with pytest.raises(OSError, match="Input/output"):
        commit(folder, step=8)
    assert [path.name for path in complete(folder)] == [step_name(4)]


def test_directories_that_are_made_are_synced_with_their_parents(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(files, "fsync_directory", synced.append)
    files.make_directory(tmp_path / "a" / "b" / "c")
    assert synced == [tmp_path, tmp_path / "a", tmp_path / "a" / "b"] and (tmp_path / "a/b/c").is_dir()
    files.make_directory(tmp_path / "a" / "b")
    assert len(synced) == 3


class State:
    """An engine state of one weight, for loading: at ZeRO 1, in a process alone."""

    def __init__(self, engine, mesh):
        self.mesh, self.stage, self.shapes, self.part, self.loaded = mesh, 1, {"w": [3]}, engine.part, None

    def held_by(self, shards):
        return shards.holds("weights", "w", *self.part)

    def load(self, shards, updates):
        self.loaded = shards.read("weights", "w", *self.part)

    def refresh(self):
        State.last = self.loaded


def test_what_its_own_shard_lacks_is_read_from_all(tmp_path, monkeypatch):
    """A rank that needs elements of another's shard, although ranks and stage are those of the save."""
    folder = tmp_path / "checkpoints"
    temporary = folder / f".{step_name(4)}.tmp"
    files.make_directory(temporary)
    entries = [
        checkpoints.write_tensors(
            temporary / shard_name(rank, 2), {f"weights|{start}|w": torch.arange(start, end) * 1.0}
        )
        for rank, (start, end) in enumerate(((0, 2), (2, 3)))
    ]
    content = {"step": 4, "parameters": {"w": [3]}, "world_size": 1, "zero_stage": 1, "updates": 4.0}
    saver.commit(temporary, folder / step_name(4), 4, entries, content)
    monkeypatch.setattr(saver, "EngineState", State)
    monkeypatch.setattr(saver, "all_gather_objects", lambda value: [value])
    monkeypatch.setattr(saver, "on_every_rank", lambda make: make())
    monkeypatch.setattr(saver, "broadcast_from_rank0", lambda make: make())
    monkeypatch.setattr(saver.checkpoints, "shard_name", lambda rank, size: shard_name(rank, 2))
    mesh, opened = data_parallel(0, 1, 0, torch.device("cpu")), []
    plain = Shards._held
    monkeypatch.setattr(Shards, "_held", lambda self, name: opened.append(name) or plain(self, name))
    for part, shards, expected in (((0, 2), [0, 0], [0, 1]), ((1, 2), [0, 0, 1], [1, 2])):
        opened.clear()
        saver.load_newest(SimpleNamespace(part=part), tmp_path, mesh, print)
        assert State.last.tolist() == expected and opened == [shard_name(rank, 2) for rank in shards]
