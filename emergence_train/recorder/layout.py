"""Names of the files in a run directory."""

import os
import re
from pathlib import Path


def step_name(step: int) -> str:
    return f"step-{step:010d}"


def step_of(path: Path) -> int:
    """The step that a checkpoint's directory or a table's file is named after."""
    return int(path.stem.removeprefix("step-"))


def saved_step(run: Path) -> int | None:
    """The step of the newest state that a run of `train` has saved, 0 where it has none; None of any other run."""
    if not os.path.isfile(run / "config.yaml"):
        return None
    folder = run / "checkpoints"
    try:
        names = [name for name in os.listdir(folder) if re.fullmatch(r"step-\d{10}", name)]
    except OSError:
        names = []
    return max((step_of(Path(name)) for name in names if os.path.isfile(folder / name / "manifest.json")), default=0)


def resumption(run: Path) -> str:
    """What the same `train` command does with a run that ended early; empty of any other run."""
    step = saved_step(run)
    if step is None:
        return ""
    return f"resumes from step {step}" if step else "starts over, as no state is saved"
