"""torchrun's own restart: a worker is killed, the launcher restarts all, and the run resumes."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from support import ROOT, command, metrics, small_config, until


def workers(launcher: int) -> list[int]:
    """The launcher's child processes, in the order of ranks."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    return [int(pid) for pid in children if b"emergence_train" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def state(run: Path, after: str = "") -> str:
    """The name of a checkpoint later than `after`, once there is one."""

    def newest() -> str:
        there = max((path.parent.name for path in run.glob("checkpoints/step-*/manifest.json")), default="")
        return there if there > after else ""

    return until(newest, 240, lambda: f"no checkpoint after {after or 'the start'}", every=0.02)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the workers in /proc")
@pytest.mark.parametrize("machines", [1, 2])
def test_a_worker_that_is_killed_is_started_again(data_path, tmp_path, machines):
    """Twice, on one machine and with a launcher of its own for each of two; the store of the first outlives the workers."""
    tree = small_config(data_path, tmp_path)
    tree["training"]["tokens"] *= 40  # long enough for a kill in the middle
    tree["checkpoints"]["every_tokens"] *= 10
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree))
    whole = command("train", str(tmp_path / "config.yaml"), "name=whole", processes=2)
    assert whole.returncode == 0, whole.stderr
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}", "OMP_NUM_THREADS": "1"}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        environment.pop(name, None)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    place = (
        ["--standalone"]
        if machines == 1
        else ["--nnodes", "2", "--rdzv-backend", "c10d", "--rdzv-id", "job", "--rdzv-endpoint", f"localhost:{port}"]
    )
    arguments = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        *place,
        "--nproc-per-node",
        str(2 // machines),
        "--max-restarts",
        "3",
        "-m",
        "emergence_train",
        "train",
        str(tmp_path / "config.yaml"),
        "name=killed",
    ]
    run = tmp_path / "killed"
    with open(tmp_path / "log", "w") as log:
        launchers = [subprocess.Popen(arguments, stdout=log, stderr=log, env=environment) for _ in range(machines)]
        try:
            first = state(run)
            os.kill(workers(launchers[-1].pid)[-1], signal.SIGKILL)
            state(run, first)
            os.kill(workers(launchers[0].pid)[0], signal.SIGKILL)
            assert [launcher.wait(240) for launcher in launchers] == [0] * machines, (tmp_path / "log").read_text()
        finally:
            for launcher in launchers:
                launcher.terminate()  # its workers with it
    output = (tmp_path / "log").read_text()
    assert output.count("resuming from step") == 2 and "Traceback" not in output, output
    losses = [[row["loss"] for row in metrics(path)] for path in (tmp_path / "whole", run)]
    assert losses[0] == losses[1] and len(losses[0]) == 480
