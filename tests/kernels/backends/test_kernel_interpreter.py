"""If Triton was imported before the interpreter could be chosen, all of tests/kernels runs again in its own process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import TOO_LATE


@pytest.mark.skipif(not TOO_LATE, reason="the interpreter runs in this process")
def test_these_tests_in_a_process_of_its_own():
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "not slow", str(Path(__file__).parents[1])],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-4000:]
