"""A checkpoint is made by one rename, and what is not known to be on the disk does not keep its name."""

import errno
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from emergence_train import files
from emergence_train.checkpoint import format as checkpoints
from emergence_train.checkpoint import saver
from emergence_train.checkpoint.format import complete, problems, shard_name, step_name
from emergence_train.checkpoint.shards import Shards, read_weights
from emergence_train.config import Checkpoints
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


class Weight:
    """An engine state of one weight, for saving."""

    def __init__(self, engine, mesh):
        self.stage, self.updates, self.shapes = 1, 4.0, {"w": [3]}

    def tensors(self):
        return {f"{kind}|0|w": torch.ones(3) for kind in ("weights", "master")}


def without_ranks(monkeypatch):
    """Collectives of a process alone, without a process group."""
    for name in ("all_gather_objects", "gather_on_rank0"):
        monkeypatch.setattr(saver, name, lambda value, group=None: [value])
    for name in ("broadcast_from_rank0", "on_every_rank"):
        monkeypatch.setattr(saver, name, lambda make, group=None: make())


@pytest.fixture
def others(monkeypatch):
    """Names that directories of another user contain: they can be renamed and not deleted."""
    names, plain = set(), saver.shutil.rmtree

    def deleting(path, ignore_errors=False):
        if not any(name in path.name for name in names):
            plain(path, ignore_errors)
        elif not ignore_errors:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(saver.shutil, "rmtree", deleting)
    monkeypatch.setattr(saver, "EngineState", Weight)
    without_ranks(monkeypatch)
    return names


def saving(run, lines):
    settings = Checkpoints(keep_last=1, keep_best=False, every_tokens=1)
    return saver.Saver(run, settings, set(), data_parallel(0, 1, 0, torch.device("cpu")), lines.append)


def test_what_cannot_be_deleted_stops_no_save(others, tmp_path):
    """A checkpoint of another user that retention drops, and the rest of their killed save of the same step."""
    lines, folder = [], tmp_path / "checkpoints"
    before = saving(tmp_path, lines)
    before.save(None, 4, {}, torch.zeros(4, 2))
    (folder / f".{step_name(12)}.tmp").mkdir()
    others |= {step_name(4), f"{step_name(12)}.tmp"}
    running = saving(tmp_path, lines)
    for step in (8, 12, 16):
        running.save(None, step, {}, torch.zeros(4, 2))
        assert running.problem is None and running.durable == step and problems(folder / step_name(step)) == []
    assert [path.name for path in complete(folder)] == [step_name(16)]
    left = [f".{step_name(4)}.gone", f".{step_name(12)}.tmp"]
    assert sorted(path.name for path in folder.iterdir() if path.name.startswith(".step")) == left
    assert sorted(lines) == [
        f"{folder / name}: cannot be deleted (Permission denied), its owner can; training continues" for name in left
    ]
    others.clear()
    running.save(None, 20, {}, torch.zeros(4, 2))
    assert sorted(path.name for path in folder.iterdir()) == ["latest", step_name(20)]


def test_a_checkpoint_that_keeps_its_name_keeps_no_other(others, monkeypatch, tmp_path):
    """In a directory of the sticky kind that of another user cannot even be renamed."""
    plain, kept = Path.rename, step_name(4)

    def renaming(path, target):
        if path.name == kept:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), str(path))
        return plain(path, target)

    monkeypatch.setattr(Path, "rename", renaming)
    lines = []
    running = saving(tmp_path, lines)
    for step in (4, 8, 12):
        running.save(None, step, {}, torch.zeros(4, 2))
    assert [path.name for path in complete(tmp_path / "checkpoints")] == [kept, step_name(12)]
    running.save(None, 4, {}, torch.zeros(4, 2))
    folder = tmp_path / "checkpoints"
    assert lines == [
        f"checkpoint of step 4 not saved: {folder / kept}: Operation not permitted (PermissionError); training continues, "
        f"older ones are untouched"
    ]


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
    without_ranks(monkeypatch)
    monkeypatch.setattr(saver.checkpoints, "shard_name", lambda rank, size: shard_name(rank, 2))
    mesh, opened = data_parallel(0, 1, 0, torch.device("cpu")), []
    plain = Shards._held
    monkeypatch.setattr(Shards, "_held", lambda self, name: opened.append(name) or plain(self, name))
    for part, shards, expected in (((0, 2), [0, 0], [0, 1]), ((1, 2), [0, 0, 1], [1, 2])):
        opened.clear()
        saver.load_newest(SimpleNamespace(part=part), tmp_path, mesh, print)
        assert State.last.tolist() == expected and opened == [shard_name(rank, 2) for rank in shards]
