"""Stop, resume, damage: the numbers are those of a sweep that nothing happened to."""

import os
import signal
import subprocess
import sys
import time

import pytest

from emergence_train import cli
from emergence_train.errors import InputError, Stopped
from emergence_train.grokking import runner, tasks
from emergence_train.grokking.runner import Progress, Runner, stacks
from emergence_train.grokking.store import Store
from emergence_train.grokking.sweep import SweepPlan, read, runs_of
from emergence_train.grokking.train import train
from support import ROOT


def silent(line: str) -> None: ...


def store_of(path, out) -> tuple[Store, tasks.QuestionTable]:
    sweep = read(path)
    table = tasks.load(sweep.task, path.parent)
    runs = runs_of(sweep, len(table.answers))
    return Store(out, SweepPlan(path, sweep, runs, tasks.identity(sweep.task, table))), table


def curves(path, out, **keys):
    return train(path, out, silent, jobs=1, **keys).curves.reset_index(drop=True)


def test_a_stopped_sweep_resumes_bit_for_bit(sweep_file, tmp_path):
    path = sweep_file()
    whole = curves(path, tmp_path / "whole")
    store, table = store_of(path, tmp_path / "cut")
    (tmp_path / "cut").mkdir()
    job = stacks(store.plan)[0]
    for _ in range(3):  # a few updates at a time
        left = iter([False, True])
        assert not runner.train_stack(store, table, job, lambda left=left: next(left), lambda *at: None)
        assert store.state_path(job.runs).is_file()
    assert curves(path, tmp_path / "cut").equals(whole)
    assert list((tmp_path / "cut" / "stacks").iterdir()) == []


@pytest.mark.parametrize(
    "damage", [lambda data: data[:40], lambda data: data[:-50] + bytes([data[-50] ^ 1]) + data[-49:]]
)
def test_what_is_damaged_is_trained_again(sweep_file, tmp_path, damage):
    path = sweep_file(fractions=[0.6])
    whole = curves(path, tmp_path / "out")
    store, table = store_of(path, tmp_path / "out")
    job = stacks(store.plan)[0]
    for run in job.runs[:2]:
        store.curve_path(run).write_bytes(damage(store.curve_path(run).read_bytes()))
    runner.train_stack(store, table, job, lambda: True, lambda *at: None)
    state = store.state_path(job.runs)
    state.write_bytes(damage(state.read_bytes()))
    assert curves(path, tmp_path / "out").equals(whole)


def test_more_seeds_are_added_to_what_is_trained(sweep_file, tmp_path):
    few, many = sweep_file("few.yaml", seeds=[1, 2]), sweep_file("many.yaml", seeds=[1, 2, 3])
    first = curves(few, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "runs").iterdir()}
    both = curves(many, tmp_path / "out")
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert both[both["seed"] < 3].reset_index(drop=True).equals(first)
    assert both.equals(curves(many, tmp_path / "anew"))


def test_another_setting_is_another_run(sweep_file, tmp_path):
    first = curves(sweep_file("a.yaml"), tmp_path / "out")
    other = curves(sweep_file("b.yaml", training={"lr": 2e-2}), tmp_path / "out")
    assert not other.equals(first)
    assert other.equals(curves(sweep_file("b.yaml", training={"lr": 2e-2}), tmp_path / "anew"))


def table_of(answer) -> str:
    """36 questions of two symbols, numbers i and j; `answer`: of both."""
    return "a,b,answer\n" + "".join(f"a{i},b{j},{answer(i, j)}\n" for i in range(6) for j in range(6))


ONE, OTHER = table_of(lambda i, j: j % 2), table_of(lambda i, j: i * j % 3 % 2)


TABLE = {"kind": "table", "file": "t.csv", "question": ["a", "b"]}


def test_a_rewritten_table_is_trained_anew(sweep_file, tmp_path):
    """By its content, not its name; of the same number of questions, symbols and answers."""
    path, place = sweep_file(task=TABLE), tmp_path / "t.csv"
    place.write_text(ONE)
    first = curves(path, tmp_path / "out")
    place.write_text(OTHER)
    other = curves(path, tmp_path / "out")
    assert not other.equals(first) and other.equals(curves(path, tmp_path / "anew"))


def test_a_table_rewritten_after_a_stop_begins_anew(sweep_file, tmp_path):
    path, place = sweep_file(task=TABLE), tmp_path / "t.csv"
    place.write_text(ONE)
    store, table = store_of(path, tmp_path / "out")
    runner.train_stack(store, table, stacks(store.plan)[0], lambda: True, lambda *at: None)
    place.write_text(OTHER)
    assert curves(path, tmp_path / "out").equals(curves(path, tmp_path / "anew"))


def test_a_renamed_table_is_the_same(sweep_file, tmp_path):
    (tmp_path / "t.csv").write_text(ONE)
    first = curves(sweep_file(task=TABLE), tmp_path / "out")
    kept = sorted(path.name for path in (tmp_path / "out" / "runs").iterdir())
    (tmp_path / "t.csv").rename(tmp_path / "u.csv")
    assert curves(sweep_file(task=TABLE | {"file": "u.csv"}), tmp_path / "out").equals(first)
    assert sorted(path.name for path in (tmp_path / "out" / "runs").iterdir()) == kept


def test_stores_of_generated_tasks_keep_their_names(sweep_file, tmp_path):
    """The digest of a finished sweep of before, as it stands on disks."""
    store, _ = store_of(sweep_file(), tmp_path)
    assert store.curve_path(store.plan.runs[0]).name == "h8-f0.5-d1-s1-43d709f8e477015c.npy"


def test_settled_runs_leave_with_the_numbers_they_have(sweep_file, tmp_path):
    """A run ends with the same curve, cut off, as one that goes to the budget."""
    keys = {"fractions": [0.9], "seeds": [1, 2, 3], "models": {"m": {"kind": "mlp", "width": 16, "hidden": 32}}}
    keys["task"] = {"kind": "modular", "modulus": 5, "operation": "x"}
    long = curves(sweep_file("long.yaml", training={"updates": 300, "settle": None}, **keys), tmp_path / "long")
    short = curves(sweep_file("short.yaml", training={"updates": 300, "settle": 50}, **keys), tmp_path / "short")
    ends = short.groupby("run")["update"].max()
    assert ends.min() < 300 and (long.groupby("run")["update"].max() == 300).all()
    kept = long[long["update"] <= long["run"].map(ends)].reset_index(drop=True)
    assert kept.equals(short)


def test_a_sweep_is_trained_by_one_command_at_a_time(sweep_file, tmp_path):
    from emergence_train import files

    with files.lock(tmp_path / "out", busy="", other=""), pytest.raises(InputError, match="wait for it"):
        train(sweep_file(), tmp_path / "out", silent, jobs=1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_with_everything_saved(sweep_file, tmp_path, monkeypatch, number):
    path = sweep_file()
    store, table = store_of(path, tmp_path / "out")
    (tmp_path / "out").mkdir()
    sweeper = Runner(store, table, silent, jobs=1)
    monkeypatch.setattr(Progress, "at", lambda *of: os.kill(os.getpid(), number))
    with pytest.raises(Stopped, match="run the same command to resume"):
        sweeper.run()
    monkeypatch.undo()
    assert curves(path, tmp_path / "out").equals(curves(path, tmp_path / "whole"))


def test_stacks_hold_one_shape_and_at_most_their_size(sweep_file, tmp_path):
    path = sweep_file(seeds=[1, 2, 3, 4, 5], stack=2)
    store, _ = store_of(path, tmp_path)
    jobs = stacks(store.plan)
    assert [len(job.runs) for job in jobs] == [2, 2, 1, 2, 2, 1]
    assert sorted(run.name for job in jobs for run in job.runs) == sorted(run.name for run in store.plan.runs)
    assert all(len({(run.model, run.trained_on) for run in job.runs}) == 1 for job in jobs)


def test_progress_names_the_time_that_is_left(sweep_file, tmp_path):
    store, _ = store_of(sweep_file(), tmp_path)
    jobs = stacks(store.plan)
    progress = Progress(jobs, 100, silent)
    progress.at(jobs[0], 0, 3)
    progress.at(jobs[0], 50, 3)
    share = 0.5 * jobs[0].work() / sum(job.work() for job in jobs)
    expected = 60 * (1 - share) / share
    assert expected > 100  # seconds, shown in minutes
    assert progress.line(60.0) == f"0 of 6 runs done, {100 * share:.0f}%, {round(expected / 60)} min left"
    progress.done(jobs[0])
    assert progress.line(60.0).startswith("3 of 6 runs done")


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"seeds": [1, 1]}, "seeds: a value is listed twice, to six digits; list each once"),
        ({"weight_decays": [0.12345671, 0.12345672]}, "weight_decays: a value is listed twice, to six digits"),
        (
            {"fractions": [0.79, 0.5, 0.8, 0.7]},
            ".yaml: fractions: 0.79 and 0.8 are both 39 of 49 questions, so the same runs; keep one",
        ),
        (
            {
                "models": {
                    "a": {"kind": "mlp", "width": 16, "hidden": 16},
                    "b": {"kind": "mlp", "width": 16, "hidden": 16, "layers": 1},
                }
            },
            "models: 'a' and 'b' are the same model, so the same runs; keep one",
        ),
        (
            {"fractions": [0.001]},
            ".yaml: fractions: 0.001 of 49 questions leaves none to train on or to hold out; choose another",
        ),
        ({"models": {"m": {"kind": "mlp", "width": 16}}}, "models.m.mlp.hidden"),
        ({"models": {"m": {"kind": "rnn"}}}, "models.m"),
        ({"task": {"kind": "modular", "modulus": 9, "operation": "divide"}}, "prime modulus"),
        ({"task": {"kind": "table", "file": "none.csv"}}, "none.csv: cannot be read"),
        ({"training": {"betas": [0.9, 1.0]}}, "betas"),
        ({"step": 3}, "step: unknown key; known: name, task, models, "),
        ({"fractions": []}, "; see configs/grok for examples"),
        ({"stak": 3}, "stak: unknown key; did you mean 'stack'?"),
        ({"training": {"updats": 3}}, "training.updats: unknown key; did you mean 'updates'?"),
        (
            {"task": {"kind": "modular", "modulu": 7}},
            "task.modular.modulu: unknown key; did you mean 'modulus'?",
        ),
        (
            {"models": {"a": {"kind": "mlp", "widht": 16, "hidden": 16}}},
            "models.a.mlp.widht: unknown key; did you mean 'width'?",
        ),
        (
            {"models": {"a": {"kind": "transformer", "widht": 16, "layers": 1, "heads": 2}}},
            "models.a.transformer.widht: unknown key; did you mean 'width'?",
        ),
    ],
)
def test_a_wrong_sweep_is_one_line(sweep_file, tmp_path, capsys, keys, says):
    assert cli.main(["grok", str(sweep_file(**keys)), "--out", str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err
    assert says in message and len(message.strip().splitlines()) == 1


def test_seeds_of_many_digits_are_apart(sweep_file):
    sweep = read(sweep_file(seeds=[12345671, 12345672]))
    assert len({run.name for run in runs_of(sweep, 49)}) == 4


def test_a_stack_beyond_memory_is_one_line(sweep_file, tmp_path, capsys):
    """10^16 weights, which no machine has room for."""
    keys = {"models": {"m": {"kind": "mlp", "width": 10**6, "hidden": 10**10}}, "fractions": [0.5]}
    assert cli.main(["grok", str(sweep_file(**keys)), "--out", str(tmp_path / "out"), "--jobs", "1"]) == 2
    assert "models.m: 3 runs at once take more memory than there is; lower stack" in capsys.readouterr().err


def test_every_sweep_in_configs_is_read():
    files = sorted((ROOT / "configs" / "grok").glob("*.yaml"))
    assert len(files) >= 2
    for path in files:
        sweep = read(path)
        assert runs_of(sweep, len(tasks.load(sweep.task, path.parent).answers))
    assert len(runs_of(read(ROOT / "configs" / "grok" / "tiny.yaml"), 529)) >= 60


@pytest.mark.slow
def test_a_killed_sweep_of_two_processes_resumes_bit_for_bit(sweep_file, tmp_path):
    path = sweep_file(training={"updates": 6000, "settle": None})
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "emergence_train", "grok", str(path), "--out", str(out), "--jobs", "2"]

    def started(seconds: float) -> subprocess.Popen:
        """The command, so many seconds after it has begun to train."""
        process = subprocess.Popen(command, cwd=ROOT, start_new_session=True, stdout=subprocess.PIPE, text=True)
        assert "to train" in process.stdout.readline()
        time.sleep(seconds)
        return process

    for seconds in (0.5, 3, 5):
        process = started(seconds)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    stopped = started(4)
    stopped.terminate()  # the workers, which it started, save
    stopped.communicate()
    assert stopped.returncode in (75, 0)
    assert subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL).returncode == 0
    assert curves(path, out).equals(curves(path, tmp_path / "whole"))
