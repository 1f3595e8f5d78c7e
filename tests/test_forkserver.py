"""Forked processes exit, print and read their environment as fresh ones."""

import os
import subprocess

import pytest

import forkserver

SCRIPT = """
import os, signal, sys, time
print(sys.argv[1:], os.environ["RANK"], os.getcwd())
print("to stderr", file=sys.stderr)
what = sys.argv[1]
if what == "exit":
    sys.exit(3)
if what == "raise":
    raise KeyError("lost")
if what == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
if what == "hang":
    time.sleep(600)
"""


@pytest.fixture
def run(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)

    def run(*whats: str, timeout: float = 60):
        targets = [[str(tmp_path / "script.py"), what] for what in whats]
        return forkserver.run(targets, [os.environ | {"RANK": str(rank)} for rank in range(len(whats))], timeout)

    return run


def test_codes_outputs_and_environments_are_each_process_s_own(run):
    ended = run("return", "exit", "raise", "kill")
    assert [process.returncode for process in ended] == [0, 3, 1, -9]
    for rank, (process, what) in enumerate(zip(ended[:3], ("return", "exit", "raise"))):
        assert process.stdout == f"['{what}'] {rank} {os.getcwd()}\n" and process.stderr.startswith("to stderr\n")
    assert "KeyError: 'lost'" in ended[2].stderr


def test_process_over_its_time_is_killed_and_the_server_stays(run):
    with pytest.raises(subprocess.TimeoutExpired):
        run("return", "hang", timeout=1)
    assert run("return")[0].returncode == 0


def test_a_module_is_run_as_by_the_interpreter():
    (ended,) = forkserver.run([["-m", "emergence_train", "--help"]], [dict(os.environ)], 60)
    assert ended.returncode == 0 and ended.stdout.startswith("usage: emergence-train")
