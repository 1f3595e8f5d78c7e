"""environment.json of a run: versions, device and commit of each start; also recorded with benchmarks."""

import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path

import torch

from emergence_train.cluster import slurm
from emergence_train.recorder.sessions import add_session, now

PACKAGES = ("torch", "triton", "deepspeed", "numpy", "pyarrow", "tokenizers", "wandb", "flash-attn", "emergence-train")


def write_environment(directory: Path, world: int, device: torch.device, resumed_from: int) -> None:
    """Add this start of the run to environment.json: versions, device, commit, command, Slurm's job."""
    session = {"started": now(), "resumed_from_step": resumed_from, "command": sys.argv, "processes": world}
    add_session(directory, session | {"slurm": slurm.job(os.environ)} | environment(device))


def environment(device: torch.device) -> dict:
    """Versions, device and commit, for the record of a measurement."""
    versions: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "versions": {
            "python": platform.python_version(),
            "cuda": torch.version.cuda,
            **versions,
            "torch": torch.__version__,
        },
        "device": device_name(device),
        "cpu_threads": torch.get_num_threads(),
        "commit": _commit(),
    }


def device_name(device: torch.device) -> str:
    """The GPU's name, or the CPU's."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _commit() -> str | None:
    """The commit of this source tree, with a + where files have been changed since; None outside a checkout."""
    place = Path(__file__).resolve().parents[2]
    try:
        described = subprocess.run(
            ["git", "-C", str(place), "describe", "--always", "--abbrev=12", "--dirty=+"],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return described.stdout.strip() or None


def peak_memory() -> int:
    """Bytes that this process has had at most: of its GPU where it has one, else of the machine's memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    import resource  # Unix only

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
