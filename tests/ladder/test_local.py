"""Who starts what and when, by a stand-in for training; and a ladder of three real runs."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from emergence_train import cli
from emergence_train.errors import RunError
from emergence_train.ladder import local, progress
from emergence_train.ladder.file import read
from emergence_train.ladder.local import Machine, Runner, program, rank_variables, this_machine
from emergence_train.recorder.metrics import Metrics
from emergence_train.recorder.sessions import name_process
from emergence_train.watch import progress as watched
from ladder.test_file import DECAY, STABLE
from support import ROOT, command, until
from watch import run_files

STAND_IN = [sys.executable, str(Path(__file__).with_name("stand_in.py"))]


def run(path: Path, machine: Machine | None = None, lines: list[str] | None = None) -> list[str]:
    lines = [] if lines is None else lines
    Runner(read(path), machine or Machine([], 4), lines.append, STAND_IN).run()
    return lines


def starts(out: Path, name: str) -> list[str]:
    path = out / name / "starts"
    return path.read_text().splitlines() if path.exists() else []


def states(path: Path) -> dict[str, str]:
    ladder = read(path)
    notes = progress.read_notes(ladder)
    return {row.run: progress.progress(ladder, row, notes.get(row.run, {}), {}).state for row in ladder.rows}


def test_every_run_is_started_once(ladder_file, behave, tmp_path):
    behave()
    path = ladder_file(seeds=[1, 2, 3])
    run(path)
    run(path)  # nothing is left
    assert [len(starts(tmp_path / "rungs", name)) for name in ("a-s1", "a-s2", "a-s3")] == [1, 1, 1]
    assert states(path) == dict.fromkeys(("a-s1", "a-s2", "a-s3"), "done")
    assert json.loads((tmp_path / "rungs" / "ladder.json").read_text())["runs"] == ["a-s1", "a-s2", "a-s3"]


@pytest.mark.parametrize(
    "machine, at_once", [(Machine([], 2), 2), (Machine([], 9, jobs=1), 1), (Machine(["0", "5"], 1), 2)]
)
def test_as_many_runs_at_a_time_as_have_room(ladder_file, behave, tmp_path, machine, at_once):
    """Never more than `at_once` of four, and so many at least once; each GPU has one run at a time."""
    names = [f"a-s{seed}" for seed in (1, 2, 3, 4)]
    behave(**{name: {"seconds": 0.5} for name in names})
    run(ladder_file(seeds=[1, 2, 3, 4]), machine)
    out, changes = tmp_path / "rungs", []
    for name in names:
        begin, device, *_ = starts(out, name)[0].split(" ", 2)
        assert device in (machine.devices or [""])
        changes += [(float(begin), 1), (float((out / name / "ends").read_text()), -1)]
    running = [sum(change for _, change in sorted(changes)[: k + 1]) for k in range(len(changes))]
    assert max(running) == at_once


def test_a_decay_waits_for_its_parents_state(ladder_file, behave, tmp_path):
    path = ladder_file(tokens=[4096], schedules=STABLE | DECAY)
    behave(**{"a-stable": {"seconds": 0.5}})
    assert states(path)["a-decay"] == "waiting"
    run(path)
    out = tmp_path / "rungs"
    assert float(starts(out, "a-decay")[0].split()[0]) > float((out / "a-stable" / "ends").read_text()) - 0.1
    assert starts(out, "a-decay")[0].endswith(f"--from {out}/a-stable@12")


def test_a_failure_does_not_stop_the_others(ladder_file, behave, tmp_path):
    behave(**{"a-s1": {"codes": [1]}})
    path = ladder_file(seeds=[1, 2])
    with pytest.raises(RunError, match="1 of 2 runs failed, a-s1 with exit code 1"):
        run(path, Machine([], 1))
    assert states(path) == {"a-s1": "failed", "a-s2": "done"}
    run(path)  # the same command tries it again
    assert states(path) == {"a-s1": "done", "a-s2": "done"}


@pytest.mark.parametrize("name", ["positions/step-0000000004.parquet", "checkpoints/step-0000000004/manifest.json"])
def test_a_finished_run_without_its_end_is_started_once(ladder_file, behave, tmp_path, name):
    """As a file that somebody deleted, which the run, being finished, does not write again: nothing would end that."""
    behave(a={"unwritten": [name]})
    with pytest.raises(
        RunError, match=rf"1 of 1 runs failed, a without .*/a/{name}: restore that, or move the run away"
    ):
        run(ladder_file())
    assert len(starts(tmp_path / "rungs", "a")) == 1
    behave()
    (tmp_path / "rungs" / "a").rename(tmp_path / "away")
    run(ladder_file())
    assert states(ladder_file()) == {"a": "done"}


def test_a_variable_in_out_is_one_directory_for_all(ladder_file, behave, tmp_path, monkeypatch):
    monkeypatch.setenv("PLACE", "here")
    behave()
    path = ladder_file(out=str(tmp_path / "${PLACE}"))
    run(path)
    assert len(starts(tmp_path / "here", "a")) == 1 and states(path) == {"a": "done"}
    assert (tmp_path / "here" / "ladder.json").is_file() and not (tmp_path / "${PLACE}").exists()


OTHER_SETTINGS = (
    ({"tokens": [512]}, "training.tokens = 1024, not 512"),
    ({"set": {"training.threads": 1, "training.schedule.lr": 0.5}}, "training.schedule.lr = 0.01, not 0.5"),
    ({"set": {"training.threads": 1, "model.preset": "tiny-0.2m"}}, "model."),
    ({"set": {"training.threads": 1, "data.ood": []}}, "data.ood of 1 entries, not 0"),
    ({"set": {"training.threads": 2, "logging.console_seconds": 9}}, None),
)


def test_a_done_run_of_other_settings_is_no_done_run(ladder_file, capsys):
    """What may change in a run may change in a ladder; anything else is refused, as `train` does, by --status too."""
    assert cli.main(["ladder", str(ladder_file(set={"training.threads": 1, "training.schedule.lr": 0.01}))]) == 0
    capsys.readouterr()
    for keys, says in OTHER_SETTINGS:
        for more in (["--status"], []):
            assert cli.main(["ladder", str(ladder_file(**keys)), *more]) == (2 if says else 0), keys
            printed = capsys.readouterr().err
            assert says is None or (
                f"rungs/a: is a run with {says}" in printed and "; give the ladder another out" in printed
            ), keys


def test_a_done_run_of_a_preset_is_done(ladder_file, capsys):
    """Its file has what the preset stands for, and what its start resolved."""
    path = ladder_file(set={"training.threads": 1, "model.preset": "tiny-0.05m"})
    assert cli.main(["ladder", str(path)]) == 0
    capsys.readouterr()
    assert cli.main(["ladder", str(path), "--status"]) == 0 and "done" in capsys.readouterr().out


def test_a_failed_parent_leaves_its_decays_out(ladder_file, behave, tmp_path):
    behave(**{"a-stable": {"codes": [2]}})
    with pytest.raises(RunError, match="1 of 2 runs failed, a-stable"):
        run(ladder_file(tokens=[4096], schedules=STABLE | DECAY))
    assert not starts(tmp_path / "rungs", "a-decay")


@pytest.mark.parametrize("code", [76, -9])
def test_a_lost_process_is_started_again(ladder_file, behave, tmp_path, code):
    behave(a={"codes": [code, code]})
    run(ladder_file())
    assert len(starts(tmp_path / "rungs", "a")) == 3
    behave(a={"codes": [code] * 9})
    (tmp_path / "rungs" / "a" / "positions" / "step-0000000004.parquet").unlink()
    with pytest.raises(RunError, match=f"exit code {code}"):
        run(ladder_file())
    assert len(starts(tmp_path / "rungs", "a")) == 3 + 4, "three times again, no more"


def test_a_lost_rank_is_started_again(ladder_file, behave, tmp_path):
    """Rank 1 is killed and the other says so; after an error of its own the run is not started again."""
    behave(a={"codes": [[76, -9], [-9, -9]]})
    machine = Machine(["3", "4"], 1)
    assert run(ladder_file(gpus=2), machine).count("a: its process was lost (exit code 76); started again") == 1
    both = [starts(tmp_path / "rungs", "a"), (tmp_path / "rungs" / "a" / "starts-1").read_text().splitlines()]
    assert [len(lines) for lines in both] == [3, 3] and all(line.split(" ")[1] == "3,4" for line in sum(both, []))
    behave(a={"codes": [[76, 2]] * 9})
    (tmp_path / "rungs" / "a" / "positions" / "step-0000000004.parquet").unlink()
    (tmp_path / "rungs" / "a" / "starts").unlink()
    (tmp_path / "rungs" / "a" / "starts-1").unlink()
    with pytest.raises(RunError, match="a with exit code 2 "):
        run(ladder_file(gpus=2), machine)


@pytest.mark.parametrize("code, tries", [(2, 1), (-9, 4)])
def test_ranks_whose_other_has_failed_are_ended(ladder_file, behave, tmp_path, monkeypatch, code, tries):
    """Before the ranks have met, nothing else ends the wait for it."""
    monkeypatch.setattr(local, "ALONE", 0.5)
    behave(a={"seconds": [60, 0], "codes": [[0, code]] * 9})
    with pytest.raises(RunError, match=f"a with exit code {code} "):
        run(ladder_file(gpus=2), Machine(["0", "1"], 1))
    assert len(starts(tmp_path / "rungs", "a")) == tries


def test_a_halted_rank_is_killed(ladder_file, behave, tmp_path, monkeypatch):
    """It hears no SIGTERM; its run, of which the other rank has said that it is lost, is started again."""
    monkeypatch.setattr(local, "ALONE", 0.5)
    behave(a={"codes": [[76, -signal.SIGSTOP]]})
    run(ladder_file(gpus=2), Machine(["0", "1"], 1))
    assert len(starts(tmp_path / "rungs", "a")) == 2 and states(ladder_file(gpus=2)) == {"a": "done"}


def test_each_process_of_a_run_has_its_rank():
    assert rank_variables(1) == [{}]
    ranks = rank_variables(3)
    assert [[rank["RANK"], rank["LOCAL_RANK"], rank["WORLD_SIZE"]] for rank in ranks] == [
        [str(k)] * 2 + ["3"] for k in range(3)
    ]
    assert len({(rank["MASTER_ADDR"], rank["MASTER_PORT"]) for rank in ranks}) == 1


def test_a_parent_without_a_state_is_a_failure(ladder_file, behave, tmp_path):
    """It is done and would never save that again, so nothing would end the waiting."""
    path = ladder_file(tokens=[4096], schedules=STABLE | DECAY)
    behave(**{"a-decay": {"codes": [1]}})
    with pytest.raises(RunError):
        run(path)
    state = tmp_path / "rungs" / "a-stable" / "checkpoints" / "step-0000000012"
    (state / "manifest.json").unlink()
    says = f"a-decay without {state}: restore that, or move a-stable away, which is then trained again"
    with pytest.raises(RunError, match=f"1 of 2 runs failed, {says}"):
        run(path)
    ladder = read(path)
    assert progress.progress(ladder, ladder.rows[1], {}, {}).note in says
    (tmp_path / "rungs" / "a-stable").rename(tmp_path / "away")
    behave()
    run(path)
    assert states(path) == {"a-stable": "done", "a-decay": "done"}


def test_notes_that_no_disk_takes_end_no_run(ladder_file, behave, tmp_path, monkeypatch):
    """Two notes are lost; the next one has them with it."""
    wrote, left = local.write_notes, [2]

    def write(ladder, notes) -> None:
        left[0] -= 1
        if left[0] >= 0:
            raise RunError("starts.json: no space left on the disk")
        wrote(ladder, notes)

    monkeypatch.setattr(local, "write_notes", write)
    behave(**{"a-s1": {"codes": [3]}, "a-s2": {"seconds": 1}})
    path, lines = ladder_file(seeds=[1, 2]), []
    with pytest.raises(RunError, match="a-s1 with exit code 3"):
        run(path, lines=lines)
    assert states(path) == {"a-s1": "failed", "a-s2": "done"}
    assert sum("no space left" in line for line in lines) == 1


def test_a_run_that_cannot_start_stops_no_other(ladder_file, behave, tmp_path):
    """There is no room for its log, say: here a directory stands in its place."""
    (tmp_path / "rungs" / "ladder-logs" / "a-s1.log").mkdir(parents=True)
    behave()
    path = ladder_file(seeds=[1, 2])
    with pytest.raises(RunError, match="1 of 2 runs failed, a-s1 to start"):
        run(path, Machine([], 1))
    assert states(path)["a-s2"] == "done"


def test_a_run_that_another_trains_is_waited_for(ladder_file, behave, tmp_path):
    """As one that was started by hand: that is said once, and its state is what it does."""
    directory, path, lines = tmp_path / "rungs" / "a", ladder_file(), []
    directory.mkdir(parents=True)
    behave()
    with open(directory / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert states(path) == {"a": "running"}
        threading.Timer(1, fcntl.flock, (file, fcntl.LOCK_UN)).start()
        run(path, lines=lines)
    assert lines == ["a: another process trains it; waiting", "a: started", "a: done"]


@pytest.mark.parametrize("wrote", [2.5, 0.0])
def test_a_run_of_another_machine_is_waited_for(ladder_file, behave, tmp_path, monkeypatch, wrote):
    """Its lock does not reach here, as on some shared disks. While it writes rows it is left alone; a container that came back
    under another name has written none for a while, and nobody has to tell the ladder that it is gone."""
    monkeypatch.setattr(watched, "QUIET_SECONDS", 1.5)
    path, lines, begun = ladder_file(), [], time.time()
    directory = run_files.write(tmp_path / "rungs" / "a", 2, every=1, total=4)
    run_files.session(directory, host="another", pid=1)
    progress.write_notes(read(path), {"a": {"host": "another", "pid": 1}})

    def write() -> None:
        while time.time() < begun + wrote:
            with open(directory / "metrics.jsonl", "a") as file:
                file.write("\n")
            time.sleep(0.1)

    if wrote == 0:
        for file in ("metrics.jsonl", "environment.json"):
            os.utime(directory / file, (begun - 700, begun - 700))
    threading.Thread(target=write, daemon=True).start()
    behave()
    run(path, lines=lines)
    (started,) = (float(line.split()[0]) for line in starts(tmp_path / "rungs", "a"))
    assert started > begun + wrote + (1.4 if wrote else 0) and started < begun + wrote + 20
    waits = [line for line in lines if "waiting" in line]
    assert len(waits) == bool(wrote) and all("a: another wrote to it" in line for line in waits)


def test_a_run_that_is_waited_for_is_seldom_read(ladder_file, behave, monkeypatch):
    """Thirty of another machine took a quarter of a CPU."""
    asked, until = [], time.time() + 3

    def trainer(*_) -> str | None:
        asked.append(time.time())
        return "another trains it" if time.time() < until else None

    monkeypatch.setattr(local, "trainer", trainer)
    monkeypatch.setattr(local, "HELD_POLL", 1.0)
    behave()
    assert run(ladder_file())[0] == "a: another trains it; waiting"
    assert all(later - before > 0.9 for before, later in zip(asked, asked[1:])) and len(asked) in (3, 4, 5)


def test_an_orphan_that_is_still_starting_is_waited_for(ladder_file, behave, tmp_path):
    """Of a killed ladder, before it has the lock: a second start would be refused, and the run taken for a failed one."""
    path, lines = ladder_file(), []
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(2)"]) as orphan:
        progress.write_notes(read(path), {"a": name_process(orphan.pid)})
        behave()
        run(path, lines=lines)
        assert orphan.poll() is not None
    assert lines[0] == "a: another process trains it; waiting"


def test_slurm_is_not_asked_for_runs_that_are_done(ladder_file, behave, tmp_path, monkeypatch):
    behave()
    path = ladder_file()
    run(path)
    progress.write_notes(read(path), {"a": {"job": "7"}})
    monkeypatch.setattr("emergence_train.ladder.queue.queued", lambda: pytest.fail("asked"))
    run(path)


def test_devices_are_those_of_the_environment(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, 5,")
    assert this_machine(None).devices == ["3", "5"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert this_machine(2) == Machine([], len(os.sched_getaffinity(0)), 2)


@pytest.mark.slow
def test_three_real_runs_and_both_analyses(ladder_file, tmp_path, capsys):
    """A stable run and two decays from it by one command; the analyses take the ladder's file or its directory."""
    small = {"training.threads": 1, "tasks": [{"task": "copying", "items": 4}]}
    path = ladder_file(tokens=[1536, 2048], set=small, schedules=STABLE | DECAY)
    done = command("ladder", str(path), "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["runs"]
    assert [(row["run"], row["state"]) for row in rows] == [
        ("a-stable", "done"),
        ("a-1.536k-decay", "done"),
        ("a-2.048k-decay", "done"),
    ]
    parent = json.loads((tmp_path / "rungs" / "a-1.536k-decay" / "parent.json").read_text())
    assert (parent["run"], parent["step"]) == ("a-stable", 4)
    for analysis, given in (("temporal", path), ("emergence", tmp_path / "rungs")):
        assert cli.main(["analyze", analysis, str(given), "--json"]) == 0
        shown = capsys.readouterr().out
        assert json.loads(shown)[{"temporal": "runs", "emergence": "tasks"}[analysis]]


@pytest.mark.slow
def test_twelve_runs_killed_twice_are_those_of_one_start(config_file, tmp_path):
    """configs/ladders/tiny.yaml on smaller data: killed (SIGKILL) and stopped (SIGTERM) on the way, then both analyses.

    Losses are those of the same ladder in one go.
    """
    tree = yaml.safe_load((ROOT / "configs" / "ladders" / "tiny.yaml").read_text())
    tree |= {"config": str(config_file), "tokens": [6144, 12_288]}
    tree["set"] = {"training.threads": 1, "tasks": [{"task": "copying", "items": 8}], "training.optimizer.clip": 0.5}
    for width, size in zip((16, 32), tree["sizes"].values()):
        size["set"] = {"model.width": width}
    paths = {}
    for name in ("killed", "whole"):
        paths[name] = tmp_path / f"{name}.yaml"
        paths[name].write_text(yaml.safe_dump(tree | {"out": str(tmp_path / name)}))
    for number, share in ((signal.SIGKILL, 0.2), (signal.SIGTERM, 0.6)):
        started = subprocess.Popen(
            [*program(), "ladder", str(paths["killed"])], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        until(lambda share=share: done_share(paths["killed"]) >= share, 600)
        started.send_signal(number)
        _, message = started.communicate(timeout=120)
        assert started.returncode == (-9 if number == signal.SIGKILL else 75), message
        assert done_share(paths["killed"]) < 1
    for path in paths.values():
        finished = subprocess.run([*program(), "ladder", str(path), "--json"], capture_output=True, text=True)
        assert finished.returncode == 0, finished.stderr
        assert [row["state"] for row in json.loads(finished.stdout)["runs"]] == ["done"] * 12
    for row in read(paths["whole"]).rows:
        columns = [Metrics.read(tmp_path / name / row.run) for name in ("killed", "whole")]
        assert [len(metrics.train("step")) for metrics in columns] == [row.total_steps - row.parent_step] * 2
        assert np.array_equal(columns[0].train("loss"), columns[1].train("loss")), row.run
    for analysis in ("temporal", "emergence"):
        shown = subprocess.run(
            [*program(), "analyze", analysis, str(paths["killed"]), "--json"], capture_output=True, text=True
        )
        assert shown.returncode == 0, shown.stderr


def done_share(path: Path) -> float:
    ladder = read(path)
    return sum(progress.done(ladder, row) for row in ladder.rows) / len(ladder.rows)


def test_the_status_of_a_run_that_diverged(ladder_file):
    """Its validations have no loss: its state is told, and those of the others."""
    ladder = read(ladder_file())
    (row,) = ladder.rows
    run_files.write(ladder.directory(row.run), 2, every=2, extra={2: [{"kind": "validation", "loss": {}}]})
    with open(ladder.directory(row.run) / "metrics.jsonl", "a") as file:
        file.write('{"kind": "validation", "step": 2, "tokens": 2, "loss": {}}\n')
    shown = progress.progress(ladder, row, {"code": 1}, {})
    assert (shown.state, shown.step) == ("failed", 2) and shown.loss == pytest.approx(run_files.loss_at(2) + 0.1)
