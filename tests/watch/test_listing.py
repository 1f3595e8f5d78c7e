"""The table of runs and what differs between them."""

import errno
import io
import itertools
import json
import os
from pathlib import Path

import pytest
import yaml
from rich.console import Console

import watch.run_files as run_files
from emergence_train import cli
from emergence_train.errors import InputError
from emergence_train.run_differences import differences, telling
from emergence_train.watch import listing
from emergence_train.watch.listing import differing, list_runs, table

CONFIG = {
    "name": "",
    "seed": 1,
    "model": {"width": 64},
    "training": {"schedule": {"lr": 0.01}, "optimizer": {"kind": "adamw"}},
}


def runs_of(folder, changes):
    for number, change in enumerate(changes):
        run = run_files.write(folder / f"run{number}", 60, every=20, total=100, name=f"run{number}")
        tree = json.loads(json.dumps(CONFIG)) | {"name": f"run{number}"}
        for dotted, value in change.items():
            node = tree
            for key in dotted.split(".")[:-1]:
                node = node.setdefault(key, {})
            node[dotted.split(".")[-1]] = value
        (run / "config.yaml").write_text(yaml.safe_dump(tree))
    return sorted(folder.iterdir())


def test_few_keys_tell_runs_apart():
    """The first three keys of a ladder are all of the model: what else differs has to be among those that are shown."""
    values = [
        {"ffn": 3 * width, "heads": 2, "width": width, "decay": decay, "seed": seed}
        for width, decay, seed in itertools.product((8, 16, 32), (10, 20), (1, 2))
    ]
    assert telling(values) == ["ffn", "decay", "seed"] and telling([{}, {}]) == []
    assert differing(values[0], telling(values)) == "ffn 24, decay 10, seed 1, 2 more (--json)"


def test_runs_without_a_terminal_have_a_line_each(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    runs_of(tmp_path, [{"seed": seed, "model.kind": f"a-kind-with-a-long-name-{seed}"} for seed in (1, 2)])
    assert cli.main(["runs", str(tmp_path)]) == 0
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 3 and lines[1].startswith("run0 ") and lines[1].endswith("a-kind-with-a-long-name-1, seed 1")


def test_only_what_differs_is_named_as_short_as_is_clear(tmp_path):
    changes = [
        {"training.optimizer.lr": 2},
        {"training.schedule.lr": 0.02},
        {"training.optimizer.lr": 1, "samples.tokens": 9},
    ]
    runs = runs_of(tmp_path, changes)
    assert differences(runs) == [
        {"schedule.lr": 0.01, "optimizer.lr": 2},
        {"schedule.lr": 0.02, "optimizer.lr": "-"},
        {"schedule.lr": 0.01, "optimizer.lr": 1},
    ]
    (runs[0] / "config.yaml").write_text("{")
    assert differences(runs)[0] == {"lr": "-"}, "a file that cannot be read hides nothing of the others"


def test_runs_alike_differ_in_nothing(tmp_path):
    assert differences(runs_of(tmp_path, [{}, {"data.path": "elsewhere"}])) == [{}, {}]


def test_an_imported_model_does_not_hide_what_was_changed(tmp_path, capsys):
    runs = runs_of(tmp_path, [{"seed": 1}, {"seed": 2}, {"imported.kind": "llama", "model.width": 9, "data.x": 1}])
    assert [different for _, different in list_runs(runs)] == [{"seed": 1}, {"seed": 2}, {}]
    assert cli.main(["watch", str(tmp_path), "--once"]) == 0
    printed = capsys.readouterr().out
    assert "seed 1" in printed and "seed 2" in printed and "width" not in printed


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_fits_and_has_every_run(tmp_path, width):
    runs_of(tmp_path, [{"seed": seed, "training.schedule.lr": seed / 100} for seed in range(1, 6)])
    text = io.StringIO()
    console = Console(file=text, width=width, markup=False)
    console.print(table(list_runs([tmp_path]), console))
    lines = text.getvalue().splitlines()
    assert max(map(len, lines)) <= width and "lr 0.01" in text.getvalue() and "seed 5" in text.getvalue()
    assert all(any(line.startswith(f"run{k} ") and "60/100" in line for line in lines) for k in range(5))
    interval = "[2.40, 2.70]" if width == 80 else "[2.400, 2.700]"
    assert text.getvalue().count(interval) == 5


def test_the_command_prints_a_table_or_json(tmp_path, capsys):
    runs_of(tmp_path, [{}, {"seed": 2}])
    assert cli.main(["runs", str(tmp_path)]) == 0
    assert "run1" in capsys.readouterr().out
    assert cli.main(["runs", str(tmp_path), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["runs"]
    assert [row["differs"] for row in rows] == [{"seed": 1}, {"seed": 2}]
    assert {"name", "state", "step", "total_steps", "tokens", "loss", "forecast", "tokens_per_second"} <= set(rows[0])
    assert cli.main(["runs", str(tmp_path / "none")]) == 2
    assert "no such directory" in capsys.readouterr().err


@pytest.mark.parametrize("width", [60, 80])
def test_a_narrow_terminal_keeps_names_whole(tmp_path, width):
    """Below 72 columns what differs is left to --json, and said so; a column without any value is left out."""
    name = "0.05m-1.024m-decay-s"
    for number in (1, 2):
        run = run_files.write(tmp_path / f"{name}{number}", 20, every=10, name=f"{name}{number}")
        (run / "config.yaml").write_text(f"training: {{schedule: {{lr: 0.00{number}}}}}\n")
    console = Console(file=io.StringIO(), width=width)
    console.print(table(list_runs([tmp_path]), console))
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= width and "end, 95%" not in lines[0]
    assert f"{name}1" in lines[1] and ("--json" in lines[-1]) == (width == 60)
    assert ("lr 0.001" in " ".join(lines)) == (width == 80)


def test_a_parent_that_is_a_pipe_is_none(tmp_path, capsys, monkeypatch):
    """Nobody writes to it, and `runs` waited for ever."""
    monkeypatch.setattr("emergence_train.input_files.WRITER_SECONDS", 0.1)
    for run in runs_of(tmp_path, [{"seed": 1}, {"seed": 2}]):
        os.mkfifo(run / "parent.json")
    assert cli.main(["runs", str(tmp_path)]) == 0
    assert "seed 2" in capsys.readouterr().out


def test_runs_that_may_not_be_read_are_named(tmp_path, monkeypatch, capsys):
    """Another user's in a group's directory: its log, or the directory itself. The others are listed."""
    runs = runs_of(tmp_path, [{"seed": seed} for seed in range(3)])
    access, is_file, read = os.access, Path.is_file, listing.progress

    def refuse(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    def progress(run, name=None):
        if run == runs[1]:
            raise InputError(f"{run}: is not a run that has begun (metrics.jsonl: Permission denied)")
        return read(run, name)

    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != runs[2] and access(path, mode))
    monkeypatch.setattr(Path, "is_file", lambda path: refuse(path) if path.parent == runs[2] else is_file(path))
    monkeypatch.setattr(listing, "progress", progress)
    (runs[2] / "metrics.jsonl").unlink()
    assert cli.main(["runs", str(tmp_path), "--json"]) == 0
    out, err = capsys.readouterr()
    assert [run["name"] for run in json.loads(out)["runs"]] == ["run0"]
    assert [line.split(": is not")[0] for line in err.splitlines()] == [f"left out: {run}" for run in runs[1:]]
    for run in runs[1:]:
        assert cli.main(["runs", str(run)]) == 2
        assert f"{run}: is not a run that has begun" in capsys.readouterr().err
