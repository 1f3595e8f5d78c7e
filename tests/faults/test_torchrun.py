"""torchrun's own restart: a worker is killed, the launcher starts all again, and the run goes on by itself."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from support import ROOT, command, metrics, small_config


def workers(launcher: int) -> list[int]:
    """The launcher's child processes, in the order of ranks."""
    found = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    return [int(pid) for pid in found if b"emergence_train" in Path(f"/proc/{pid}/cmdline").read_bytes()]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the workers in /proc")
def test_a_worker_that_is_killed_is_started_again(data_path, tmp_path):
    tree = small_config(data_path, tmp_path)
    tree["training"]["tokens"] *= 40  # long enough to be caught in the middle
    tree["checkpoints"]["every_tokens"] *= 10
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree))
    whole = command("train", str(tmp_path / "config.yaml"), "name=whole", processes=2)
    assert whole.returncode == 0, whole.stderr
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}", "OMP_NUM_THREADS": "1"}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        environment.pop(name, None)
    arguments = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "2",
                 "-m", "emergence_train", "train", str(tmp_path / "config.yaml"), "name=killed"]  # fmt: skip
    run = tmp_path / "killed"
    with open(tmp_path / "log", "w") as log:
        launcher = subprocess.Popen(arguments, stdout=log, stderr=subprocess.STDOUT, env=environment)
        try:
            until = time.monotonic() + 240
            while not list(run.glob("checkpoints/step-*/manifest.json")) and time.monotonic() < until:
                time.sleep(0.02)
            os.kill(workers(launcher.pid)[1], signal.SIGKILL)
            assert launcher.wait(240) == 0, (tmp_path / "log").read_text()
        finally:
            launcher.kill()
    said = (tmp_path / "log").read_text()
    assert "going on after step" in said and "Traceback" not in said, said
    losses = [[row["loss"] for row in metrics(path)] for path in (tmp_path / "whole", run)]
    assert losses[0] == losses[1] and len(losses[0]) == 480
