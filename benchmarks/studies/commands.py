"""What studies share: emergence-train's own commands, as a user has them, and the file of a result."""

import os
import resource
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

import torch  # noqa: E402

from emergence_train.files import write_json  # noqa: E402
from emergence_train.recorder.environment import environment  # noqa: E402

ENVIRONMENT = environment(torch.device("cpu"))  # of the study's start: its own results change the tree
ENVIRONMENT["versions"] |= {name: version(name) for name in ("scipy", "pandas")}  # what the fits rest on


def origin(command: str) -> dict:
    """What made a result: command, versions, device and commit."""
    return {"command": command} | ENVIRONMENT


def write_result(path: Path, command: str, result: dict) -> None:
    """Write a study's result with its origin, atomically."""
    write_json(path, origin(command) | result)


def command(work: Path, *words: str) -> float:
    """Run emergence-train in `work`, its lines into runs/log.txt there; CPU seconds of it and its children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    variables = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}"}
    log_file = work / "runs" / "log.txt"
    log_file.parent.mkdir(exist_ok=True)
    with open(log_file, "a") as log:
        subprocess.run(
            [sys.executable, "-m", "emergence_train", *words],
            cwd=work,
            env=variables,
            stdout=log,
            stderr=log,
            check=True,
        )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1)
