"""Files opened for reading: pipes whole, and what would be read for ever refused."""

import json
import os
import socket
import threading
import time

import pytest

from emergence_train import input_files
from emergence_train.analysis.scores import files_of
from emergence_train.cli import main


def test_a_pipe_is_read_whole(tmp_path):
    """Its writer opens it later, and writes with pauses."""
    pipe, data = tmp_path / "pipe", bytes(range(256)) * 1000
    os.mkfifo(pipe)

    def write():
        time.sleep(0.2)
        with open(pipe, "wb", buffering=0) as file:
            for part in range(4):
                file.write(data[part * 64_000 : (part + 1) * 64_000])
                time.sleep(0.15)

    thread = threading.Thread(target=write)
    thread.start()
    with input_files.open_read(pipe) as file:
        assert file.read() == data
    thread.join()


def test_what_is_no_file_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(input_files, "WRITER_SECONDS", 0.1)
    os.mkfifo(tmp_path / "pipe")
    for path, reason in (
        (tmp_path / "pipe", "nobody writes"),
        ("/dev/zero", "no regular file"),
        (tmp_path, "a directory"),
    ):
        with pytest.raises(OSError, match=reason) as raised:
            input_files.read_text(path)
        assert raised.value.filename == str(path)
    (tmp_path / "text").write_bytes("\ufeffa\r\né\n".encode())
    assert input_files.read_text(tmp_path / "text", "utf-8-sig") == "a\né\n"


def test_a_socket_is_read_where_it_is_a_descriptor(tmp_path):
    ours, theirs = socket.socketpair()
    with theirs:
        with ours:
            ours.sendall(b"a\nb\n")
        assert input_files.read_text(f"/dev/fd/{theirs.fileno()}") == "a\nb\n"
        assert theirs.fileno() >= 0 and theirs.recv(1) == b""  # still open
    with socket.socket(socket.AF_UNIX) as named, pytest.raises(OSError, match="no regular file"):
        named.bind(str(tmp_path / "s"))
        input_files.read_text(tmp_path / "s")


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"


@pytest.mark.parametrize("kind", ["csv", "parquet", "json", "jsonl", "log"])
@pytest.mark.parametrize("verb", ["temporal", "emergence"])
def test_a_pointer_of_git_lfs_is_named(kind, verb, tmp_path, capsys):
    """A clone without git-lfs holds a few lines where its logs and results are."""
    file = tmp_path / f"history.{kind}"
    file.write_text(POINTER)
    assert main(["analyze", verb, str(file), "--out", str(tmp_path / "out")]) == 2
    says = capsys.readouterr().err
    if (verb, kind) == ("emergence", "log"):  # of whatever content
        assert "use .parquet or .csv" in says
    else:
        assert "history." in says and "is a pointer to the file, of git-lfs; run git lfs pull in its directory" in says


def test_results_beside_a_pointer_are_read(tmp_path, capsys):
    """Samples are often of git-lfs, results seldom."""
    (tmp_path / "samples.jsonl").write_text(POINTER)
    (tmp_path / "results.csv").write_text("step,task,metric,value\n1,piqa,acc,0.5\n")
    assert [file.name for file in files_of(tmp_path)] == ["results.csv"]
    (tmp_path / "results.csv").unlink()
    assert main(["analyze", "emergence", str(tmp_path)]) == 2
    assert "samples.jsonl: is a pointer to the file, of git-lfs; run git lfs pull" in capsys.readouterr().err


@pytest.mark.parametrize("file", ["config.yaml", "parent.json", "environment.json", "data.json", "metrics.jsonl"])
def test_a_pointer_in_a_run_hides_no_others(file, tmp_path, capsys):
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text('{"kind": "run", "schema": 1}\n')
    (tmp_path / "b" / file).write_text(POINTER)
    assert main(["runs", str(tmp_path), "--json"]) == 0
    assert "a" in [run["name"] for run in json.loads(capsys.readouterr().out)["runs"]]
