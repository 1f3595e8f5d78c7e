"""What a task asks and how it is scored, as a digest: a file that was moved or written anew with the same items has the same.

It is kept with the scores (column `task_digest` of evaluations), and scores of other items under the same name are refused.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping

from emergence_train.evaluation.items import AnswerTask, Item, OpenItem, OpenTask, StepsTask, Task


def digest(settings: object, asked: Iterable[object]) -> str:
    """16 hex digits of the settings and of what is asked, in whatever order; both of what JSON has."""
    lines = sorted(json.dumps(each, sort_keys=True) for each in asked)
    return hashlib.sha256(json.dumps([settings, lines], sort_keys=True).encode()).hexdigest()[:16]


def of_task(task: Task | StepsTask | AnswerTask | OpenTask) -> str:
    """The digest of items, whatever they are named and noted."""
    if isinstance(task, OpenTask):
        return digest(["answers", task.longest], map(_open, task.items))
    if isinstance(task, StepsTask):
        return digest(["steps"], ([_plain(step) for step in item] for item in task.items))
    return digest(["continuation" if isinstance(task, AnswerTask) else "choices"], map(_plain, task.items))


def _plain(item: Item) -> list:
    return [item.pairs, item.answer]


def _open(item: OpenItem) -> list:
    return [item.context, sorted(item.answers), item.number]


def owner(row: str, names: Iterable[str]) -> str | None:
    """The task that a row of the tables is of: a tag of lm-eval's has rows NAME/TASK."""
    return next((name for name in names if row == name or row.startswith(f"{name}/")), None)


def column(rows: Iterable[str], digests: Mapping[str, str]) -> list[str]:
    """The digest of each row's task."""
    owners = (owner(row, sorted(digests, key=len, reverse=True)) for row in rows)
    return ["" if name is None else digests[name] for name in owners]
