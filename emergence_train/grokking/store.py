"""What a sweep keeps on disk: the curve of every run that has ended, and the state of every stack that has not.

Both are named by a digest of all that decides them, so a changed file finds nothing wrong here and keeps what still holds.
"""

import hashlib
import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from emergence_train import files
from emergence_train.grokking.stacked import MEASURES, Stack
from emergence_train.grokking.sweep import Run, SweepPlan

DIGEST_BYTES = 32


@dataclass(frozen=True)
class Store:
    """The directory of a sweep."""

    out: Path
    plan: SweepPlan

    def curve_path(self, run: Run) -> Path:
        return self.out / "runs" / f"{run.name}-{self.plan.digest(run)}.npy"

    def read_curve(self, run: Run) -> np.ndarray | None:
        """(rows, 1 + measures) of a run that has ended; None where it has not, or its file is damaged: it is trained
        again."""
        try:
            data = self.curve_path(run).read_bytes()
        except FileNotFoundError:
            return None
        content, digest = data[:-DIGEST_BYTES], data[-DIGEST_BYTES:]
        if hashlib.sha256(content).digest() != digest:
            return None
        return np.load(io.BytesIO(content))

    def write_curve(self, run: Run, curve: list[tuple[float, ...]]) -> None:
        buffer = io.BytesIO()
        np.save(buffer, np.array(curve, dtype=np.float64).reshape(-1, 1 + len(MEASURES)))
        content = buffer.getvalue()
        files.write_bytes(self.curve_path(run), content + hashlib.sha256(content).digest())

    def state_path(self, runs: tuple[Run, ...]) -> Path:
        names = " ".join(self.plan.digest(run) for run in runs)
        return self.out / "stacks" / f"{hashlib.sha256(names.encode()).hexdigest()[:16]}.safetensors"

    def write_state(self, runs: tuple[Run, ...], stack: Stack) -> None:
        """Save a stack that was begun with `runs`."""
        tensors = {"weights": stack.weights.cpu(), "moments": stack.moments.cpu().contiguous()}
        tensors["curves"] = torch.tensor([stack.curves[run.name] for run in stack.runs], dtype=torch.float64)
        metadata = {"update": str(stack.update), "runs": json.dumps([run.name for run in stack.runs])}
        content = save(tensors, metadata)
        files.write_bytes(self.state_path(runs), content + hashlib.sha256(content).digest())

    def restore(self, runs: tuple[Run, ...], stack: Stack) -> bool:
        """Bring a new stack to its saved state. False where there is none, it is damaged, or a run that had left it has
        no curve any more: it begins anew."""
        try:
            data = self.state_path(runs).read_bytes()
        except FileNotFoundError:
            return False
        content, digest = data[:-DIGEST_BYTES], data[-DIGEST_BYTES:]
        if hashlib.sha256(content).digest() != digest:
            return False
        try:
            tensors = load(content)
        except SafetensorError:
            return False
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
        names = json.loads(header["runs"])
        if not {run.name for run in stack.runs} <= set(names):
            return False
        stack.resume(names, int(header["update"]), tensors["weights"], tensors["moments"], tensors["curves"])
        return True

    def remove_state(self, runs: tuple[Run, ...]) -> None:
        self.state_path(runs).unlink(missing_ok=True)
