"""A ladder under a private Slurm: requeued, failed, held, suspended, killed."""

import contextlib
import json
import os
import shlex
import signal
import sys
from pathlib import Path

import pytest

from cluster.slurm_here import missing, slurm
from emergence_train.ladder import local, progress
from emergence_train.ladder.file import read
from ladder.test_file import DECAY, STABLE
from support import ROOT, until

SCRIPT = {"script": str(ROOT / "configs" / "slurm.sbatch")}


@contextlib.contextmanager
def ladder_cluster(tmp_path, tmp_path_factory):
    """A Slurm whose jobs run this checkout's `emergence-train`."""
    program = tmp_path / "bin" / "emergence-train"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m emergence_train "$@"\n')
    program.chmod(0o755)
    with slurm(tmp_path_factory.mktemp("slurm")) as cluster:  # sockets allow for short paths
        environment = cluster.environment | {
            "PATH": f"{program.parent}{os.pathsep}{cluster.environment['PATH']}",
            "WANDB_MODE": "disabled",
            "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}",
            "EMERGENCE_REQUEUE_AFTER": "0",
        }
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
            environment.pop(name, None)
        cluster.environment.clear()
        cluster.environment.update(environment)
        yield cluster


OF_A_USER = {  # of people who like their squeue otherwise, and of other jobs
    "SQUEUE_STATES": "all",
    "SQUEUE_FORMAT": "%j",
    "SQUEUE_SORT": "M",
    "SQUEUE_NAMES": "another",
    "SQUEUE_PARTITION": "another",
    "SCANCEL_STATE": "RUNNING",
    "SCANCEL_INTERACTIVE": "1",
    "SBATCH_ARRAY_INX": "1-2",
    "SBATCH_WAIT": "1",
    "SBATCH_ERROR": "/dev/null",
    "SBATCH_NO_REQUEUE": "1",
}


@pytest.mark.slow
@pytest.mark.skipif(missing() is not None, reason=f"no Slurm here: {missing()}")
def test_variables_of_a_user_change_no_answer(ladder_file, tmp_path, tmp_path_factory):
    """A run that fails is submitted again; its next job is requeued at a signal; one that is held is cancelled by nobody."""
    options = ["--gpus-per-node", "0", "--ntasks-per-node", "1", "--cpus-per-task", "1", "--time", "10"]
    path = ladder_file(
        tokens=[100 * 256], set={"training.threads": 1}, slurm=SCRIPT | {"options": options}, schedules=STABLE | DECAY
    )
    with ladder_cluster(tmp_path, tmp_path_factory) as cluster:
        plain = dict(cluster.environment)
        cluster.environment.update(OF_A_USER)
        program, command = tmp_path / "bin" / "emergence-train", [*local.program(), "ladder", str(path), "--slurm"]
        whole = program.read_text()
        program.write_text("#!/bin/sh\nexit 1\n")
        assert cluster(*command).returncode == 0
        until(lambda: rows(cluster, path)[0]["state"] == "failed", 120, every=1)
        program.write_text(whole)
        again = cluster(*command)
        assert "waited for a job that is gone: cancelled" in again.stdout, (again.stdout, again.stderr)
        stable = read(path).directory("a-stable") / "metrics.jsonl"
        until(lambda: stable.is_file() and '"step": 8' in stable.read_text(), 120, every=1)
        job = progress.read_notes(read(path))["a-stable"]["job"]
        cluster.environment.clear()
        cluster.environment.update(plain)
        assert "_" not in job and cluster("scancel", "--signal=USR1", job).returncode == 0
        until(lambda: all(row["state"] == "done" for row in rows(cluster, path)), 300, every=1)
    log = (read(path).out / "ladder-logs" / "a-stable.log").read_text()
    assert "; requeued" in log and "resuming from step" in log


@pytest.mark.slow
@pytest.mark.skipif(missing() is not None, reason=f"no Slurm here: {missing()}")
def test_a_ladder_under_slurm_survives_preemption(ladder_file, tmp_path, tmp_path_factory):
    """A stable run, signalled as before a time limit and requeued, and a decay that waits for it."""
    options = ["--gpus-per-node", "0", "--ntasks-per-node", "1", "--cpus-per-task", "1", "--time", "10"]
    keys = {"tokens": [100 * 256], "set": {"training.threads": 1}, "slurm": SCRIPT | {"options": options}}
    path = ladder_file(schedules=STABLE | DECAY, **keys)
    with ladder_cluster(tmp_path, tmp_path_factory) as cluster:
        command = [*local.program(), "ladder", str(path), "--slurm"]
        done = cluster(*command)
        assert done.returncode == 0, done.stderr
        stable = read(path).directory("a-stable")
        until(
            lambda: (stable / "metrics.jsonl").is_file() and '"step": 8' in (stable / "metrics.jsonl").read_text(),
            120,
            every=1,
        )
        job = progress.read_notes(read(path))["a-stable"]["job"]
        assert cluster("scancel", "--signal=USR1", job).returncode == 0
        until(lambda: all(row["state"] == "done" for row in rows(cluster, path)), 300, every=1)
    log = (read(path).out / "ladder-logs" / "a-stable.log").read_text()
    assert "requeued" in log and "resum" in log


@pytest.mark.slow
@pytest.mark.skipif(missing() is not None, reason=f"no Slurm here: {missing()}")
def test_decays_under_slurm_are_done_after_a_failed_parent(ladder_file, tmp_path, tmp_path_factory):
    """The stable run fails at its first start; then the same command twice: the decays run after its next job."""
    options = ["--gpus-per-node", "0", "--ntasks-per-node", "1", "--cpus-per-task", "1", "--time", "10"]
    sets = {"checkpoints.every_tokens": 256, "training.threads": 1}
    path = ladder_file(schedules=STABLE | DECAY, tokens=[1024, 2048], set=sets, slurm=SCRIPT | {"options": options})
    with ladder_cluster(tmp_path, tmp_path_factory) as cluster:
        program, fails = tmp_path / "bin" / "emergence-train", tmp_path / "fails"
        program.write_text(program.read_text().replace("exec ", f"test -e {fails} && exit 1\nexec "))
        fails.touch()
        command = [*local.program(), "ladder", str(path), "--slurm"]
        assert cluster(*command).returncode == 0
        first = progress.read_notes(read(path))
        stable, *decays = (first[row.run]["job"] for row in read(path).rows)
        until(
            lambda: cluster("squeue", "--noheader", "--format", "%r").stdout.split() == ["DependencyNeverSatisfied"],
            120,
            every=1,
        )
        assert ["gone" in (row["note"] or "") for row in rows(cluster, path)] == [False, True, True]
        fails.unlink()
        again = cluster(*command)
        assert again.returncode == 0 and again.stdout.count("waited for a job that is gone: cancelled") == 2, (
            again.stderr
        )
        assert not set(decays) & {progress.read_notes(read(path))[row.run]["job"] for row in read(path).rows}
        until(lambda: all(row["state"] == "done" for row in rows(cluster, path)), 300, every=1)
        until(
            lambda: not cluster("squeue", "--noheader").stdout.strip(), 60, every=1
        )  # the last job's process ends after its run


@pytest.mark.slow
@pytest.mark.skipif(missing() is not None, reason=f"no Slurm here: {missing()}")
def test_runs_of_an_array_are_preempted_each_alone(ladder_file, tmp_path, tmp_path_factory):
    """Three seeds as an array: one signalled as before a time limit, one's process killed, one left alone."""
    with ladder_cluster(tmp_path, tmp_path_factory) as cluster:
        options = ["--gpus-per-node", "0", "--ntasks-per-node", "1", "--cpus-per-task", "1", "--time", "10"]
        keys = {"tokens": [200 * 256], "set": {"training.threads": 1}, "seeds": [1, 2, 3]}
        path = ladder_file(slurm=SCRIPT | {"options": options}, **keys)
        done = cluster(*local.program(), "ladder", str(path), "--slurm")
        assert done.returncode == 0, done.stderr
        ladder = read(path)
        notes = progress.read_notes(ladder)
        assert len({note["job"].partition("_")[0] for note in notes.values()}) == 1
        for row in ladder.rows[:2]:
            metrics = ladder.directory(row.run) / "metrics.jsonl"
            until(lambda metrics=metrics: metrics.is_file() and '"step": 8' in metrics.read_text(), 120, every=1)
        assert "running" in {row["state"] for row in rows(cluster, path)}
        assert cluster("scancel", "--signal=USR1", notes["a-s1"]["job"]).returncode == 0
        os.kill(trainer(ladder.directory("a-s2")), signal.SIGKILL)
        until(lambda: all(row["state"] == "done" for row in rows(cluster, path)), 400, every=1)
        again = cluster(*local.program(), "ladder", str(path), "--slurm")
        assert again.returncode == 0 and progress.read_notes(ladder) == notes, "nothing was left to submit"
    logs = [(ladder.out / "ladder-logs" / f"a-s{seed}.log").read_text() for seed in (1, 2, 3)]
    assert ["requeued" in log for log in logs] == [True, True, False], logs
    assert "everything saved; requeued" in logs[0] and "exit code 137); requeued" in logs[1]
    assert "resuming from step" in logs[0] and "done in" in logs[2]


@pytest.mark.slow
@pytest.mark.skipif(missing() is not None, reason=f"no Slurm here: {missing()}")
def test_jobs_that_ended_are_seen_to_have_failed(ladder_file, tmp_path, tmp_path_factory):
    """One that is held, cancelled, wrong at its start, and one whose process is killed and not requeued."""
    options = ["--gpus-per-node", "0", "--ntasks-per-node", "1", "--cpus-per-task", "1", "--time", "10"]
    keys = {"tokens": [2000 * 256], "set": {"training.threads": 1}}
    held = ladder_file(slurm=SCRIPT | {"options": [*options, "--hold"]}, **keys).rename(tmp_path / "held.yaml")
    path = ladder_file(slurm=SCRIPT | {"options": options}, **keys)
    with ladder_cluster(tmp_path, tmp_path_factory) as cluster:
        cluster.environment["EMERGENCE_REQUEUE_AFTER"] = "9999"

        def submitted(file: Path) -> str:
            done = cluster(*local.program(), "ladder", str(file), "--slurm")
            assert done.returncode == 0, done.stderr
            return progress.read_notes(read(file))["a"]["job"]

        def shown() -> tuple[str, str]:
            (row,) = rows(cluster, path)
            return row["state"], row["note"] or ""

        job = submitted(held)
        assert shown() == ("queued", f"job {job} is held; scontrol release {job}")
        here = cluster(*local.program(), "ladder", str(path))
        assert here.returncode == 2 and f"a: is job {job} of Slurm" in here.stderr, here.stderr
        assert progress.read_notes(read(path)) == {"a": {"job": job}}
        assert cluster("scancel", job).returncode == 0
        until(lambda: shown()[0] == "waiting", 60, every=1)
        assert f"job {job} is gone" in shown()[1]

        program = tmp_path / "bin" / "emergence-train"
        whole = program.read_text()
        program.write_text("#!/bin/sh\nexit 2\n")
        job = submitted(path)
        until(lambda: shown()[0] == "failed", 60, every=1)
        assert shown()[1] == f"job {job} has ended: {read(path).out}/ladder-logs/a.log"

        program.write_text(whole)
        job = submitted(path)
        log = read(path).directory("a") / "metrics.jsonl"
        until(lambda: log.is_file() and '"step": 8' in log.read_text(), 120, every=1)
        assert shown() == ("running", f"job {job}")
        assert cluster("scontrol", "suspend", job).returncode == 0
        until(lambda: shown() == ("running", f"job {job}: suspended"), 60, every=1)
        assert cluster("scontrol", "resume", job).returncode == 0
        os.kill(trainer(read(path).directory("a")), signal.SIGKILL)
        until(lambda: shown()[0] == "failed", 120, every=1)
        assert (
            "its process was lost" in shown()[1]
            and "not requeued" in (read(path).out / "ladder-logs/a.log").read_text()
        )


def trainer(run: Path) -> int:
    """The process that trains a run."""
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (path / "cmdline").read_bytes().split(b"\0")
            variables = (path / "environ").read_bytes().split(b"\0")
            if b"train" in words and f"SLURM_TASK_PID={path.name}".encode() in variables:
                index = next((word for word in variables if word.startswith(b"SLURM_ARRAY_TASK_ID=")), b"").partition(
                    b"="
                )[2]
                if run.name == (f"a-s{int(index)}" if index else "a"):
                    return int(path.name)
    raise AssertionError(f"{run} is not trained")


def rows(cluster, path: Path) -> list[dict]:
    return json.loads(cluster(*local.program(), "ladder", str(path), "--status", "--json").stdout)["runs"]
