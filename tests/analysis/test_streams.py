"""Logs that come through a pipe or on standard input: the rows of the file, all of them."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading

import numpy as np
import pytest

from emergence_train import cli
from emergence_train.analysis import runs
from emergence_train.analysis.logs import LogOptions
from emergence_train.analysis.logs.encoded import text_of
from emergence_train.analysis.logs.streams import as_files
from emergence_train.errors import InputError
from report.test_page import write_run
from support import ROOT

STEPS = np.arange(1, 1001)
LOSS = 3 + 4 * STEPS**-0.4
# what begins with 8 kB that Python would have buffered
LOGS = {
    "jsonl": ["{" + f'"step": {s}, "tokens": {100 * s}, "loss": {x:.6f}' + "}" for s, x in zip(STEPS, LOSS)],
    "csv": ["step,tokens,loss", *(f"{s},{100 * s},{x:.6f}" for s, x in zip(STEPS, LOSS))],
    "nanogpt": [f"iter {s}: loss {x:.6f}, time 12.00ms, mfu 30.00%" for s, x in zip(STEPS, LOSS)],
    "megatron": [f" iteration {s:8d}/ 1000 | lm loss: {x:.6E} | learning rate: 1.0E-4 |" for s, x in zip(STEPS, LOSS)],
    "text": [f"step: {s} loss: {x:.6f} tokens: {100 * s}" for s, x in zip(STEPS, LOSS)],
}


def written(data: bytes, descriptor: int) -> threading.Thread:
    def write():
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)

    thread = threading.Thread(target=write)
    thread.start()
    return thread


@pytest.mark.parametrize("format", LOGS)
@pytest.mark.parametrize("named", [True, False])
def test_a_log_through_a_pipe_has_all_its_rows(tmp_path, format, named):
    data = "\n".join([*LOGS[format], ""]).encode()
    (tmp_path / "log.txt").write_bytes(data)
    options = LogOptions(format if named else "auto", None, None, 100, {}, None)
    reading, writing = os.pipe()
    thread = written(data, writing)
    with as_files([f"/dev/fd/{reading}"]) as paths:
        (piped,) = runs.load(paths, options=options)
    thread.join()
    os.close(reading)
    (series,) = runs.load(tmp_path / "log.txt", options=options)
    assert len(piped.loss) == 1000 and not os.path.exists(paths[0])
    np.testing.assert_allclose(piped.loss, LOSS, atol=1e-5)
    for name in ("step", "tokens", "loss"):
        np.testing.assert_array_equal(getattr(piped, name), getattr(series, name))


def test_text_of_a_pipe_is_refused_before_it_is_lost(tmp_path):
    os.mkfifo(tmp_path / "log.jsonl")
    with pytest.raises(OSError, match="is no regular file"):
        text_of(tmp_path / "log.jsonl")


@pytest.mark.parametrize("piped", [False, True])
def test_standard_input_is_the_runs_own_log(tmp_path, piped):
    """Redirected it has the file's name; through a pipe its content says what it is."""
    log = write_run(tmp_path, positions=4) / "metrics.jsonl"
    command = [sys.executable, "-m", "emergence_train", "analyze", "temporal", "--json"]
    expected = json.loads(subprocess.check_output([*command, str(log)], cwd=ROOT))
    with open(log, "rb") as file:
        given = {"input": file.read()} if piped else {"stdin": file}
        seen = subprocess.run([*command, "-"], cwd=ROOT, capture_output=True, **given)
    assert seen.returncode == 0, seen.stderr
    ours, theirs = (result["runs"][0] for result in (json.loads(seen.stdout), expected))
    assert ours["final"] == theirs["final"] and ours["run"] == theirs["run"]


@pytest.mark.parametrize("blocks", [True, False])
def test_standard_input_may_be_a_socket(tmp_path, blocks):
    """As sshd, inetd and Node give it: it has no path that can be opened."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(blocks)
    command = [sys.executable, "-m", "emergence_train", "analyze", "temporal", "--json", "-"]
    process = subprocess.Popen(command, cwd=ROOT, stdin=theirs, stdout=subprocess.PIPE)
    theirs.close()
    with ours:
        for line in LOGS["csv"]:
            ours.sendall(f"{line}\n".encode())
    out, _ = process.communicate(timeout=60)
    (result,) = json.loads(out)["runs"]
    assert process.returncode == 0 and result["fit_until_step"] == 1000 and result["observed_points"] == 1000


@pytest.mark.parametrize(
    "given, paths, reason",
    [
        ("step,loss\n1,3\n2,2\n3,1.9\n4,1.8\n", ["-", "-"], "run 'stdin' is given twice"),
        (None, ["-"], "/dev/stdin: standard input is closed; name a file"),
        (None, ["-", "--tokens-per-step", "5"], "/dev/stdin: standard input is closed; name a file"),
    ],
)
def test_standard_input_twice_or_closed_is_one_line(given, paths, reason):
    end = "" if given is not None else "<&-"
    command = f"{sys.executable} -m emergence_train analyze temporal {' '.join(paths)} {end}"
    seen = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, input=given)
    assert seen.returncode == 2 and reason in seen.stderr and seen.stderr.count("\n") == 1


def test_sigterm_leaves_no_copy_of_a_pipe(tmp_path):
    command = [sys.executable, "-m", "emergence_train", "report", "-", "--serve", "0"]
    environment = os.environ | {"TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": "1"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(command, cwd=ROOT, env=environment, **pipes) as process:
        process.stdin.write("\n".join([*LOGS["csv"], ""]).encode())
        process.stdin.close()
        served = any(b"serving" in line for line in process.stdout)
        copies = [*tmp_path.glob("emergence-train-*")]
        process.terminate()
    assert served and len(copies) == 1 and process.returncode == 128 + signal.SIGTERM
    assert not any(copy.exists() for copy in copies)


def test_what_reads_for_ever_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("emergence_train.input_files.WRITER_SECONDS", 0.1)
    os.mkfifo(tmp_path / "a.csv")
    (tmp_path / "b.csv").symlink_to("/dev/zero")
    for name, reason in (("a", "a pipe to which nobody writes"), ("b", "no regular file")):
        for words in (["analyze", "temporal"], ["analyze", "emergence"], ["report"], ["ladder"], ["config"], ["grok"]):
            assert cli.main([*words, str(tmp_path / f"{name}.csv")]) == 2
            captured = capsys.readouterr()
            assert f"is {reason}" in captured.err and captured.err.count("\n") == 1, words
    with pytest.raises(InputError, match="nobody writes"), as_files([str(tmp_path / "a.csv")]):
        pytest.fail("has no writer")
