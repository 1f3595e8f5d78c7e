"""TensorBoard's event files, through the package `tensorboard` (an extra): a directory of them is a run."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from emergence_train.analysis.logs.log import Format, Log, frame_of
from emergence_train.errors import InputError

MARK = "tfevents"
NUMBERS = ("DT_FLOAT", "DT_DOUBLE", "DT_HALF", "DT_INT32", "DT_INT64")


def _event_files(path: Path) -> list[Path]:
    """In the order of writing, by their names' numbers: seconds, process and a count, of which 10 comes after 9."""
    files = [p for p in path.rglob(f"*{MARK}*") if p.is_file()] if path.is_dir() else [path]
    return sorted(files, key=lambda file: [int(number) for number in re.findall(r"\d+", file.name)])


def read_tensorboard(path: Path) -> list[Log]:
    """Every directory of event files below `path`, named by its path from there; a file alone by its directory."""
    try:
        from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
    except ImportError:
        raise InputError(
            f"{path}: event files need TensorBoard's reader: pip install 'emergence-train[tensorboard]'"
        ) from None
    files = _event_files(path)
    if not files or not files[0].is_file():
        raise InputError(f"{path}: holds no event file (*{MARK}*); name TensorBoard's log directory")
    logs = []
    for place in sorted({file.parent for file in files}) if path.is_dir() else files:
        own = [LegacyEventFileLoader(str(file)) for file in files if place in (file, file.parent)]
        if rows := _rows(event for loader in own for event in loader.Load()):
            logs.append(Log(_name(path, place), place, frame_of(rows)))
    if not logs:
        raise InputError(
            f"{path}: its event files hold no scalars; log the loss with SummaryWriter.add_scalar or tf.summary.scalar"
        )
    return logs


def _rows(events: Iterable[Any]) -> list[dict]:
    """A row for the values written one after another at a step, a column a tag, in the order of writing.

    Rows of a branch that was left stay, for resumption.py, but where the writer itself purged them (`purge_step`).
    """
    rows: list[tuple[int, dict]] = []
    for event in events:
        if event.session_log.status == event.session_log.START:
            rows = [(step, row) for step, row in rows if step < event.step]
        for value in event.summary.value:
            if (number := _number(value)) is not None:
                if not rows or rows[-1][0] != event.step:
                    rows.append((event.step, {"step": event.step}))
                rows[-1][1][value.tag] = number
    return [row for _, row in rows]


def _number(summary: Any) -> float | None:
    """A scalar, which TensorFlow 2 and torch's new style write as a tensor; None for texts, histograms and the like."""
    from tensorboard.compat.proto import types_pb2
    from tensorboard.util.tensor_util import make_ndarray

    if summary.HasField("simple_value"):
        return summary.simple_value
    of_numbers = types_pb2.DataType.Name(summary.tensor.dtype) in NUMBERS and not summary.tensor.tensor_shape.dim
    return float(make_ndarray(summary.tensor)) if of_numbers else None


def _name(path: Path, place: Path) -> str:
    folder = place if place.is_dir() else place.parent
    below = folder.relative_to(path).as_posix() if path.is_dir() else "."
    return folder.resolve().name if below == "." else below


def _takes(path: Path, _: str) -> bool:
    return MARK in path.name if path.is_file() else path.is_dir() and next(path.rglob(f"*{MARK}*"), None) is not None


TENSORBOARD = Format("tensorboard", "TensorBoard's event files, or a directory of them", _takes, read_tensorboard)
