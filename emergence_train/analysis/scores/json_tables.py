"""Scores in JSON that no harness wrote, as the cells of a table: a row a score, or {task: {metric: value}} a checkpoint.

[{"step": 1000, "task": "piqa", "metric": "acc", "value": 0.6}, ...]        also a row a line
{"piqa": {"acc": 0.6, "acc_stderr": 0.01}, ...}                             the step from the file's name
{"step": 1000, "loss": 2.9, "results": {"piqa": {"acc": 0.6}}}              a line a checkpoint
{"step1000": {"piqa": {"acc": 0.6}}, ...}, {"my-70m": {...}, ...}           a checkpoint or a model a key
{"checkpoints": [1000, ...], "results": {"piqa": {"acc": [0.6, ...]}}}      a checkpoint an item, as of bigscience
"""

import json
import re
from pathlib import Path

import pandas as pd

from emergence_train.analysis.logs.encoded import suffix_of, text_of
from emergence_train.analysis.logs.log import frame_of
from emergence_train.analysis.logs.records import flat, objects_of, records_of
from emergence_train.analysis.scores.options import step_of
from emergence_train.errors import InputError, listed

SUFFIXES = (".json", ".jsonl", ".ndjson")
LONGEST = 100_000_000  # bytes of a file that may be scores
# Words around the scores that are no task's, and what a row of one item has
AROUND = re.compile(r"^(results?|scores?|metrics?|eval\w*|tasks?|downstream|benchmarks?)/", re.IGNORECASE)
KEYS = 6  # of an object that a message names
LITERAL = 5  # letters of false, which a file may be cut off in
ITEM = {"doc_id", "instance_id", "question_id", "doc", "id"}


def columns(path: Path) -> list[str]:
    """The names of the table that a file's JSON is; none where it is none."""
    if suffix_of(path) not in SUFFIXES or not path.is_file() or path.stat().st_size > LONGEST:
        return []
    try:
        return list(frame(path).columns)
    except (OSError, ValueError, InputError, RecursionError):
        return []


def frame(path: Path) -> pd.DataFrame:
    """Its cells; None where a row lacks one. Raises InputError."""
    rows = _rows(text_of(path))
    if not rows:
        raise InputError(f"{path}: has no rows of scores; name a file that has some")
    return frame_of([{_inner(name): value for name, value in flat(row).items()} for row in rows])


def refusal(path: Path) -> str | None:
    """Why a file of JSON is no table of scores, and what to do; None for one of another kind."""
    if suffix_of(path) not in SUFFIXES or not path.is_file() or path.stat().st_size > LONGEST:
        return None
    if (reason := damage(path)) is not None:
        return reason
    first = next(iter(objects_of(text_of(path, errors="replace"))), None)
    keys = f" (it has {listed(list(first), KEYS)})" if isinstance(first, dict) and first else ""
    return (
        f"{path}: its JSON is not as a harness writes it{keys}; write an object a score, as "
        '{"step": 1000, "task": "piqa", "metric": "acc", "value": 0.6}, or {"piqa": {"acc": 0.6}} a checkpoint'
    )


def damage(path: Path) -> str | None:
    """Where a file of JSON ceases to be some: at its end, which was cut off, or before it; None where it is whole."""
    if suffix_of(path) not in SUFFIXES or not path.is_file():
        return None
    text = text_of(path, errors="replace").rstrip()
    parts = [*enumerate(text.split("\n"), 1)] if "}\n{" in text else [(1, text)]  # an object a line
    for first, part in parts:
        try:
            json.loads(part or "0")
        except RecursionError:
            return f"{path}: its JSON is nested too deeply; name another file"
        except json.JSONDecodeError as error:
            ends = first == parts[-1][0] and error.pos + LITERAL >= len(part) or error.msg.startswith("Unterminated")
            what = "is cut off at" if ends else f"is no JSON ({error.msg}) at"
            return f"{path}: {what} line {first + error.lineno - 1}; name a whole file of results"
    return None


def _inner(name: str) -> str:
    while (match := AROUND.match(name)) is not None:
        name = name[match.end() :]
    return name


def _rows(text: str) -> list[dict]:
    records = records_of(text)
    if records is None:
        records = objects_of(text)
    if any(not isinstance(row, dict) or ITEM & row.keys() for row in records):
        return []
    return [row for record in records for row in _rows_of(record)]


def _rows_of(record: dict) -> list[dict]:
    """The rows of an object: of a list that it holds, with what stands beside it, of each checkpoint or model, or itself."""
    if isinstance(steps := record.get("checkpoints"), list):
        beside = {"step": steps} | {key: value for key, value in record.items() if key != "checkpoints"}
        return [_of_place(beside, k, len(steps)) for k in range(len(steps))]
    lists = {key: v for key, v in record.items() if isinstance(v, list) and v and all(isinstance(r, dict) for r in v)}
    if len(lists) == 1:
        (key,) = lists
        beside = flat({name: value for name, value in record.items() if name != key})
        return [beside | row for row in lists[key]]
    if (
        record
        and all(step_of(key) is not None for key in record)
        and all(isinstance(value, dict) for value in record.values())
    ):
        return [{"step": step_of(key)} | inner for key, inner in record.items()]
    if len(record) > 1 and all(map(_has_tasks, record.values())):
        return [{"model": key} | inner for key, inner in record.items()]
    return [record]


def _of_place(content: dict, k: int, count: int) -> dict:
    """An object with the item `k` of each of its lists of `count`."""
    return {
        key: _of_place(value, k, count)
        if isinstance(value, dict)
        else value[k]
        if isinstance(value, list) and len(value) == count
        else value
        for key, value in content.items()
    }


def _has_tasks(value: object) -> bool:
    """Whether it is {task: {metric: value}}, or has it behind a word around it."""
    return (
        isinstance(value, dict) and bool(value) and all(isinstance(inner, dict) and inner for inner in value.values())
    )
