"""A small ladder's file, over the small configuration."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml


@pytest.fixture
def ladder_file(config_file, tmp_path) -> Callable[..., Path]:
    """A function that writes a ladder's file: one size and 1,024 tokens, with other keys as given; None: without."""

    def write(**keys) -> Path:
        path = tmp_path / "ladder.yaml"
        tree = {
            "name": "small",
            "config": config_file.name,
            "out": str(tmp_path / "rungs"),
            "tokens": [1024],
            "set": {"training.threads": 1},
            "sizes": {"a": {}},
        }
        path.write_text(yaml.safe_dump({k: v for k, v in (tree | keys).items() if v is not None}))
        return path

    return write


@pytest.fixture
def behave(monkeypatch):
    """behave(run={"codes": [...], "seconds": s}): of the stand-in."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return lambda **runs: monkeypatch.setenv("STAND_IN", json.dumps(runs))
