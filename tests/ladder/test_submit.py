"""A ladder as jobs of Slurm: what sbatch is given, by a stand-in for it; and a ladder under a private Slurm."""

import json
import os
import shlex
import sys
import time
from pathlib import Path

import pytest

from cluster.slurm_here import missing, slurm
from emergence_train.errors import InputError, RunError
from emergence_train.ladder import local, progress, submit
from emergence_train.ladder.file import read
from ladder.test_file import DECAY, STABLE
from support import ROOT

SCRIPT = {"script": str(ROOT / "configs" / "slurm.sbatch")}


@pytest.fixture
def slurm_commands(tmp_path, monkeypatch):
    """sbatch appends its arguments to a file and counts jobs; squeue lists those in a file. -> submitted(), queue(lines)."""
    place = tmp_path / "bin"
    place.mkdir()
    sbatch = (
        f'printf "%s\\0" "$@" >> {place}/calls; echo >> {place}/calls; echo "$(( 100 + $(wc -l < {place}/calls) ))"'
    )
    for name, body in (("sbatch", sbatch), ("squeue", f"cat {place}/queue 2>/dev/null")):
        (place / name).write_text(f"#!/bin/sh\n{body}\n")
        (place / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{place}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(submit, "prepare", lambda ladder, program: None)

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
    ladder = read(ladder_file(slurm=SCRIPT, seeds=[1, 2, 3]))
    submit.submit(ladder, lambda line: None)
    run = ladder.directory("a-s2")
    for file in ("positions/step-0000000004.parquet", "checkpoints/step-0000000004/manifest.json"):
        (run / file).parent.mkdir(parents=True, exist_ok=True)
        (run / file).touch()
    queue("101 RUNNING\n103 PENDING\n")
    notes, jobs = progress.read_notes(ladder), submit.queued()
    states = [progress.progress(ladder, row, notes[row.run], jobs).state for row in ladder.rows]
    assert states == ["running", "done", "queued"]
    queue("103 PENDING\n")  # the first has ended without being done
    submit.submit(ladder, lambda line: None)
    assert [call[call.index("--job-name") + 1] for call in submitted()] == ["a-s1", "a-s2", "a-s3", "a-s1"]


def test_a_missing_script_or_sbatch_is_one_line(ladder_file, slurm_commands, monkeypatch, tmp_path):
    with pytest.raises(InputError, match="slurm.script: no file .*; give one"):
        submit.submit(read(ladder_file(slurm={"script": "nowhere"})), lambda line: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="or leave out --slurm"):
        submit.submit(read(ladder_file(slurm=SCRIPT)), lambda line: None)


def test_what_sbatch_refuses_is_reported(ladder_file, slurm_commands, tmp_path):
    (tmp_path / "bin" / "sbatch").write_text("#!/bin/sh\necho 'sbatch: error: invalid partition' >&2\nexit 1\n")
    with pytest.raises(RunError, match="a: sbatch: .*invalid partition"):
        submit.submit(read(ladder_file(slurm=SCRIPT)), lambda line: None)


@pytest.mark.slow
@pytest.mark.skipif(missing() is not None, reason=f"no Slurm here: {missing()}")
def test_a_ladder_under_slurm_survives_preemption(ladder_file, tmp_path, tmp_path_factory):
    """A stable run, signalled as before a time limit and requeued, and a decay that waits for it."""
    program = tmp_path / "bin" / "emergence-train"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m emergence_train "$@"\n')
    program.chmod(0o755)
    options = ["--gpus-per-node", "0", "--ntasks-per-node", "1", "--cpus-per-task", "1", "--time", "10"]
    keys = {"tokens": [100 * 256], "set": {"training.threads": 1}, "slurm": SCRIPT | {"options": options}}
    path = ladder_file(schedules=STABLE | DECAY, **keys)
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
        command = [*local.program(), "ladder", str(path), "--slurm"]
        done = cluster(*command)
        assert done.returncode == 0, done.stderr
        stable = read(path).directory("a-stable")
        until(lambda: (stable / "metrics.jsonl").is_file() and '"step": 8' in (stable / "metrics.jsonl").read_text())
        job = progress.read_notes(read(path))["a-stable"]["job"]
        assert cluster("scancel", "--signal=USR1", job).returncode == 0
        until(lambda: all(row["state"] == "done" for row in rows(cluster, path)), 300)
    log = (read(path).out / "ladder-logs" / "a-stable.log").read_text()
    assert "requeued" in log and "resum" in log


def rows(cluster, path: Path) -> list[dict]:
    return json.loads(cluster(*local.program(), "ladder", str(path), "--status", "--json").stdout)["runs"]


def until(condition, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(1)
