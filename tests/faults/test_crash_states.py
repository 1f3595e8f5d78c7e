"""No power cut leaves a run that cannot go on, or that resumes from what is not right; and the checker can tell."""

import json
from pathlib import Path

import pytest

from faults import disk
from support import run_python

pytestmark = pytest.mark.skipif(disk.library() is None, reason="wants Linux and a C compiler")
NEEDED = {  # fsyncs without which something is lost, by what is in the path of the file or directory
    "a shard": "/shard-",
    "the state": "/.state.json.",
    "the manifest": "/.manifest.json.",
    "the log": "metrics.jsonl",
    "a table": "positions/.step-00",
}


def check(data_path: Path, place: Path, *arguments: str, timeout: float = 540) -> dict[str, dict]:
    if not (place / "data").exists():
        (place / "data").symlink_to(data_path)
    script = Path(__file__).with_name("crash_states.py")
    done = run_python(str(script), "--place", str(place), *arguments, timeout=timeout)
    assert done.returncode in (0, 1) and done.stdout, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_a_run_goes_on_from_what_a_power_cut_leaves(data_path, tmp_path):
    outcome = check(data_path, tmp_path, "plain", "--every", "21", "--limit", "5", "--trained", "2")["plain"]
    assert outcome["wrong"] == 0, outcome["first wrong"]
    assert outcome["states"] > 30


def test_the_checker_finds_a_missing_fsync(data_path, tmp_path):
    """Looked at only where a state was called saved."""
    choice = ("--every", "100000", "--limit", "5", "--trained", "0", "--drop", "/shard-")
    outcome = check(data_path, tmp_path, "plain", *choice)["plain"]
    assert outcome["dropped"] and outcome["wrong"], outcome


@pytest.mark.slow
def test_every_kind_of_run_goes_on_from_any_of_many_states(data_path, tmp_path):
    for name, outcome in check(data_path, tmp_path, "--every", "3", "--limit", "8", "--trained", "2").items():
        assert outcome["wrong"] == 0, (name, outcome["first wrong"])


@pytest.mark.slow
@pytest.mark.parametrize("what", NEEDED)
def test_each_fsync_is_needed(data_path, tmp_path, what):
    choice = ("--every", "7", "--limit", "8", "--trained", "0", "--drop", NEEDED[what])
    outcome = check(data_path, tmp_path, "plain", *choice)["plain"]
    assert outcome["dropped"] and outcome["wrong"], what
