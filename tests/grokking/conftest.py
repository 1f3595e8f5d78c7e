import copy
from pathlib import Path

import pytest
import torch
import yaml

SWEEP = {
    "name": "small",
    "task": {"kind": "modular", "modulus": 7},
    "models": {"h8": {"kind": "mlp", "width": 16, "hidden": 16}},
    "fractions": [0.5, 0.7],
    "weight_decays": [1.0],
    "seeds": [1, 2, 3],
    "training": {"updates": 60, "lr": 1e-2, "evaluate_every": 10},
}


@pytest.fixture
def sweep_file(tmp_path):
    """sweep_file(seeds=[1], training={...}): the small sweep with other keys, as a file."""

    def write(name: str = "sweep.yaml", **keys) -> Path:
        tree = copy.deepcopy(SWEEP)
        for key, value in keys.items():
            tree[key] = tree[key] | value if key == "training" else value
        path = tmp_path / name
        path.write_text(yaml.safe_dump(tree))
        return path

    return write


@pytest.fixture(autouse=True)
def threads():
    """Training sets the threads of its process."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
