"""The lock of a directory, held once and let go of at the end; and tables whose text is text in a spreadsheet too."""

import csv
import errno
import os
import subprocess
import sys

import pandas as pd
import pytest

from emergence_train import files
from emergence_train.errors import InputError

SAID = {"busy": "somebody is at it; wait", "other": "out"}


def test_a_lock_is_held_by_one_process_and_released(tmp_path):
    directory = tmp_path / "new" / "run"
    with files.lock(directory, **SAID) as note:
        assert note is None and directory.is_dir()
        with pytest.raises(InputError, match="run: somebody is at it; wait$"), files.lock(directory, **SAID):
            pass
    with pytest.raises(KeyError), files.lock(directory, **SAID):
        raise KeyError
    with files.lock(directory, **SAID) as note:
        assert note is None


@pytest.mark.parametrize("ends", [False, True], ids=["it lives", "it ends its block"])
def test_a_lock_is_its_own_process(tmp_path, ends):
    """A forked process, such as a DataLoader's worker, has the file open: it neither keeps the lock nor releases it."""
    lock = files.lock(tmp_path, **SAID)
    lock.__enter__()
    reading, writing = os.pipe()
    if not (child := os.fork()):
        os.close(writing)
        if ends:  # as its garbage collector may
            lock.__exit__(None, None, None)
        else:
            os.read(reading, 1)
        os._exit(0)
    os.close(reading)
    if ends:
        os.waitpid(child, 0)
    with pytest.raises(InputError, match="somebody is at it"), files.lock(tmp_path, **SAID):
        pytest.fail("is held")
    lock.__exit__(None, None, None)
    with files.lock(tmp_path, **SAID) as note:
        assert note is None
    os.close(writing)
    if not ends:
        os.waitpid(child, 0)


def test_a_lock_ends_with_its_process(tmp_path):
    script = (
        "import os, pathlib; from emergence_train import files\n"
        f"lock = files.lock(pathlib.Path({str(tmp_path)!r}), busy='', other=''); lock.__enter__(); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run(
        [sys.executable, "-c", script], env=os.environ | {"PYTHONPATH": ":".join(sys.path)}
    ).returncode
    with files.lock(tmp_path, **SAID) as note:
        assert note is None


@pytest.mark.parametrize("name", ["ENOSYS", "ENOTSUP", "ENOLCK"])
def test_without_locks_a_line_is_given(tmp_path, monkeypatch, name):
    def refusing(file, how):
        raise OSError(getattr(errno, name), "not here")

    monkeypatch.setattr("fcntl.flock", refusing)
    with files.lock(tmp_path, **SAID) as note:
        assert note is not None and "has no locks (not here)" in note


def test_a_lock_that_fails_otherwise_is_an_error(tmp_path, monkeypatch):
    def failing(file, how):
        raise OSError(errno.EIO, "Input/output error")

    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be made or written .*; choose another out$"):
        files.lock(tmp_path / "file" / "run", **SAID).__enter__()
    monkeypatch.setattr("fcntl.flock", failing)
    with pytest.raises(InputError, match="cannot be locked .Input/output error.; choose another out$"):
        files.lock(tmp_path, **SAID).__enter__()


def test_a_directory_of_another_user_is_refused(tmp_path, monkeypatch):
    """At once: an evaluation or tokenizing of hours would fail at its first write."""
    refused = "cannot be made or written .Permission denied.; choose another out$"
    (tmp_path / ".lock").touch()  # another's, which one may read
    monkeypatch.setattr(os, "access", lambda path, mode: mode == os.R_OK)
    for directory in (tmp_path, tmp_path / "new" / "run"):
        with pytest.raises(InputError, match=f"{directory}: {refused}"):
            files.check_writable(directory, "out")
    with pytest.raises(InputError, match=f"{tmp_path}: {refused}"):
        files.lock(tmp_path, **SAID).__enter__()
    with files.lock(tmp_path, writes=False, **SAID) as note:
        assert note is None


def test_text_in_a_table_is_no_formula(tmp_path):
    tasks = ["=cmd|'/c calc'!A1", "+1", "-2", "@sum", "\tx", "a=b", "", "plain"]
    frame = pd.DataFrame({"task": tasks, "kind": pd.Categorical(tasks), "value": -1.5, "step": -3, "right": True})
    files.write_csv(tmp_path / "t.csv", frame)
    with open(tmp_path / "t.csv", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["task", "kind", "value", "step", "right"]
    wanted = [f"'{task}" if task[:1] in ("=", "+", "-", "@", "\t") and task else task for task in tasks]
    assert [row[0] for row in rows] == [row[1] for row in rows] == wanted
    assert {tuple(row[2:]) for row in rows} == {("-1.5", "-3", "True")}
    assert list(frame["task"]) == tasks  # the caller's is left alone
