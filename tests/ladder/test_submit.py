"""A ladder as jobs of Slurm: what sbatch is given, by a stand-in for it."""

import fcntl
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from emergence_train import cli
from emergence_train.errors import InputError, RunError, Stopped
from emergence_train.ladder import local, progress, submit
from emergence_train.ladder import queue as queues
from emergence_train.ladder.file import read
from emergence_train.ladder.queue import queued
from ladder.test_file import DECAY, STABLE
from support import ROOT, until

SCRIPT = {"script": str(ROOT / "configs" / "slurm.sbatch")}
EACH = SCRIPT | {"arrays": False}


@pytest.fixture
def slurm_commands(tmp_path, monkeypatch):
    """sbatch appends its arguments to a file and counts jobs; squeue lists those in a file. -> submitted(), queue(lines)."""
    place = tmp_path / "bin"
    place.mkdir()
    sbatch = (
        f'printf "%s\\0" "$@" >> {place}/calls; echo >> {place}/calls; echo "$(( 100 + $(wc -l < {place}/calls) ))"'
    )
    scancel = f'sed -i "/^$1 /d" {place}/queue'
    for name, body in (("sbatch", sbatch), ("scancel", scancel), ("squeue", f"cat {place}/queue 2>/dev/null || true")):
        (place / name).write_text(f"#!/bin/sh\n{body}\n")
        (place / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{place}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(submit, "prepare", lambda *_: None)

    def submitted() -> list[list[str]]:
        calls = place / "calls"
        return [line.split("\0")[:-1] for line in calls.read_text().splitlines()] if calls.exists() else []

    return submitted, lambda text: (place / "queue").write_text(text)


def test_each_run_is_a_job_and_decays_wait(ladder_file, slurm_commands):
    submitted, queue = slurm_commands
    keys = {"slurm": SCRIPT | {"options": ["--time", "10"]}, "gpus": 16, "tokens": [4096]}
    ladder = read(ladder_file(schedules=STABLE | DECAY, **keys))
    submit.submit(ladder, lambda line: None)
    stable, decay = submitted()
    script = stable.index(SCRIPT["script"])
    assert stable[script + 1 :] == ladder.arguments(ladder.rows[0])[1:]
    assert stable[1:script] == [
        *("--job-name", "a-stable", "--output", f"{ladder.out}/ladder-logs/a-stable.log"),
        *("--nodes", "2", "--ntasks-per-node", "8", "--gpus-per-node", "8", "--time", "10"),
    ]
    assert decay[decay.index("--dependency") + 1] == "afterok:101"
    assert decay[-2:] == ["--from", f"{ladder.out}/a-stable@12"]


def test_what_is_queued_or_done_is_not_submitted_again(ladder_file, slurm_commands):
    submitted, queue = slurm_commands
    ladder = read(ladder_file(slurm=EACH, seeds=[1, 2, 3]))
    submit.submit(ladder, lambda line: None)
    run = ladder.directory("a-s2")
    for file in ("positions/step-0000000004.parquet", "checkpoints/step-0000000004/manifest.json"):
        (run / file).parent.mkdir(parents=True, exist_ok=True)
        (run / file).touch()
    queue("101 RUNNING\n103 PENDING\n")
    notes, jobs = progress.read_notes(ladder), queued()
    states = [progress.progress(ladder, row, notes[row.run], jobs).state for row in ladder.rows]
    assert states == ["running", "done", "queued"]
    queue("103 PENDING\n")  # the first has ended without being done
    submit.submit(ladder, lambda line: None)
    assert [call[call.index("--job-name") + 1] for call in submitted()] == ["a-s1", "a-s2", "a-s3", "a-s1"]


@pytest.mark.parametrize(
    ("queue_now", "again"),
    [
        ("102_1 PENDING DependencyNeverSatisfied\n102_2 PENDING DependencyNeverSatisfied\n", ["103", "104_1", "104_2"]),
        ("102_1 PENDING Dependency\n102_2 PENDING Dependency\n", ["103", "104_1", "104_2"]),
        (
            "101 RUNNING None\n102_1 PENDING DependencyNeverSatisfied\n102_2 PENDING Dependency\n",
            ["101", "103", "102_2"],
        ),
        ("101 PENDING Priority\n102_1 PENDING Dependency\n102_2 PENDING Dependency\n", ["101", "102_1", "102_2"]),
    ],
    ids=["failed", "not yet noticed", "one of them", "all waiting"],
)
def test_decays_of_a_failed_stable_run_wait_anew(ladder_file, slurm_commands, queue_now, again):
    """Those that wait for a job which is gone are cancelled, and submitted to wait for the stable run's next job."""
    submitted, queue = slurm_commands
    ladder = read(ladder_file(schedules=STABLE | DECAY, slurm=SCRIPT, tokens=[2048, 4096]))
    submit.submit(ladder, lambda line: None)
    queue(queue_now)
    notes = progress.read_notes(ladder)
    shown = [progress.progress(ladder, row, notes[row.run], queued()).note or "" for row in ladder.rows]
    assert ["gone; run ladder --slurm again" in note for note in shown[1:]] == [
        "Never" in line for line in queue_now.splitlines()[-2:]
    ]
    submit.submit(ladder, lambda line: None)
    notes = progress.read_notes(ladder)
    assert [notes[row.run]["job"] for row in ladder.rows] == again
    waits = [call[call.index("--dependency") + 1] for call in submitted() if "--dependency" in call]
    assert waits[1:] == ([f"afterok:{again[0]}"] if again[1] != "102_1" else [])
    kept = [line.split()[0] for line in queue_now.splitlines() if line.split()[0] in again]
    assert list(queued()) == kept


@pytest.mark.parametrize("sign", ["50%a", "back\\slash"])
def test_a_directory_that_slurm_would_read_is_refused(ladder_file, slurm_commands, tmp_path, sign):
    """Of its signs: no job could start, nor write a log. On this machine they are signs like others."""
    submitted, _ = slurm_commands
    path = ladder_file(slurm=SCRIPT, out=str(tmp_path / sign / "rungs"))
    with pytest.raises(InputError, match="mean something else to Slurm; choose another out$"):
        submit.submit(read(path), lambda line: None)
    assert not submitted() and not (tmp_path / sign).exists()


def test_runs_of_a_size_and_a_request_are_an_array(ladder_file, slurm_commands):
    """Two budgets and two seeds of each of two sizes; decays with their stable run alone, for which they wait."""
    submitted, queue = slurm_commands
    keys = {"slurm": SCRIPT | {"at_once": 3}, "seeds": [1, 2], "tokens": [2048, 4096], "sizes": {"a": {}, "b": {}}}
    ladder = read(ladder_file(schedules=STABLE | DECAY, **keys))
    submit.submit(ladder, lambda line: None)
    notes = progress.read_notes(ladder)
    calls = [dict(zip(call, call[1:])) for call in submitted()]
    assert [call.get("--array") for call in calls] == ["1-2%3"] * 6
    assert [call["--job-name"] for call in calls] == ["small-a", "small-b", "small-a", "small-a", "small-b", "small-b"]
    parents = [f"afterok:{notes[run]['job']}" for run in ("a-stable-s1", "a-stable-s2", "b-stable-s1", "b-stable-s2")]
    assert [call.get("--dependency") for call in calls] == [None, None, *parents]
    assert notes["b-stable-s2"] == {"job": "102_2"} and notes["a-4.096k-decay-s2"] == {"job": "104_2"}
    for row in ladder.rows:
        job, _, index = notes[row.run]["job"].partition("_")
        words = submitted()[int(job) - 101]
        file = Path(words[-1].removeprefix("@").replace("%a", index))
        assert words[-1].startswith("@") and file.read_text().splitlines() == ladder.arguments(row)[1:]
        link = ladder.out / "ladder-logs" / f"{row.run}.log"
        assert link.is_symlink() and link.parent / link.readlink() == file.with_suffix(".log")


def test_of_an_array_what_has_ended_is_submitted_again(ladder_file, slurm_commands):
    """Its number in the new array is another, and the jobs of the old one still read what was theirs."""
    submitted, queue = slurm_commands
    ladder = read(ladder_file(slurm=SCRIPT, seeds=[1, 2, 3, 4]))
    submit.submit(ladder, lambda line: None)
    logs = ladder.out / "ladder-logs"
    before = (logs / "array-1" / "4.args").read_bytes()
    queue("101_2 RUNNING\n")
    notes, jobs = progress.read_notes(ladder), queued()
    assert progress.progress(ladder, ladder.rows[1], notes["a-s2"], jobs).state == "running"
    submit.submit(ladder, lambda line: None)
    notes = progress.read_notes(ladder)
    assert [notes[f"a-s{seed}"]["job"] for seed in (1, 2, 3, 4)] == ["102_1", "101_2", "102_2", "102_3"]
    assert (logs / "array-1" / "4.args").read_bytes() == before == (logs / "array-2" / "3.args").read_bytes()
    queue("101_2 RUNNING\n102_1 RUNNING\n102_3 PENDING\n")
    submit.submit(ladder, lambda line: None)
    assert progress.read_notes(ladder)["a-s3"] == {"job": "103"}, "alone it is a plain job"
    assert not (logs / "a-s3.log").is_symlink()


def test_a_job_that_never_began_has_not_failed(ladder_file, slurm_commands):
    """The log of an earlier start is no sign that it did."""
    _, queue = slurm_commands
    ladder = read(ladder_file(slurm=SCRIPT))
    log = ladder.out / "ladder-logs" / "a.log"
    log.parent.mkdir(parents=True)
    log.write_text("of a start on this machine")
    submit.submit(ladder, lambda line: None)
    queue("")  # it was cancelled
    shown = progress.progress(ladder, ladder.rows[0], progress.read_notes(ladder)["a"], queued())
    assert (shown.state, shown.note) == ("waiting", "job 101 is gone; run ladder --slurm again")
    assert log.with_suffix(".earlier.log").read_text() == "of a start on this machine"


def test_an_array_is_no_larger_than_slurm_allows(ladder_file, monkeypatch):
    monkeypatch.setattr(submit, "LARGEST", 3)
    rows = list(read(ladder_file(seeds=list(range(8)))).rows)
    assert [len(group) for group in submit.groups(rows, True)] == [3, 3, 2]
    assert [row for group in submit.groups(rows, True) for row in group] == rows
    assert [len(group) for group in submit.groups(rows, False)] == [1] * 8


def test_train_reads_its_words_from_the_file_of_an_array(tmp_path, monkeypatch, capsys):
    from emergence_train.cli import _parser, main

    (tmp_path / "7.args").write_text("config.yaml\nname=a b\n--from\nruns/x@4\n")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "7")
    for name in ("%a", "7"):
        given = _parser().parse_args(["train", f"@{tmp_path}/{name}.args", "seed=2"])
        assert (given.config, given.parent, given.overrides) == ("config.yaml", "runs/x@4", ["name=a b", "seed=2"])
    assert main(["train", f"@{tmp_path}/8.args"]) == 2
    assert "8.args: the file of arguments cannot be read (No such file" in capsys.readouterr().err
    (tmp_path / "8.args").write_bytes(b"\xff\xfe")
    assert main(["train", f"@{tmp_path}/8.args", "seed=2"]) == 2
    assert "8.args: the file of arguments cannot be read (not UTF-8)" in capsys.readouterr().err


def test_only_the_verb_train_has_a_file_of_arguments(tmp_path):
    from emergence_train.cli import _parser

    (tmp_path / "a").write_text("config.yaml\n")
    for before in ([], ["--local_rank=1"], ["--local_rank", "1"]):
        assert _parser().parse_args([*before, "train", f"@{tmp_path}/a"]).config == "config.yaml"
    assert _parser().parse_args(["runs", "train"]).directory == "train"
    given = _parser().parse_args(["report", "train", f"@{tmp_path}/a"])
    assert given.runs == ["train", f"@{tmp_path}/a"], "a directory of that name"


def test_a_missing_script_or_sbatch_is_one_line(ladder_file, slurm_commands, monkeypatch, tmp_path):
    with pytest.raises(InputError, match="slurm.script: no file .*; give one"):
        submit.submit(read(ladder_file(slurm={"script": "nowhere"})), lambda line: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(submit, "prepare", lambda *_: pytest.fail("before the data are prepared"))
    with pytest.raises(InputError, match="or leave out --slurm"):
        submit.submit(read(ladder_file(slurm=SCRIPT)), lambda line: None)


def test_what_sbatch_refuses_is_reported(ladder_file, slurm_commands, tmp_path):
    (tmp_path / "bin" / "sbatch").write_text("#!/bin/sh\necho 'sbatch: error: invalid partition' >&2\nexit 1\n")
    with pytest.raises(RunError, match="a: sbatch: .*invalid partition"):
        submit.submit(read(ladder_file(slurm=SCRIPT)), lambda line: None)


def refuse(tmp_path) -> None:
    (tmp_path / "bin" / "sbatch").write_text("#!/bin/sh\necho 'sbatch: error: no' >&2\nexit 1\n")


def test_a_refused_array_leaves_the_logs_as_they_were(ladder_file, slurm_commands, tmp_path):
    submitted, queue = slurm_commands
    ladder = read(ladder_file(slurm=SCRIPT, seeds=[1, 2]))
    logs = ladder.out / "ladder-logs"
    logs.mkdir(parents=True)
    (logs / "a-s1.log").write_text("the first job's")
    refuse(tmp_path)
    with pytest.raises(RunError, match="sbatch: error: no"):
        submit.submit(ladder, lambda line: None)
    assert (logs / "a-s1.log").read_text() == "the first job's"
    assert not list(logs.glob("array-*")) and not (logs / "a-s2.log").is_symlink()


def test_a_refused_job_leaves_the_link_of_its_array(ladder_file, slurm_commands, tmp_path):
    submitted, queue = slurm_commands
    ladder = read(ladder_file(slurm=SCRIPT, seeds=[1, 2]))
    submit.submit(ladder, lambda line: None)
    queue("101_2 RUNNING\n")  # the first has ended, and is alone
    refuse(tmp_path)
    with pytest.raises(RunError, match="sbatch: error: no"):
        submit.submit(ladder, lambda line: None)
    assert str((ladder.out / "ladder-logs" / "a-s1.log").readlink()) == "array-1/1.log"


def test_a_log_that_is_called_like_an_array_is_none(ladder_file, slurm_commands):
    ladder = read(ladder_file(slurm=SCRIPT, seeds=[1, 2]))
    logs = ladder.out / "ladder-logs"
    (logs / "array-7").mkdir(parents=True)
    (logs / "array-1m-s1.log").touch()
    submit.submit(ladder, lambda line: None)
    assert (logs / "array-8" / "2.args").is_file()


def test_nothing_is_submitted_where_slurm_does_not_answer(ladder_file, slurm_commands, tmp_path, capsys):
    submitted, queue = slurm_commands
    path = ladder_file(slurm=SCRIPT)
    submit.submit(read(path), lambda line: None)
    (tmp_path / "bin" / "squeue").write_text("#!/bin/sh\necho 'slurm_load_jobs error: no controller' >&2\nexit 1\n")
    with pytest.raises(RunError, match="squeue: slurm_load_jobs error: no controller: what is queued is unknown"):
        submit.submit(read(path), lambda line: None)
    assert len(submitted()) == 1
    assert cli.main(["ladder", str(path), "--status"]) == 0
    shown = capsys.readouterr()
    assert "no controller" in shown.out + shown.err and "1 stopped" in shown.out + shown.err


def test_jobs_of_a_hidden_partition_are_seen(ladder_file, slurm_commands, tmp_path, monkeypatch):
    """squeue shows them with --all, and jobs of a federation by a variable; variables that hide some do not reach it."""
    submitted, _ = slurm_commands
    lists = '[ -z "$SQUEUE_STATES$SCANCEL_STATE" ] && [ "$SQUEUE_FEDERATION" ] || exit 0'
    lists += '\ncase " $* " in *" --all "*) echo "101 PENDING None";; esac'
    (tmp_path / "bin" / "squeue").write_text(f"#!/bin/sh\n{lists}\n")
    for name in ("SQUEUE_FEDERATION", "SQUEUE_STATES", "SCANCEL_STATE"):
        monkeypatch.setenv(name, "1")
    for _ in range(2):
        submit.submit(read(ladder_file(slurm=SCRIPT)), lambda line: None)
    assert len(submitted()) == 1 and queued() == {"101": "PENDING"}


def test_a_queued_run_is_not_started_here(ladder_file, slurm_commands, tmp_path):
    """Forgotten --slurm: there would be two of one run, and the note of its job would be lost."""
    submitted, queue = slurm_commands
    path = ladder_file(slurm=SCRIPT)
    submit.submit(read(path), lambda line: None)
    queue("101 PENDING JobHeldUser\n")
    with pytest.raises(InputError, match=r"a: is job 101 of Slurm; give --slurm, or cancel it before \(scancel 101\)"):
        local.Runner(read(path), local.Machine([], 1), print, ["false"]).run()
    assert progress.read_notes(read(path)) == {"a": {"job": "101"}} and not (tmp_path / "rungs" / "a").exists()


def test_a_job_that_is_ending_is_waited_for(ladder_file, slurm_commands, tmp_path, monkeypatch):
    """It is gone soon, or waits anew where it is requeued: there is nothing to cancel."""
    _, queue = slurm_commands
    monkeypatch.setattr(queues, "ENDING_SECONDS", 1.5)
    path, lines = ladder_file(slurm=SCRIPT), []
    submit.submit(read(path), lambda line: None)
    runner = local.Runner(read(path), local.Machine([], 1), lines.append, ["false"])
    for later, says in (
        ("101 COMPLETING None\n", r"a: job 101 of Slurm is ending; run the same command again when it has ended"),
        ("101 PENDING None\n", r"cancel it before \(scancel 101\)"),
        ("", "prepare ended with exit code 1"),  # as it may start now
    ):
        queue("101 COMPLETING None\n")
        threading.Timer(0.5, queue, (later,)).start()
        with pytest.raises((InputError, RunError), match=says):
            runner.run()
        assert lines.pop() == "job 101 of Slurm is ending; waiting"


def test_a_run_that_is_trained_by_hand_is_not_submitted(ladder_file, slurm_commands):
    """Its job would find it in use, or begin the run a second time where that node sees no lock; nor would its decay begin."""
    submitted, queue = slurm_commands
    path, lines = ladder_file(schedules=STABLE | DECAY, slurm=SCRIPT, tokens=[4096], sizes={"a": {}, "b": {}}), []
    directory = read(path).directory("a-stable")
    directory.mkdir(parents=True)
    with open(directory / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        submit.submit(read(path), lines.append)
    assert [call[call.index("--job-name") + 1] for call in submitted()] == ["b-stable", "b-decay"]
    assert lines[:2] == [
        "a-stable: another process trains it; not submitted, run the same command again when that has ended",
        "a-decay: waits for a-stable; not submitted, run the same command again when that has ended",
    ]
    submit.submit(read(path), lines.append)
    assert [call[call.index("--job-name") + 1] for call in submitted()[2:]] == [
        "a-stable",
        "b-stable",
        "a-decay",
        "b-decay",
    ]


def test_a_ladder_that_runs_here_is_not_submitted(ladder_file, slurm_commands, tmp_path):
    submitted, _ = slurm_commands
    path = ladder_file(slurm=SCRIPT)
    (tmp_path / "rungs").mkdir()
    with open(tmp_path / "rungs" / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="rungs: another process runs this ladder; wait for it, or see --status$"):
            submit.submit(read(path), lambda line: None)
    assert not submitted()


def test_a_signal_leaves_no_job_without_its_number(ladder_file, slurm_commands, tmp_path):
    """It comes while sbatch works: what that has submitted is noted, the rest by the same command."""
    submitted, queue = slurm_commands
    program = tmp_path / "bin" / "sbatch"
    program.write_text(program.read_text().replace("#!/bin/sh\n", f"#!/bin/sh\nkill -TERM {os.getpid()}\nsleep 0.3\n"))
    path = ladder_file(slurm=EACH, seeds=[1, 2])
    with pytest.raises(Stopped, match="stopped; run the same command to submit the other runs"):
        submit.submit(read(path), lambda line: None)
    assert progress.read_notes(read(path)) == {"a-s1": {"job": "101"}}
    queue("101 PENDING None\n")
    submit.submit(read(path), lambda line: None)
    assert [call[call.index("--job-name") + 1] for call in submitted()] == ["a-s1", "a-s2"]


@pytest.mark.parametrize("name, signals", [("squeue", 1), ("scancel", 1), ("sbatch", 2)])
def test_a_command_of_slurm_that_hangs_is_ended(ladder_file, slurm_commands, tmp_path, name, signals):
    """Where it may be submitting a job, by a second signal alone: the first waits for the number."""
    _, queue = slurm_commands
    ladder, pid = read(ladder_file(slurm=SCRIPT, schedules=STABLE | DECAY, tokens=[4096])), tmp_path / "pid"
    if name != "sbatch":  # Slurm has had a job, which waits for one that is gone
        submit.submit(ladder, lambda line: None)
        queue("102 PENDING DependencyNeverSatisfied\n")
    (tmp_path / "bin" / name).write_text(f"#!/bin/sh\necho $$ > {pid}\nexec sleep 60\n")

    def signalled() -> None:
        for _ in range(signals):
            until(lambda: pid.exists() and pid.read_text())
            time.sleep(0.5)
            os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=signalled, daemon=True).start()
    began = time.monotonic()
    with pytest.raises(
        Stopped, match="see squeue --me before you run" if signals > 1 else "stopped; run the same command"
    ):
        submit.submit(ladder, lambda line: None)
    assert time.monotonic() < began + 15
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def test_a_decay_of_a_state_that_is_gone_is_refused(ladder_file, slurm_commands, tmp_path):
    """Its job would end with 2 whenever it is submitted."""
    submitted, queue = slurm_commands
    ladder = read(ladder_file(schedules=STABLE | DECAY, slurm=SCRIPT, tokens=[4096], sizes={"a": {}, "b": {}}))
    for file in ("positions/step-0000000016.parquet", "checkpoints/step-0000000016/manifest.json"):
        (ladder.directory("a-stable") / file).parent.mkdir(parents=True, exist_ok=True)
        (ladder.directory("a-stable") / file).touch()
    with pytest.raises(
        RunError, match="1 of 4 runs cannot begin, a-decay without .*step-0000000012: restore that, or move"
    ):
        submit.submit(ladder, lambda line: None)
    assert [call[call.index("--job-name") + 1] for call in submitted()] == ["b-stable", "b-decay"]


def test_slurm_is_not_asked_for_runs_that_it_has_never_seen(ladder_file, slurm_commands, tmp_path, capsys):
    """Its client is there, and answers nothing, on many machines."""
    (tmp_path / "bin" / "squeue").write_text("#!/bin/sh\necho 'no controller' >&2\nexit 1\n")
    assert cli.main(["ladder", str(ladder_file()), "--status"]) == 0
    shown = capsys.readouterr()
    assert "no controller" not in shown.out + shown.err and "1 waiting" in shown.out
