"""watch: the screen at two widths, plain lines, a run that dies while it is watched, and what it costs at a million steps."""

import contextlib
import fcntl
import io
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios

import pyarrow.parquet as pq
import pytest
from rich.console import Console

import watch.run_files as run_files
from emergence_train import cli
from emergence_train.watch.details import CURVE_POINTS, details
from emergence_train.watch.plot import plot
from emergence_train.watch.screen import fitting, screen
from support import PATIENCE, ROOT

EVENTS = {
    30: [{"kind": "spike", "reason": "the loss 9 is far above [the] median"}],
    40: [{"kind": "straggler", "rank": 3, "operation": "forward", "seconds": 0.25, "share": 0.2}],
}

COMMAND = [sys.executable, "-m", "emergence_train", "watch"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """120 of 400 steps with two events, samples and scores of two tasks."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    samples = {"kind": "samples", "texts": [{"prompt": "Once", "text": " upon [a] time"}]}
    run = run_files.write(tmp_path_factory.mktemp("w") / "r", 120, every=20, total=400, extra=EVENTS | {120: [samples]})
    rows = [("copying", "acc", 0.5), ("copying", "brier", 0.3), ("cloze", "log_p", -2.0)]
    table = {"task": [r[0] for r in rows], "metric": [r[1] for r in rows], "value": [r[2] for r in rows]}
    (run / "evaluations").mkdir()
    pq.write_table(
        pa.table(table | {"stderr": [0.1] * 3, "chance": [0.2] * 3}), run / "evaluations" / "step-0000000120.parquet"
    )
    return run


def drawn(run, width: int, encoding: str = "utf-8") -> str:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="replace")
    console = Console(file=file, width=width, markup=False)
    console.print(screen(details(run), console))
    file.flush()
    return file.buffer.getvalue().decode(encoding)


def test_details_are_those_of_the_files(run):
    shown = details(run)
    assert shown.losses == {"train": run_files.loss_at(120), "iid": run_files.loss_at(120) + 0.1}
    assert [(event.step, event.kind) for event in shown.events] == [(30, "spike"), (40, "straggler")]
    assert [forecast.step for forecast in shown.forecasts] == [20, 40, 60, 80, 100, 120]
    assert (shown.positions.split, shown.positions.loss[:2]) == ("iid", [3.0, 2.5])
    assert [(score.task, score.metric) for score in shown.tasks] == [("copying", "acc"), ("cloze", "log_p")]
    assert shown.samples == [{"prompt": "Once", "text": " upon [a] time"}]
    assert len(shown.curve) <= CURVE_POINTS and shown.curve[0] == (run_files.TOKENS, 6.0)


@pytest.mark.parametrize("width", [80, 120])
def test_the_screen_shows_all_and_fits(run, width):
    text = drawn(run, width)
    assert max(map(len, text.splitlines())) <= width
    for part in ("120 of 400", "2.508 [2.400, 2.700]", "spike", "[the]", "rank 3", "copying acc", "Once upon [a] time"):
        assert part in text, part
    assert "loss by position" in text and "⠉" in text


@pytest.mark.parametrize(
    ("width", "height", "left_out"), [(80, 30, False), (40, 24, True), (100, 12, True), (80, 60, False)]
)
def test_a_live_screen_fits_the_lines_or_names_the_rest(run, width, height, left_out):
    """No more lines than the terminal has; numbers whole at 40 columns; what has no room is named, or nothing is missing."""
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=True, color_system=None)
    console.print(fitting(details(run), console))
    lines = console.file.getvalue().splitlines()
    text = "\n".join(lines)
    assert len(lines) <= height - 1 and max(map(len, lines)) <= width
    assert "120 of 400" in text and "61.4k of 205k" in text and "…" not in lines[4]
    assert ("no lines for: " in text) == left_out
    assert left_out or all(part in text for part in ("spike", "iid", "copying", "Once upon", "loss by position"))


def test_a_terminal_without_unicode_gets_stars(run):
    text = drawn(run, 80, encoding="ascii")
    assert "*" in text and "120 of 400" in text


def test_a_plot_puts_points_where_they_belong():
    """A falling line over two decades: in each column one star, at the height of its value."""
    x = [10 ** (k / 10) for k in range(21)]
    lines = plot(x, [20.0 - k for k in range(21)], width=28, height=21, shown=1.0, unicode=False)
    assert lines[0].startswith("20.00 |*") and lines[-1].startswith(" 0.00 |") and lines[-1].endswith("*")
    places = [line.index("*") for line in lines]
    assert places == sorted(places) and places[10] == pytest.approx((places[0] + places[-1]) / 2, abs=1)
    with_bar = plot([1, 10], [5.0, 4.0], width=20, height=5, interval=(100, 1.0, 2.0), x_range=(1, 100), unicode=False)
    assert with_bar[-1].startswith("1.00") and with_bar[-1].endswith("*")
    assert plot([], [], width=20, height=5) == plot([1], [1], width=20, height=5) == ["nothing to draw yet"]


def test_once_and_json_of_one_and_of_several(run, capsys):
    assert cli.main(["watch", str(run), "--once"]) == 0
    assert "training loss" in capsys.readouterr().out
    run_files.write(run.parent / "s", 20, every=10, name="s")
    assert cli.main(["watch", str(run.parent), "--once"]) == 0
    shown = capsys.readouterr().out
    assert "finished" in shown and "training loss" not in shown
    assert cli.main(["watch", str(run), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["runs"]
    assert row["progress"]["step"] == 120 and row["events"][0]["kind"] == "spike"


def test_a_terminal_obeys_nothing_that_a_model_wrote(tmp_path):
    samples = {"kind": "samples", "texts": [{"prompt": "a\x1b[31m", "text": "\x1b]0;title\x07b"}]}
    run = run_files.write(
        tmp_path / "r", 20, every=10, extra={10: [{"kind": "spike", "reason": "x\x1b[2J"}], 20: [samples]}
    )
    text = drawn(run, 80)
    assert "\x1b" not in text and "\x07" not in text and "a\ufffd[31m" in text


def watched(run, terminal, size=None) -> bytes:
    """What `watch` writes to a pseudo-terminal of this kind, of (lines, columns), until it ends by itself."""
    here, there = pty.openpty()
    if size is not None:
        fcntl.ioctl(there, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
    watching = subprocess.Popen(COMMAND + [str(run)], stdin=there, stdout=there, env=variables(terminal))
    os.close(there)
    shown = b""
    with contextlib.suppress(OSError):  # the other end is closed
        while piece := os.read(here, 65536):
            shown += piece
    os.close(here)
    assert watching.wait(60 * PATIENCE) == 0
    return shown


def variables(terminal):
    paths = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")]), "TERM": terminal}
    return {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")} | paths


def test_on_a_terminal_the_screen_is_drawn_until_the_run_ends(tmp_path):
    """A pseudo-terminal of 100 columns and 30 lines, on a run that is finished: once, and a line that stays."""
    run = run_files.write(tmp_path / "r", 60, every=20)
    shown = watched(run, "xterm-256color", (30, 100)).decode()
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown)
    assert "60 of 60" in text and "training loss" in text and "\x1b[1m" in shown
    assert text.rstrip().splitlines()[-1].startswith("r: finished  step 60/60")


def test_a_dumb_terminal_and_a_pipe_get_one_line_a_run(tmp_path):
    """TERM=dumb has no screen that can be drawn again; a line of a log is one line, however long it is."""
    run = run_files.write(tmp_path / ("r" * 60), 60, every=20, total=400, name="r" * 60)
    run_files.session(run, ended="2026-01-01", reason="stop requested by a signal that has a rather long name")
    piped = subprocess.run(COMMAND + [str(run)], env=variables("dumb"), capture_output=True, text=True)
    assert len(piped.stdout.splitlines()) == 1 and "rather long name)" in piped.stdout
    shown = watched(run, "dumb")
    assert shown.decode().strip() == piped.stdout.strip() and b"\x1b" not in shown


TRAINER = """
import sys, time
from pathlib import Path
sys.path[:0] = [{root!r}, {root!r} + "/tests"]
import watch.run_files as run_files
from emergence_train.recorder.sessions import add_session
run = run_files.write(Path(sys.argv[1]), 20, every=10, total=1000)
add_session(run, {{}})
print("begun", flush=True)
time.sleep(600)
"""


def test_a_run_that_dies_while_it_is_watched_is_named(tmp_path):
    paths = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")])}
    trainer = subprocess.Popen(
        [sys.executable, "-c", TRAINER.format(root=str(ROOT)), str(tmp_path / "r")], stdout=subprocess.PIPE, text=True
    )
    try:
        assert trainer.stdout.readline() == "begun\n"
        watching = subprocess.Popen(
            [sys.executable, "-m", "emergence_train", "watch", str(tmp_path), "--seconds", "0.2"],
            stdout=subprocess.PIPE,
            env=os.environ | paths,
            text=True,
        )
        assert watching.stdout.readline().startswith("r: running  step 20/1000")
    finally:
        trainer.send_signal(signal.SIGKILL)
        trainer.wait()
    rest, _ = watching.communicate(timeout=60 * PATIENCE)
    assert "r: stopped" in rest and "its process was lost" in rest and watching.returncode == 0


COST = """
import json, sys
from pathlib import Path
seen = []
def audit(event, arguments):
    if event == "open" and str(arguments[0]).startswith(sys.argv[1]) and set("wax+") & set(str(arguments[1] or "")):
        seen.append(arguments[0])
    if event in ("fcntl.flock", "fcntl.lockf", "os.remove", "os.rename", "os.mkdir"):
        seen.append(event)
from emergence_train import cli
import pyarrow.parquet
def read():
    return int(Path("/proc/self/io").read_text().split("rchar:")[1].split()[0])
sys.addaudithook(audit)
before = read()
assert cli.main(["watch", sys.argv[1], "--once"]) == 0
assert cli.main(["runs", sys.argv[1]]) == 0
peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
print("COST", json.dumps([read() - before, peak * 1024, seen]))
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/io"), reason="Linux counts what a process reads")
def test_a_million_steps_cost_what_few_do(tmp_path):
    """Bytes read (with imports) and memory of both commands, on a log of 130 MB; nothing is written or locked."""
    run = run_files.write(tmp_path / "long", 1_000_000, every=25_000, total=2_000_000)
    assert (run / "metrics.jsonl").stat().st_size > 100e6
    done = subprocess.run(
        [sys.executable, "-c", COST, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")])},
        capture_output=True,
        text=True,
    )
    assert "1,000,000 of 2,000,000" in done.stdout, done.stderr
    read, peak, touched = json.loads(done.stdout.split("COST ")[1])
    assert read < 30e6 and peak < 350e6 and touched == [], (read, peak, touched)


@pytest.mark.parametrize("damage", ["no rows", "no bytes", "a directory"])
def test_a_table_without_losses_is_no_curve(tmp_path, damage):
    run = run_files.write(tmp_path / "run", 20, every=10)
    table = run / "positions" / "step-0000000020.parquet"
    if damage == "no rows":
        pq.write_table(pq.read_table(table).slice(0, 0), table)
    else:
        table.unlink()
        table.mkdir() if damage == "a directory" else table.touch()
    assert details(run).positions is None
