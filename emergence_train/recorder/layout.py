"""Names of the files in a run directory."""

from pathlib import Path


def step_name(step: int) -> str:
    return f"step-{step:010d}"


def step_of(path: Path) -> int:
    """The step that a checkpoint's directory or a table's file is named after."""
    return int(path.stem.removeprefix("step-"))
