"""Training under a private Slurm, with two nodes on this machine. Skipped where Slurm is not installed; its commands
and daemons come from the distribution's packages (on Debian slurm-wlm and munge)."""

import contextlib
import os
import shlex
import signal
import sys
import time
from pathlib import Path

import pytest
import yaml

from cluster.slurm_here import Slurm, missing, slurm
from emergence_train.recorder import tables
from faults.comparing import compare
from support import ROOT, metrics, small_config, until

pytestmark = pytest.mark.skipif(missing() is not None, reason=f"no Slurm here: {missing()}")

STEPS = 600
BATCH = ["sbatch", "--parsable", "--gpus-per-node", "0", "--cpus-per-task", "1", "--time", "10"]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A Slurm whose jobs run this checkout's `emergence-train`."""
    place = tmp_path_factory.mktemp("slurm")
    program = place / "bin" / "emergence-train"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m emergence_train "$@"\n')
    program.chmod(0o755)
    with contextlib.ExitStack() as stack:
        try:
            environment = stack.enter_context(slurm(place / "daemons"))
        except OSError as error:
            pytest.skip(f"Slurm does not run here: {error}")
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
            environment.environment.pop(name, None)
        environment.environment |= {
            "PATH": f"{program.parent}{os.pathsep}{environment.environment['PATH']}",
            "OMP_NUM_THREADS": "1",
            "WANDB_MODE": "disabled",
            "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}",
            "EMERGENCE_REQUEUE_AFTER": "0",
        }
        yield environment


@pytest.fixture(scope="module")
def config(data_path, tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("runs")
    tree = small_config(data_path, place)
    tree["training"]["tokens"] = STEPS * 8 * 32
    tree["checkpoints"]["every_tokens"] = 60 * 8 * 32
    tree["faults"] = {"silent_seconds": 5.0}
    (place / "config.yaml").write_text(yaml.safe_dump(tree))
    return place / "config.yaml"


@pytest.mark.slow
def test_srun_on_two_nodes_trains_one_run(cluster: Slurm, config):
    few = "training.tokens=3072"
    done = cluster("srun", "-N", "2", "-n", "2", "-l", "emergence-train", "train", str(config), "name=few", few)
    assert done.returncode == 0, done.stderr
    assert "2 x " in done.stdout and all(line.startswith("0: ") for line in done.stdout.splitlines()), done.stdout
    assert not [line for line in done.stderr.splitlines() if line.startswith("1: ")], done.stderr
    assert len(metrics(config.parent / "few")) == 12
    session = yaml.safe_load((config.parent / "few" / "environment.json").read_text())["sessions"][0]
    assert session["processes"] == 2 and session["slurm"]["nodes"] == "127.0.0.[1-2]"
    alone = cluster("salloc", "-n", "2", "emergence-train", "train", str(config), "name=alone", few)
    assert alone.returncode == 0 and "has 2 tasks, and this is one process of its own" in alone.stdout, alone.stderr
    scored = cluster("srun", "-n", "2", "emergence-train", "evaluate", str(config.parent / "few"))
    assert scored.returncode == 0 and scored.stdout.count("nats/token") == 4, scored.stdout + scored.stderr
    wrong = cluster("srun", "-n", "2", "emergence-train", "train", str(config), "training.batc=3")
    assert wrong.returncode == 2 and wrong.stderr.count("training.batc") == 1, wrong.stderr


@pytest.fixture(scope="module")
def whole(cluster: Slurm, config) -> Path:
    """The uninterrupted run."""
    done = cluster("srun", "-n", "2", "emergence-train", "train", str(config), "name=whole")
    assert done.returncode == 0, done.stderr
    return config.parent / "whole"


class Job:
    """configs/slurm.sbatch, submitted."""

    def __init__(self, cluster: Slurm, config: Path, name: str, *options: str, nodes: int = 1) -> None:
        self.cluster, self.run, self.log = cluster, config.parent / name, config.parent / f"{name}.log"
        shape = ["--nodes", str(nodes), "--ntasks-per-node", str(2 // nodes), "--output", str(self.log), *options]
        done = cluster(*BATCH, *shape, str(ROOT / "configs" / "slurm.sbatch"), str(config), f"name={name}")
        assert done.returncode == 0, done.stderr
        self.number = done.stdout.strip()

    def until_step(self, step: int) -> None:
        self.until(
            lambda: (
                (self.run / "metrics.jsonl").is_file()
                and tables.read_metrics(self.run / "metrics.jsonl")[-1].get("step", 0) >= step
            )
        )

    def until(self, there, seconds: float = 90.0) -> None:
        until(there, seconds, self.output)

    def output(self) -> str:
        return self.log.read_text(errors="replace") if self.log.is_file() else "no log"

    def shown(self) -> dict[str, str]:
        words = self.cluster("scontrol", "show", "job", self.number).stdout.split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def ended(self) -> dict[str, str]:
        final = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        self.until(lambda: self.shown().get("JobState") in final)
        return self.shown()

    def tasks(self) -> list[int]:
        """The processes of the run, in the order of ranks."""
        tasks = {}
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if f"name={self.run.name}".encode() in (path / "cmdline").read_bytes().split(b"\0"):
                    variables = dict(
                        v.split(b"=", 1) for v in (path / "environ").read_bytes().split(b"\0") if b"=" in v
                    )
                    if variables.get(b"SLURM_TASK_PID") == path.name.encode():
                        tasks[int(variables[b"SLURM_PROCID"])] = int(path.name)
        return [tasks[rank] for rank in sorted(tasks)]


@pytest.mark.slow
@pytest.mark.parametrize("shell", [False, True])
def test_warning_before_the_time_limit_saves_and_requeues(cluster: Slurm, config, whole, shell):
    """--signal USR1@120 signals the processes, --signal B:USR1@120 the batch script."""
    job = Job(cluster, config, f"warned-{shell}")
    job.until_step(70)
    cluster("scancel", "--signal=USR1", *(["--batch"] if shell else []), job.number)
    ended = job.ended()
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "1"), job.output()
    assert "stopped on request, everything saved; requeued" in job.output() and "resuming from step" in job.output()
    compare(whole, job.run)


@pytest.mark.slow
def test_killed_process_ends_the_others_and_requeues(cluster: Slurm, config, whole):
    job = Job(cluster, config, "killed", nodes=2)
    job.until_step(70)
    os.kill(job.tasks()[1], signal.SIGKILL)
    began = time.monotonic()
    job.until(lambda: "requeued" in job.output())
    assert time.monotonic() - began < 20
    ended = job.ended()
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "1"), job.output()
    assert "rank 1 has sent no heartbeat" in job.output() and "exit code 137); requeued" in job.output()
    compare(whole, job.run)


@pytest.mark.slow
def test_requeue_by_slurm_itself_resumes(cluster: Slurm, config, whole):
    job = Job(cluster, config, "requeued")
    job.until_step(70)
    assert cluster("scontrol", "requeue", job.number).returncode == 0
    ended = job.ended()
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "1"), job.output()
    compare(whole, job.run)


@pytest.mark.slow
def test_a_cancelled_job_stays_cancelled_and_has_saved(cluster: Slurm, config):
    job = Job(cluster, config, "cancelled")
    job.until_step(70)
    cluster("scancel", job.number)
    ended = job.ended()
    assert (ended["JobState"], ended["Restarts"]) == ("CANCELLED", "0"), job.output()
    job.until(lambda: "saved at step" in job.output())


@pytest.mark.slow
def test_wrong_input_and_an_early_loss_are_not_tried_again(cluster: Slurm, config):
    job = Job(cluster, Path(f"{config}.missing"), "missing")
    ended = job.ended()
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("FAILED", "2:0", "0"), job.output()
    cluster.environment["EMERGENCE_REQUEUE_AFTER"] = "300"
    try:
        job = Job(cluster, config, "early")
        job.until_step(10)
        os.kill(job.tasks()[0], signal.SIGKILL)
        ended = job.ended()
    finally:
        cluster.environment["EMERGENCE_REQUEUE_AFTER"] = "0"
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("FAILED", "137:0", "0"), job.output()
    assert "not requeued; see above" in job.output()


@pytest.mark.slow
def test_an_array_trains_a_run_for_each_of_its_numbers(cluster: Slurm, config):
    """The last job of an array has the number of the array: only it is requeued."""
    shape = ["--nodes", "1", "--ntasks-per-node", "1", "--array", "1-3", "--output", str(config.parent / "a-%a.log")]
    done = cluster(
        *BATCH,
        *shape,
        str(ROOT / "configs" / "slurm.sbatch"),
        str(config),
        "name=seed-%a",
        "seed=%a",
        f"training.tokens={200 * 8 * 32}",
    )
    array = done.stdout.strip()
    logs = [config.parent / f"a-{number}.log" for number in (1, 2, 3)]
    until(lambda: logs[2].is_file() and "step 20/" in logs[2].read_text(), 120)
    cluster("scancel", "--signal=USR1", f"{array}_3")
    until(
        lambda: not cluster("squeue", "-h", "-j", array).stdout.strip(),
        120,
        why=lambda: str([log.read_text() for log in logs]),
        every=0.5,
    )
    assert [log.read_text().count("requeued") for log in logs] == [0, 0, 1]
    assert [len(metrics(config.parent / f"seed-{number}")) for number in (1, 2, 3)] == [200] * 3
