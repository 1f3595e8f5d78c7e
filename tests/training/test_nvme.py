"""The folder of offloaded state on a node: emptied, large enough, removed; what stops a start."""

import contextlib
import shutil
from types import SimpleNamespace

import pytest
import torch
from deepspeed.ops.op_builder import AsyncIOBuilder

from emergence_train import config
from emergence_train.errors import InputError, RunError
from emergence_train.parallel.mesh import data_parallel
from emergence_train.training import nvme

MESH = data_parallel(0, 1, 0, torch.device("cpu"))
HELD = contextlib.ExitStack()
OVER = ("training.zero_stage=3", "training.zero.offload_optimizer=nvme")


@pytest.fixture
def section(config_file, tmp_path, monkeypatch):
    """The section `training` with its files below tmp_path; one process, and libaio whether or not it is here."""
    monkeypatch.setattr(nvme, "all_gather_objects", lambda value: [value])
    monkeypatch.setattr(nvme, "on_every_rank", lambda work: work())
    monkeypatch.setattr(AsyncIOBuilder, "is_compatible", lambda self: True)
    return config.load(config_file, [*OVER, f"training.zero.nvme_path={tmp_path / 'disk'}"]).training


def test_what_a_killed_start_left_is_removed(section, tmp_path):
    folders, held = [], contextlib.ExitStack()
    for run in ("one/run", "two/run", "one/run"):
        training = nvme.in_own_folder(section, 1000, tmp_path / run, MESH, held)
        folders.append(tmp_path / training.zero.nvme_path)
        assert not list(folders[-1].iterdir())
        own = folders[-1] / "zero_stage_3" / "optimizer" / "rank0"
        own.mkdir(parents=True)
        (own / "0.tensor.swp").write_bytes(b"state")
    assert (
        folders[0] == folders[2] != folders[1] and (folders[1] / "zero_stage_3/optimizer/rank0/0.tensor.swp").exists()
    )
    held.close()
    assert not list((tmp_path / "disk").iterdir())


def test_without_nvme_nothing_is_touched(config_file):
    training = config.load(config_file).training
    assert nvme.in_own_folder(training, 1000, config_file, MESH, HELD) is training


@pytest.mark.parametrize(("free", "fits"), [(16 * 10**9 + 2**28, True), (16 * 10**9 + 2**28 - 1, False)])
def test_a_disk_that_is_too_small_is_one_line(section, tmp_path, monkeypatch, free, fits):
    """1e9 parameters on one rank: weights, two moments and gradients of 4 bytes, and 256 MiB to spare."""
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=free))
    if fits:
        nvme.in_own_folder(section, 10**9, tmp_path / "run", MESH, HELD)
        return
    with pytest.raises(RunError, match="needs 16.3 GB of this disk, 16.3 GB are free; make room, or set"):
        nvme.in_own_folder(section, 10**9, tmp_path / "run", MESH, HELD)


def test_without_libaio_a_start_ends_in_one_line(section, tmp_path, monkeypatch):
    monkeypatch.setattr(AsyncIOBuilder, "is_compatible", lambda self: False)
    with pytest.raises(InputError, match="needs libaio and its headers; install them .*, or give cpu"):
        nvme.in_own_folder(section, 1000, tmp_path / "run", MESH, HELD)


def test_a_place_that_is_no_directory_is_one_line(section, tmp_path):
    (tmp_path / "disk").write_text("a file")
    with pytest.raises(RunError, match="disk"):
        nvme.in_own_folder(section, 1000, tmp_path / "run", MESH, HELD)
