"""A run's log on a disk that fails."""

import errno
import os

import pytest

from emergence_train.recorder import tables
from emergence_train.recorder.run_log import RunLog

HEADER = {"run": "r", "params": 1, "vocabulary": "v"}


def test_after_a_failed_fsync_the_log_is_another_file(tmp_path, monkeypatch):
    """The old one's pages count as written and are not; what had been synced and what has been written since are kept."""
    log, plain, failing = RunLog(tmp_path, HEADER, 0, []), os.fsync, [False]

    def fsync(descriptor):
        if failing[0] and descriptor == log.file:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        plain(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    log.write("train", step=1)
    assert log.flush() is None
    log.write("train", step=2)
    failing[0], before = True, os.stat(log.path).st_ino
    assert "cannot write" in log.flush()
    failing[0] = False
    synced = os.path.getsize(log.path)
    with open(log.path, "r+b") as file:  # as a file system may that drops the pages it could not write
        file.seek(synced - 20)
        file.write(bytes(20))
    log.write("train", step=3)
    assert log.flush() is None and os.stat(log.path).st_ino != before
    log.write("train", step=4)
    assert log.close() is None
    assert [row["step"] for row in tables.read_metrics(tmp_path)[1:]] == [1, 2, 3, 4]


@pytest.mark.parametrize("name", ["metrics.jsonl", "evaluations", "positions"])
def test_an_archive_that_was_cut_off_is_gone_on_with(tmp_path, monkeypatch, name):
    """Killed before any of the three is moved: at the next start all of them are in archives, none is deleted."""
    for folder in ("positions", "evaluations"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "step-0000000004.parquet").write_bytes(b"4")
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    plain = type(tmp_path).rename

    def rename(self, target):
        if self.name == name:
            raise KeyboardInterrupt
        return plain(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(type(tmp_path), "rename", rename)
        with pytest.raises(KeyboardInterrupt):
            RunLog(tmp_path, HEADER, 0, [])
    RunLog(tmp_path, HEADER, 0, []).close()
    kept = [path.relative_to(tmp_path).as_posix().split("/", 1)[1] for path in tmp_path.glob("begun-anew-*/**/*")]
    wanted = ["metrics.jsonl", "positions/step-0000000004.parquet", "evaluations/step-0000000004.parquet"]
    assert sorted(path for path in kept if "." in path) == sorted(wanted)
