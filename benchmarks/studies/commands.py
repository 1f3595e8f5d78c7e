"""Run emergence-train from a study: its own commands, as a user has them."""

import os
import resource
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def command(work: Path, *words: str) -> float:
    """Run emergence-train in `work`, its lines into runs/log.txt there; CPU seconds of it and its children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}"}
    log_file = work / "runs" / "log.txt"
    log_file.parent.mkdir(exist_ok=True)
    with open(log_file, "a") as log:
        subprocess.run(
            [sys.executable, "-m", "emergence_train", *words],
            cwd=work,
            env=environment,
            stdout=log,
            stderr=log,
            check=True,
        )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1)
