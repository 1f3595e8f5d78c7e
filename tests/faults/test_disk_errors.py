"""A disk that fails, fills up, is slow or hangs, and a clock that jumps: a run ends with one line, or goes on."""

import json
from pathlib import Path

import pytest

from faults import disk
from support import run_python

pytestmark = pytest.mark.skipif(disk.library() is None, reason="wants Linux and a C compiler")


def check(data_path: Path, place: Path, *arguments: str) -> dict:
    (place / "data").symlink_to(data_path)
    script = Path(__file__).with_name("disk_errors.py")
    done = run_python(str(script), "--place", str(place), *arguments, timeout=580)
    assert done.returncode in (0, 1) and done.stdout, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_a_disk_that_fails_in_a_save_ends_nothing_badly(data_path, tmp_path):
    """Three of the operations; the slow test has more, `make fault-trials` all."""
    outcome = check(data_path, tmp_path, "--kinds", "ENOSPC from then on", "--first", "150", "--every", "130")
    assert outcome["wrong"] == [] and sum(outcome["outcomes"].values()) >= 2


@pytest.mark.slow
def test_every_tenth_operation_fails(data_path, tmp_path):
    outcome = check(data_path, tmp_path, "--every", "23")
    assert outcome["wrong"] == []


@pytest.mark.slow
def test_slow_and_hanging_disks_and_jumping_clocks(data_path, tmp_path):
    outcome = check(data_path, tmp_path, "--others")
    assert set(outcome["slow"]["codes"].values()) == set(outcome["jumping"]["codes"].values()) == {0}
    for mode in ("alone", "beside"):
        hanging = outcome[f"hanging {mode}"]
        assert set(hanging["codes"].values()) == {76} and set(hanging["again"].values()) == {0}, hanging
        assert "its last operation was 'saving'" in hanging["output"] and hanging["seconds"] < 60, hanging
    assert "rank 1 is waited for by 1 others" in outcome["hanging alone"]["output"]
