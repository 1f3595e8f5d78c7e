"""A checkpoint is made by one rename, and what is not known to be on the disk does not keep its name."""

import errno
import os

import pytest
import torch

from emergence_train import files
from emergence_train.checkpoint import format as checkpoints
from emergence_train.checkpoint import saver
from emergence_train.checkpoint.format import complete, problems, shard_name, step_name


def commit(folder, step=4, value=1.0):
    temporary = folder / f".{step_name(step)}.tmp"
    files.make_directory(temporary)
    entry = checkpoints.write_tensors(temporary / shard_name(0, 1), {"weights|0|w": torch.full((3,), value)})
    saver.commit(temporary, folder / step_name(step), step, [entry], {"step": step, "parameters": {"w": [3]}})


def test_commit_makes_a_whole_checkpoint_and_replaces_another(tmp_path):
    commit(tmp_path / "checkpoints")
    commit(tmp_path / "checkpoints", value=2.0)
    (path,) = complete(tmp_path / "checkpoints")
    assert problems(path) == [] and checkpoints.read_weights(path)["w"].tolist() == [2.0] * 3
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
