"""JSON lines: W&B histories, nanochat-like and home-made logs; an object a row, nested ones by joined names."""

import json
from pathlib import Path

from emergence_train.analysis.logs.encoded import stem_of, suffix_of, text_of
from emergence_train.analysis.logs.log import Format, Log, frame_of
from emergence_train.errors import InputError


def _flat(row: dict, prefix: str = "") -> dict:
    """{"train": {"loss": 1}} as {"train/loss": 1}."""
    flat: dict = {}
    for key, value in row.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}/")
        elif not isinstance(value, list):
            flat[f"{prefix}{key}"] = value
    return flat


def read_jsonl(path: Path) -> list[Log]:
    """One run, or several by the field `run`. A last line that is cut off is left out."""
    rows, places = [], []
    lines = text_of(path).split("\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            if number == len(lines):
                break
            raise InputError(f"{path}: row {number} is not JSON ({error}); remove that line") from None
        if not isinstance(row, dict):
            raise InputError(f"{path}: row {number} is not a JSON object; remove that line")
        rows.append(_flat(row))
        places.append(number)
    if not rows:
        raise InputError(f"{path}: has no rows; name a log that has some")
    return [Log(stem_of(path), path, frame_of(rows, places))]


def _takes(path: Path, head: str) -> bool:
    objects = head.lstrip().startswith("{") and not head.lstrip().startswith("{'")  # which are Python's
    return suffix_of(path) in (".jsonl", ".ndjson") or objects and "}\n{" in head


JSONL = Format("jsonl", "JSON lines, an object a row (W&B histories too)", _takes, read_jsonl)
