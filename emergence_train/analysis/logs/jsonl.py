"""JSON lines: W&B histories, nanochat-like and home-made logs; an object a row, nested ones by joined names."""

import json
import re
from pathlib import Path

from emergence_train.analysis.logs.encoded import stem_of, suffix_of, text_of
from emergence_train.analysis.logs.log import Format, Log, frame_of
from emergence_train.analysis.logs.names import NAMES, plain
from emergence_train.analysis.logs.records import flat, records_of
from emergence_train.errors import InputError

OF_PLANNED = re.compile(r"(\d+)\s*/\s*(\d+)")


def _cells(record: dict) -> dict:
    """A row's cells, "10/500" of a step as itself and the planned last one: ms-swift's {"global_step/max_steps": "10/500"}."""
    cells: dict = {}
    for key, value in flat(record).items():
        both = OF_PLANNED.fullmatch(value) if isinstance(value, str) else None
        name, _, planned = key.partition("/max_")
        if both and plain(name) in NAMES["step"].split():
            cells |= {name: both[1], f"max_{planned or name.removesuffix('s') + 's'}": both[2]}
        else:
            cells[key] = value
    return cells


def read_jsonl(path: Path) -> list[Log]:
    """One run, or several by the field `run`. A last line that is cut off is left out."""
    rows, places = [], []
    text = text_of(path)
    if (records := records_of(text)) is not None:
        return [Log(stem_of(path), path, frame_of([_cells(row) for row in records]))]
    lines = text.split("\n")
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
        rows.append(_cells(row))
        places.append(number)
    if not rows:
        raise InputError(f"{path}: has no rows; name a log that has some")
    return [Log(stem_of(path), path, frame_of(rows, places))]


def _takes(path: Path, head: str) -> bool:
    objects = head.lstrip().startswith("{") and not head.lstrip().startswith("{'")  # which are Python's
    if suffix_of(path) in (".jsonl", ".ndjson") or objects and "}\n{" in head:
        return True
    return (
        suffix_of(path) == ".json"
        and path.is_file()
        and _is_records(head)
        and records_of(text_of(path, errors="replace")) is not None
    )


def _is_records(head: str) -> bool:
    """Whether a JSON file begins as a list of objects does, or as an object of columns."""
    return re.match(r'\s*(\[\s*\{|\{\s*"[^"]*"\s*:\s*[\[{])', head) is not None


JSONL = Format(
    "jsonl", "JSON, an object a row: lines or a list (W&B histories too), or a list a column", _takes, read_jsonl
)
