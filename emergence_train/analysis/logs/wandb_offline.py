"""Weights & Biases: runs that were kept offline (wandb/offline-run-*/*.wandb), and its exports as CSV, of delimited.py.

The file is LevelDB's log format (blocks of 32 KiB; records of a checksum, a length and a kind: whole, or first, middle and last
part) after a header of seven bytes; a record is a protocol buffer that the package wandb describes.
"""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from emergence_train.analysis.logs import delimited
from emergence_train.analysis.logs.log import Format, Log, frame_of
from emergence_train.analysis.logs.records import flat
from emergence_train.errors import InputError

HEADER, BLOCK = 7, 1 << 15  # bytes: of the file and of each piece; of a block
WHOLE, FIRST, MIDDLE, LAST = 1, 2, 3, 4
SUFFIX = ".wandb"


def _files(path: Path) -> list[Path]:
    """The files of a path: itself, an offline run's directory, a directory of them, or one that holds wandb/."""
    if path.is_file():
        return [path] if path.suffix == SUFFIX else []
    patterns = (f"*{SUFFIX}", f"*run-*/*{SUFFIX}", f"wandb/*run-*/*{SUFFIX}")
    return next((files for pattern in patterns if (files := sorted(path.glob(pattern)))), [])


def records(data: bytes) -> Iterator[bytes]:
    """The records of a file; a last one that was cut off, as a run that goes on leaves it, is left out."""
    at, partial = HEADER, b""
    while at + HEADER <= len(data):
        left = BLOCK - at % BLOCK
        if left < HEADER:  # padding
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + HEADER])
        piece = data[at + HEADER : at + HEADER + length]
        at += HEADER + length
        if len(piece) < length or kind not in (WHOLE, FIRST, MIDDLE, LAST):
            return
        partial = piece if kind in (WHOLE, FIRST) else partial + piece
        if kind in (WHOLE, LAST):
            yield partial


def read_offline(path: Path) -> list[Log]:
    """A log for each run: its history, over all starts that have its id."""
    names: dict[str, str] = {}
    rows: dict[str, list[dict]] = {}
    for file in _files(path):
        run = file.stem
        for record in _parsed(file):
            if record.HasField("run"):
                run = record.run.run_id or run
                names[run] = record.run.display_name or run
            elif record.HasField("history"):
                rows.setdefault(run, []).append(_row(record.history.item))
    if not rows:
        raise InputError(f"{path}: its W&B files hold no history; name a run that has logged a loss")
    return [Log(names.get(run, run), path, frame_of(history)) for run, history in rows.items()]


def _parsed(file: Path) -> Iterator[Any]:
    from google.protobuf.message import DecodeError
    from wandb.proto.wandb_internal_pb2 import Record

    for content in records(file.read_bytes()):
        record = Record()
        try:
            record.ParseFromString(content)
        except DecodeError:  # damaged from here on
            return
        yield record


def _row(items: Any) -> dict:
    row: dict = {}
    for item in items:
        value = json.loads(item.value_json)
        if not isinstance(value, list):  # an object of older versions has what newer ones write as nested keys
            row |= flat({"/".join(item.nested_key) or item.key: value})
    return row


def _takes(path: Path, head: str) -> bool:
    return bool(_files(path)) or delimited.WANDB.takes(path, head)


def _read(path: Path) -> list[Log]:
    return read_offline(path) if _files(path) else delimited.WANDB.read(path)


WANDB = Format("wandb", "W&B's exports as CSV, and its offline runs", _takes, _read)
