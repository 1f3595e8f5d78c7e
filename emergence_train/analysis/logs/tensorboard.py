"""TensorBoard's event files, through the package `tensorboard` (an extra): a directory of them is a run."""

from pathlib import Path
from typing import Any

from emergence_train.analysis.logs.log import Format, Log, frame_of
from emergence_train.errors import InputError

MARK = "tfevents"


def _event_files(path: Path) -> list[Path]:
    return sorted(p for p in path.rglob(f"*{MARK}*") if p.is_file()) if path.is_dir() else [path]


def read_tensorboard(path: Path) -> list[Log]:
    """Every directory of event files below `path`, named by its path from there; a file alone by its directory."""
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    except ImportError:
        raise InputError(
            f"{path}: event files need TensorBoard's reader: pip install 'emergence-train[tensorboard]'"
        ) from None
    files = _event_files(path)
    if not files or not files[0].is_file():
        raise InputError(f"{path}: holds no event file (*{MARK}*); name TensorBoard's log directory")
    places = sorted({file.parent for file in files}) if path.is_dir() else files
    logs = []
    for place in places:
        events = EventAccumulator(str(place), size_guidance={"scalars": 0, "tensors": 0})
        events.Reload()
        if rows := _rows(events):
            logs.append(Log(_name(path, place), place, frame_of(rows)))
    if not logs:
        raise InputError(f"{path}: its event files hold no scalars; log the loss with SummaryWriter.add_scalar")
    return logs


def _rows(events: Any) -> list[dict]:
    """A row a step, a column a tag. Of a step that was logged again (a resumed run) the last value counts."""
    rows: dict[int, dict] = {}
    for tag in events.Tags()["scalars"]:
        for event in events.Scalars(tag):
            rows.setdefault(event.step, {"step": event.step})[tag] = event.value
    for tag in events.Tags()["tensors"]:  # TensorFlow 2 writes its scalars as tensors
        for event in events.Tensors(tag):
            if event.tensor_proto.float_val:
                rows.setdefault(event.step, {"step": event.step})[tag] = event.tensor_proto.float_val[0]
    return [rows[step] for step in sorted(rows)]


def _name(path: Path, place: Path) -> str:
    folder = place if place.is_dir() else place.parent
    below = folder.relative_to(path).as_posix() if path.is_dir() else "."
    return folder.resolve().name if below == "." else below


def _takes(path: Path, _: str) -> bool:
    return MARK in path.name if path.is_file() else path.is_dir() and next(path.rglob(f"*{MARK}*"), None) is not None


TENSORBOARD = Format("tensorboard", "TensorBoard's event files, or a directory of them", _takes, read_tensorboard)
