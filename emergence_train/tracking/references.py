"""Checkpoints as W&B artifacts that name where they lie: a reference each, nothing is uploaded."""

import hashlib
import re
from pathlib import Path
from typing import Any

from emergence_train.recorder.layout import step_of

KIND = "checkpoint"


class References:
    """Refers to each complete checkpoint of a run once. Retention may delete it later: then the reference leads nowhere."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._known: set[int] = set()

    def send(self, run: Any) -> None:
        """Log an artifact for each checkpoint that has come since the last call."""
        for manifest in sorted((self.directory / "checkpoints").glob("step-*/manifest.json")):
            step = step_of(manifest.parent)
            if step not in self._known:
                self._known.add(step)
                run.log_artifact(artifact(run, manifest, step), aliases=["latest", f"step-{step}"])


def artifact(run: Any, manifest: Path, step: int) -> Any:
    """The artifact of the checkpoint with this manifest: its files by their places, not hashed again, since the manifest has
    their checksums."""
    import wandb

    folder = manifest.parent.resolve()
    metadata = {"step": step, "path": str(folder), "manifest_sha256": hashlib.sha256(manifest.read_bytes()).hexdigest()}
    reference = wandb.Artifact(f"{re.sub(r'[^A-Za-z0-9_.-]', '-', run.id)}-{KIND}", KIND, metadata=metadata)
    reference.add_reference(folder.as_uri(), name=folder.name, checksum=False)
    return reference
