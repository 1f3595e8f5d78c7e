"""What a rank finds on its node: versions, its GPU, how fast the run directory is written and a shard is read."""

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from emergence_train.recorder.environment import environment

BYTES = 8 << 20  # written and read, at most
SECONDS = 2.0  # likewise
BLOCK = 1 << 20
APPEARS_SECONDS = 15.0  # a network file system may remember for so long that a directory was not there
ONLY_RANK0 = ("wandb",)  # packages that no other rank uses


@dataclass(frozen=True)
class RankFacts:
    """Of one rank; what holds for its whole node is the first rank's to say."""

    node: str  # node_name()
    host: str
    gpu: str | None = None
    gpu_memory: int = 0  # bytes
    clock: int = 0  # MHz, the highest that the GPU's multiprocessors may reach; 0: not known
    visible_gpus: int = 0
    versions: dict[str, str] = field(default_factory=dict)  # by name; empty where another rank says it
    write: float | None = None  # bytes/s
    read: float | None = None  # bytes/s


def rank_facts(node: str, device: torch.device, first: bool, run: Path, shard: Path, name: str) -> RankFacts:
    """Of this rank; `first` of its node: with versions and storage.

    Args:
        shard: a file of the prepared data. name: of a file in the run directory that no other process writes.

    Raises:
        OSError: the run directory cannot be written, or the shard not read.
    """
    facts = {"node": node, "host": socket.gethostname(), **_gpu(device)}
    if first:
        facts |= {"versions": _versions(device), "write": write_speed(run, name), "read": read_speed(shard)}
    return RankFacts(**facts)


def write_speed(directory: Path, name: str) -> float:
    """Bytes a second of a file that is written, reaches the disk and is removed again."""
    path, block, written = directory / name, os.urandom(BLOCK), 0
    with _named(path):
        handle = _opened(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            began = time.monotonic()
            while written < BYTES and time.monotonic() - began < SECONDS:
                written += os.write(handle, block)
            os.fsync(handle)
            return written / max(time.monotonic() - began, 1e-9)
        finally:
            with contextlib.suppress(OSError):
                path.unlink()
            os.close(handle)


def read_speed(path: Path) -> float | None:
    """Bytes a second of a file's beginning, which the system is asked to forget before; None of a file too small to tell."""
    with _named(path):
        handle, done = _opened(path, os.O_RDONLY), 0
        try:
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(handle, 0, BYTES, os.POSIX_FADV_DONTNEED)
            began = time.monotonic()
            while done < BYTES and time.monotonic() - began < SECONDS:
                block = os.read(handle, BLOCK)
                if not block:
                    break
                done += len(block)
            return done / max(time.monotonic() - began, 1e-9) if done >= BLOCK else None
        finally:
            os.close(handle)


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """An OSError of a file's handle does not say which file it was."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from None


def _opened(path: Path, flags: int) -> int:
    until = time.monotonic() + APPEARS_SECONDS
    while True:
        try:
            return os.open(path, flags, 0o644)
        except FileNotFoundError:
            if time.monotonic() > until:
                raise
            time.sleep(0.5)


def _gpu(device: torch.device) -> dict:
    if device.type != "cuda":
        return {}
    properties = torch.cuda.get_device_properties(device)
    gpu = {"gpu": properties.name, "gpu_memory": properties.total_memory, "visible_gpus": torch.cuda.device_count()}
    with contextlib.suppress(Exception):  # without NVIDIA's management library
        pynvml = _management_library()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{properties.uuid}")
        gpu["clock"] = pynvml.nvmlDeviceGetMaxClockInfo(handle, pynvml.NVML_CLOCK_SM)
    return gpu


def _management_library() -> Any:
    """NVIDIA's, ready; raises where it is absent."""
    import pynvml  # type: ignore[import-not-found, unused-ignore]

    pynvml.nvmlInit()
    return pynvml


def _versions(device: torch.device) -> dict[str, str]:
    """What must be the same everywhere: packages, CUDA, its driver, NCCL, the commit of this source."""
    recorded = environment(device)
    versions = {name: version for name, version in recorded["versions"].items() if name not in ONLY_RANK0}
    versions["commit"] = recorded["commit"]
    if device.type == "cuda":
        with contextlib.suppress(Exception):
            versions["driver"] = _management_library().nvmlSystemGetDriverVersion()
        with contextlib.suppress(Exception):
            versions["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
    return {name: str(version) for name, version in versions.items() if version is not None}
