"""Fixtures for all tests: a small prepared data set of real text, and its configuration."""

import os
from pathlib import Path

import pytest
import torch
import yaml

from support import small_config

os.environ.setdefault("WANDB_MODE", "disabled")


@pytest.fixture(autouse=True)
def whole_floats():
    """Tests that start a process group in this process flush denormals; hypothesis draws them."""
    yield
    torch.set_flush_denormal(False)


@pytest.fixture(scope="session")
def data_path(tmp_path_factory) -> Path:
    """A prepared data set that tests read and never change."""
    from emergence_train.config import Data
    from emergence_train.data.prepare import prepare

    path = tmp_path_factory.mktemp("data") / "set"
    prepare(Data.model_validate(small_config(path, path)["data"]), lambda line: None)
    return path


@pytest.fixture
def config_file(data_path, tmp_path) -> Path:
    """The small configuration as a file, its runs under tmp_path."""
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(small_config(data_path, tmp_path / "runs")))
    return path
