"""The command line: exit codes, one-line errors, help, JSON."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from emergence_train import cli
from emergence_train.errors import describe
from report.test_page import write_run
from support import ROOT, command, run_python


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: VERB"),
        (["trian", "x"], "invalid choice: 'trian'"),
        (["train"], "required: CONFIG"),
        (["train", "nowhere.yaml"], "nowhere.yaml: no such configuration file"),
        (["report", "nowhere"], "nowhere: no such file"),
        (["report", "a", "--uot", "x"], "unrecognized arguments: --uot"),
        (["analyze", "temporal", "nowhere.csv"], "nowhere.csv: no such file"),
    ],
)
def test_wrong_use_is_one_line_and_exit_code_2(arguments, message):
    done = command(*arguments)
    assert done.returncode == 2 and message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and "Traceback" not in done.stderr


def test_a_system_without_unix_modules_is_an_error(config_file, tmp_path, monkeypatch, capsys):
    import sys

    from emergence_train import cli

    monkeypatch.setitem(sys.modules, "fcntl", None)
    assert cli.main(["prepare", str(config_file), f"data.path={tmp_path / 'new'}"]) == 2
    assert "prepare needs Linux or macOS" in capsys.readouterr().err


def test_a_failure_in_reading_the_arguments_is_one_line(monkeypatch, capsys):
    def fail(*_):
        raise ValueError("wrong words")

    monkeypatch.setattr(cli.Commands, "parse_args", fail)
    assert cli.main(["runs"]) == 1
    assert "ValueError: wrong words" in capsys.readouterr().err


def test_a_rank_without_its_file_of_arguments_ends_all(config_file, tmp_path):
    """None is left waiting for it: that would end with 76, and the scheduler would start the job again for ever."""
    (tmp_path / "0.args").write_text(f"{config_file}\n")
    (tmp_path / "start.py").write_text(
        "import os, pathlib\n"
        "from emergence_train import cli\n"
        "place = pathlib.Path(__file__).parent / os.environ['RANK']\n"
        "place.with_suffix('.code').write_text(str(cli.main(['train', f'@{place}.args'])))\n"
    )
    done = run_python(str(tmp_path / "start.py"), processes=2)
    assert [(tmp_path / f"{rank}.code").read_text() for rank in (0, 1)] == ["2", "2"], done.stderr
    (line,) = done.stderr.splitlines()
    assert "1.args: the file of arguments cannot be read (No such file" in line


def test_debug_shows_the_traceback():
    done = command("train", "nowhere.yaml", "--debug")
    assert done.returncode == 2 and "Traceback" in done.stderr


def test_an_interrupt_names_a_remedy_of_every_verb():
    """Analyses and `evaluate` have no state of their own to resume from."""
    assert describe(KeyboardInterrupt()) == "interrupted; run the same command again"


def test_help_names_every_verb():
    done = command("--help")
    assert done.returncode == 0
    for verb in ("prepare", "train", "report", "analyze", "bench", "doctor"):
        assert f"    {verb}" in done.stdout


def test_no_verb_shows_the_help_and_version_the_version(capsys):
    from emergence_train import __version__, cli

    with pytest.raises(SystemExit) as ended:
        cli.main([])
    shown = capsys.readouterr()
    assert ended.value.code == 2 and "    train " in shown.out and "required: VERB" in shown.err
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert ended.value.code == 0 and capsys.readouterr().out == f"emergence-train {__version__}\n"


def test_doctor_says_what_will_be_used(monkeypatch):
    report = json.loads(command("doctor", "--json").stdout)
    assert report["kernels"]["fp8_linear"]["chosen"] == "torch" and report["versions"]["deepspeed"]
    assert report["kernels"]["position_loss"]["chosen"] in ("torch", "cpu") and set(report["compiled"]) == {
        "cpu",
        "cuda",
    }
    monkeypatch.setenv("EMERGENCE_CPU_LIBRARY", "nowhere.so")
    plain = command("doctor")
    assert plain.returncode == 0 and "position_loss: torch" in plain.stdout
    assert "csrc/ for cpu: not available: EMERGENCE_CPU_LIBRARY names no file: nowhere.so" in plain.stdout


def test_the_whole_way_ends_in_json_and_a_page(config_file, tmp_path):
    """prepare, train, analyze, report as a user types them; with --json the output is one JSON document."""
    fresh = [str(config_file), f"data.path={tmp_path / 'data'}", "checkpoints.every_tokens=512"]
    prepared = command("prepare", *fresh, "--json")
    assert json.loads(prepared.stdout) == {"path": str(tmp_path / "data")}, prepared.stderr
    trained = command("train", *fresh, "--json")
    run = json.loads(trained.stdout)["run"]
    analysed = command("analyze", "temporal", run, "--out", str(tmp_path / "analysis"), "--json")
    assert analysed.returncode == 0, analysed.stderr
    assert {entry["run"] for entry in json.loads(analysed.stdout)["runs"]} == {"run"}
    assert (tmp_path / "analysis" / "result.json").is_file()
    page = command("report", run, "--out", str(tmp_path / "page"))
    assert page.returncode == 0 and (tmp_path / "page" / "report.html").is_file(), page.stderr


def test_overrides_may_follow_options():
    given = cli._parser().parse_args(["train", "a.yaml", "x.y=1", "--from", "runs/a", "name=b", "z=2"])
    assert (given.parent, given.overrides) == ("runs/a", ["x.y=1", "name=b", "z=2"])


@pytest.mark.parametrize(
    "argv", [["train", "a.yaml", "--json", "stray"], ["doctor", "--json", "a=b"], ["train", "a", "--x=1"]]
)
def test_other_words_after_options_are_refused(argv, capsys):
    with pytest.raises(SystemExit) as stop:
        cli._parser().parse_args(argv)
    assert stop.value.code == 2
    assert "unrecognized arguments" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EMFILE, "Too many open files"),
        RuntimeError("can't start new thread"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."),
        MemoryError(),
    ],
)
def test_a_limit_of_the_machine_is_no_bug(error):
    assert "a bug" not in describe(error) and "ulimit" in describe(error)


def test_a_run_without_losses_is_left_out_beside_others(tmp_path, capsys):
    whole, diverged = (write_run(tmp_path, name, positions=4) for name in ("whole", "diverged"))
    for table in (diverged / "positions").iterdir():
        pq.write_table(pq.read_table(table).slice(0, 0), table)
    for words in (["analyze", "temporal"], ["report", "--out", str(tmp_path / "page")]):
        assert cli.main([*words, str(whole), str(diverged)]) == 0
        assert f"{diverged}: left out, its checkpoints have no losses" in capsys.readouterr().err
        assert cli.main([*words, str(diverged)]) == 2
        assert capsys.readouterr().err.count("\n") == 1


def shell(command: str, **more) -> subprocess.CompletedProcess:
    """`emergence-train` as $TRAIN in a shell, which closes and redirects streams."""
    variables = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}", "OMP_NUM_THREADS": "1"}
    variables["TRAIN"] = f"{sys.executable} -m emergence_train"
    return subprocess.run(["sh", "-c", command], env=variables, capture_output=True, text=True, timeout=300, **more)


def test_closed_streams_lead_nowhere(config_file, tmp_path):
    """A daemon's; and no file of the run has the number of one, into which what C libraries print would go."""
    done = shell(f"$TRAIN train {config_file} <&- >&- 2>&-; echo $?")
    assert done.stdout == "0\n"
    assert shell("$TRAIN analyze temporal runs/run --out out >&-; echo $? >&2", cwd=tmp_path).stderr.endswith("0\n")
    assert shell("$TRAIN runs runs >&-; echo $? >&2", cwd=tmp_path).stderr == "0\n"
    assert shell("$TRAIN runs nowhere 2>&-; echo $?", cwd=tmp_path).stdout == "2\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="wants a file that is always full")
@pytest.mark.parametrize(
    "command",
    [
        "report story.csv --tokens-per-step 1000 --out page",
        "analyze temporal story.csv",
        "analyze temporal story.csv --json",
    ],
)
def test_a_full_standard_output_is_named(command, tmp_path):
    rows = "".join(f"{k},{2 + 3 * k**-0.5:.4f}\n" for k in range(10, 2000, 20))
    (tmp_path / "story.csv").write_text(f"step,loss\n{rows}")
    done = shell(f"$TRAIN {command} > /dev/full", cwd=tmp_path)
    assert done.returncode == 1
    *_, last = done.stderr.splitlines()
    assert last.endswith(
        "standard output: No space left on device; send it elsewhere. Files that the command has written are whole"
    )
