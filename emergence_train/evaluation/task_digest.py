"""What a task asks and how it is scored, as a digest: a file that was moved or written anew with the same items has the same.

It is kept with the scores (column `task_digest` of evaluations), and scores of other items under the same name are refused.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

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


@dataclass(frozen=True)
class Digests:
    """The digest of each task by its name in the tables, "" where it is not known; those of `tags`, which are lm-eval's, may have
    rows NAME/TASK."""

    known: Mapping[str, str] = field(default_factory=dict)
    tags: frozenset[str] = frozenset()

    def owner(self, row: str) -> str | None:
        """The task that a row of the tables is of."""
        if row in self.known:
            return row
        return max((tag for tag in self.tags if row.startswith(f"{tag}/")), key=len, default=None)

    def of(self, row: str) -> str:
        """The digest of the task that a row is of; "" where it is of none."""
        return self.known.get(self.owner(row) or "", "")

    def differs(self, row: str, digest: str) -> bool:
        """Whether a row of this digest is of one of these tasks, and of other items; not where either is not known."""
        return "" not in (digest, now := self.of(row)) and digest != now
