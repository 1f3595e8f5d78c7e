"""A few of the seeded trials; `make fault-trials` runs them all."""

import json
from pathlib import Path

import pytest

from support import run_python


@pytest.mark.slow  # each kind of fault has a quick test of its own
def test_runs_with_faults_equal_uninterrupted_ones(tmp_path):
    out = tmp_path / "faults.json"
    script = Path(__file__).parent / "trials.py"
    arguments = ["--count", "2", "--seed", "7", "--worlds", "1", "2", "--place", str(tmp_path), "--out", str(out)]
    done = run_python(str(script), *arguments, timeout=580)
    outcomes = json.loads(out.read_text())["outcomes"] if out.exists() else []
    assert done.returncode == 0 and len(outcomes) == 2, done.stdout[-3000:] + done.stderr[-2000:]
