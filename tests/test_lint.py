"""What `make lint` runs, as tests: the type checker takes one core for half a minute, which other tests then do not wait for."""

import importlib.util
import subprocess
import sys

import pytest

from support import ROOT

COMMANDS = (("ruff", "check", "."), ("ruff", "format", "--check", "--diff", "."), ("mypy",))


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_lint_finds_nothing(command):
    if importlib.util.find_spec(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")  # a GPU's image; `make install` brings both
    ran = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
