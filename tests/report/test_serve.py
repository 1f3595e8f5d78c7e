"""The served page: that alone, to this machine alone, up to date; errors that name the remedy."""

import errno
import http.client
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
from http.server import ThreadingHTTPServer

import pytest

from emergence_train.analysis.logs.encoded import COMPRESSED
from emergence_train.analysis.logs.fields import TABLES
from emergence_train.analysis.scores import SUFFIXES
from emergence_train.errors import InputError
from emergence_train.report import page
from emergence_train.report.collect import load_run
from emergence_train.report.reading import Reading
from emergence_train.report.serve import ADDRESS, FILES, LivePage, Server, handler, serve, stamps
from report.test_page import write_run


@pytest.fixture
def served(tmp_path):
    live = LivePage([write_run(tmp_path, "run", positions=4, until=20)], Reading(), lambda line: None)
    assert live.update()
    server = ThreadingHTTPServer((ADDRESS, 0), handler(live))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield live, server.server_address[1]
    server.shutdown()
    server.server_close()


def ask(port, method="GET", path="/", host="127.0.0.1"):
    connection = http.client.HTTPConnection(ADDRESS, port, timeout=20)
    connection.putrequest(method, path, skip_host=True)
    connection.putheader("Host", host)
    connection.endheaders()
    answer = connection.getresponse()
    return answer.status, answer.getheaders(), answer.read()


def test_only_the_page_is_served(served):
    live, port = served
    status, headers, body = ask(port, host=f"localhost:{port}")
    assert status == 200 and body == live.text and ("ETag", f'"{live.version}"') in headers
    assert any(name == "Content-Security-Policy" and "default-src 'none'" in value for name, value in headers)
    assert ask(port, "HEAD")[0::2] == (200, b"")
    for path in ("/config.yaml", "/metrics.jsonl", "/../metrics.jsonl", "//etc/passwd", "/report.html"):
        assert ask(port, path=path)[0] == 404
    assert ask(port, host="elsewhere.example")[0] == 404 and ask(port, host="")[0] == 404
    assert ask(port, "POST")[0] == 501


def test_the_page_follows_the_files(tmp_path):
    lines = []
    live = LivePage([tmp_path / "run"], Reading(), lines.append)
    assert (
        live.update()
        and b"no run has begun there yet; waiting for its first line" in live.text
        and b'id="waiting"' in live.text
    )
    run = write_run(tmp_path, "run", positions=4, until=20)
    assert live.update() and b'id="position"' in live.text and not live.update()
    first = live.version
    assert f'data-version="{first}"'.encode() in live.text
    row = {"kind": "train", "step": 21, "tokens": 21000, "lr": 0.1, "loss": 3.0, "tokens_per_second": 1.0}
    with open(run / "metrics.jsonl", "a") as file:
        file.write(json.dumps(row) + "\n")
    assert live.update() and live.version != first
    kept = live.text
    (run / "metrics.jsonl").write_text("{broken\n{broken\n")
    assert not live.update() and live.text == kept and len(lines) == 2 and "no new page" in lines[-1]


def test_a_touched_file_with_the_same_content_is_no_new_page(tmp_path):
    run = write_run(tmp_path, "run", positions=4, until=20)
    live = LivePage([run], Reading(), print)
    assert live.update()
    os.utime(run / "metrics.jsonl", ns=(1, 1))
    assert next(iter(stamps([run])))[1] == 1 and not live.update()


def test_only_a_run_that_changed_is_fitted_again(tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr("emergence_train.report.serve.load_run", lambda *of: read.append(of[0].name) or load_run(*of))
    runs = [write_run(tmp_path, name, positions=4, until=20) for name in ("done", "going")]
    live = LivePage(runs, Reading(), print)
    assert live.update() and read == ["done", "going"]
    with open(runs[1] / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"kind": "train", "step": 21, "tokens": 21000, "lr": 0.1, "loss": 3.0}) + "\n")
    assert live.update() and read == ["done", "going", "going"]
    assert live.text.replace(live.version.encode(), b"@") == page.page(page.collected(runs), "@").encode()


def test_a_port_in_use_names_the_remedy(served, tmp_path):
    _, port = served
    with pytest.raises(InputError, match=f"--serve {port}: the port is in use; give another, or 0"):
        serve([tmp_path], port, Reading(), print)


@pytest.mark.slow
def test_ctrl_c_ends_it_with_0(tmp_path):
    """As a user has it: the command in a process of its own."""
    run = write_run(tmp_path, "run", positions=4, until=20)
    command = [sys.executable, "-m", "emergence_train", "report", str(run), "--serve", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        port = int(re.search(r"http://127\.0\.0\.1:(\d+)/", process.stdout.readline()).group(1))
        assert ask(port)[0] == 200
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=30)
        assert process.returncode == 0 and rest == "no longer served\n"
    finally:
        process.kill()


def test_a_run_that_has_not_begun_is_waited_for_beside_others(tmp_path):
    """Its directory with a configuration, or not even that; the page of the others is there meanwhile."""
    done, coming = write_run(tmp_path, "done", positions=4, until=20), tmp_path / "coming"
    live = LivePage([done, coming], Reading(), print)
    assert live.update() and b"<b>done</b>" in live.text and b"coming" not in live.text
    coming.mkdir()
    (coming / "config.yaml").write_text("name: coming\n")
    alone = LivePage([coming], Reading(), print)
    assert alone.update() and b"no run has begun there yet" in alone.text
    (coming / "metrics.jsonl").write_text("")
    assert alone.update() and b"is empty; wait for the run" in alone.text
    (coming / "metrics.jsonl").unlink()
    write_run(tmp_path, "late", positions=4, until=20)
    for name in ("metrics.jsonl", "positions"):
        (tmp_path / "late" / name).rename(coming / name)
    assert live.update() and b"<b>late</b>" in live.text


@pytest.mark.parametrize("name", ["b", "b-lr0.003", "m-1.4b", "v2.1", "run.d", "a.b.c"])
def test_a_name_with_points_is_that_of_a_run_to_come(tmp_path, name):
    live = LivePage([write_run(tmp_path, "a", positions=4, until=20), tmp_path / name], Reading(), print)
    assert live.update() and b"<b>a</b>" in live.text
    alone = LivePage([tmp_path / name], Reading(), print)
    assert alone.update() and b"no run has begun there yet" in alone.text


@pytest.mark.parametrize(
    "name", ["train.log", "log.CSV", "log.txt.gz", "run.jsonl", "slurm-12.out", "t.parquet", "x.gz"]
)
def test_a_file_that_is_not_there_is_not_waited_for(tmp_path, name):
    assert {*SUFFIXES, *TABLES, *COMPRESSED} <= FILES  # all that the readers know by its name
    live = LivePage([tmp_path / name], Reading(), print)
    assert live.update() and b"no such file" in live.text


@pytest.mark.parametrize("state", ["locked", "folders", "empty log", "half a header", "failed"])
def test_a_run_that_is_just_beginning_does_not_stop_the_others(tmp_path, state):
    """Everything that a run's directory holds before its first checkpoint; the others' page goes on, and is told what lacks."""
    a, c, lines = write_run(tmp_path, "a", positions=4, until=20), tmp_path / "c", []
    whole = write_run(tmp_path, "whole", positions=4, until=20)
    rows = (whole / "metrics.jsonl").read_text().splitlines(keepends=True)
    c.mkdir()
    if state == "locked":
        (c / ".lock").touch()
    elif state == "folders":
        (c / "positions").mkdir()
    else:
        text = {"empty log": "", "half a header": rows[0][:20], "failed": "".join(rows[:9])}[state]
        (c / "metrics.jsonl").write_text(text)
    if state == "failed":
        (c / "environment.json").write_text(json.dumps({"sessions": [{"exit_code": 1, "ended": "then"}]}))
    paths = [a, c, tmp_path / "d"] if state == "failed" else [c, a]
    live = LivePage(paths, Reading(), lines.append)
    assert live.update() and b"<b>a</b>" in live.text and b"<b>c</b>" not in live.text
    assert len(lines) == 1 and lines[0].startswith("left out so far: ") and str(c) in lines[0]
    first = live.version
    with open(a / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"kind": "train", "step": 21, "tokens": 21000, "lr": 0.1, "loss": 3.0}) + "\n")
    assert live.update() and live.version != first and len(lines) == 1
    if state == "failed":
        (c / "metrics.jsonl").unlink()
        for name in ("metrics.jsonl", "positions"):
            shutil.move(whole / name, c / name)
        assert live.update() and b"<b>whole</b>" in live.text and b"<b>a</b>" in live.text


def test_a_finished_run_without_positions_is_not_waited_for(tmp_path):
    run = write_run(tmp_path, "run", positions=4)
    for table in (run / "positions").iterdir():
        table.unlink()
    with pytest.raises(InputError, match="is finished and has no losses by position.*metrics.jsonl for a page"):
        load_run(run, "run")
    assert (
        b"a training loss of 3.225 nats per token"
        in page.report([run / "metrics.jsonl"], tmp_path / "out").read_bytes()
    )


def test_a_failure_of_the_machine_is_no_end(tmp_path, monkeypatch):
    """Files that cannot be looked at, or read, for a while: the page is made once they can, though none has changed."""
    lines, run = [], write_run(tmp_path, "run", positions=4, until=20)
    live = LivePage([run], Reading(), lines.append)

    def fail(*_):
        raise OSError(errno.EMFILE, "Too many open files")

    for name in ("stamps", "load_run"):
        with monkeypatch.context() as patch:
            patch.setattr(f"emergence_train.report.serve.{name}", fail)
            live.update()
            assert not live.update() and sum("Too many open files" in line for line in lines) == 1
        assert live.update() and b'id="position"' in live.text
        (live := LivePage([run], Reading(), lines.append)), lines.clear()


def test_a_client_that_has_gone_is_no_error(tmp_path, capfd):
    live = LivePage([write_run(tmp_path, "run", positions=4, until=20)], Reading(), print)
    live.update()
    with Server((ADDRESS, 0), handler(live)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for request in (b"GET / HT", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n") * 5:
            client = socket.create_connection(server.server_address)
            client.sendall(request)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset
            client.close()
        assert ask(server.server_address[1])[0] == 200
        server.shutdown()
    assert "Traceback" not in capfd.readouterr().err


def test_hosts_have_no_case_and_paths_may_be_whole(served):
    port = served[1]
    assert ask(port, host=f"LOCALHOST:{port}")[0] == 200
    assert ask(port, host=f"127.0.0.1:{port}", path=f"http://127.0.0.1:{port}/?v=1")[0] == 200
    assert ask(port, host=f"127.0.0.1:{port}", path="http://elsewhere.example/")[0] == 404
