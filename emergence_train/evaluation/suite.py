"""The tasks of a configuration, scored on a model: what a checkpoint's `evaluations` table is made of."""

import difflib
import time
from pathlib import Path

import numpy as np
import pandas as pd

from emergence_train import records
from emergence_train.config import TaskConfig
from emergence_train.data import tokenizer as tokenizers
from emergence_train.data.dataset import Dataset
from emergence_train.distributed import Ranks
from emergence_train.errors import InputError
from emergence_train.evaluation import items, synthetic
from emergence_train.evaluation.metrics import choice_metrics
from emergence_train.evaluation.scoring import encode, log_likelihoods

KNOWN = (*synthetic.GENERATORS, synthetic.FROM_TEXT)


class Suite:
    """The tasks' items as requests in the run's tokens. Building it needs no model and checks everything."""

    def __init__(self, wanted: list[TaskConfig], dataset: Dataset, longest: int) -> None:
        self.dataset, self.longest = dataset, longest
        self.tokenizer = tokenizers.load_file(dataset.root / "tokenizer.json")
        self.end = dataset.index["tokenizer"]["end_of_text"]
        self.tasks = [self._task(one) for one in wanted]
        names = [task.name for task in self.tasks]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise InputError(f"tasks: {twice[0]!r} stands twice; give one of them a name of its own")
        self.requests = [
            encode(self.tokenizer, item.context, choice, self.end, longest)
            for task in self.tasks for item in task.items for choice in item.choices
        ]  # fmt: skip

    @property
    def cut(self) -> int:
        """How many requests were too long and lost the beginning of their context."""
        return sum(len(request.ids) == self.longest + 1 for request in self.requests)

    def _task(self, wanted: TaskConfig) -> items.Task:
        name = wanted.name or wanted.task
        if wanted.file:
            return items.from_file(name, Path(wanted.file), wanted.items)
        if wanted.task in synthetic.GENERATORS:
            made = synthetic.GENERATORS[wanted.task](wanted.items or 200, wanted.seed)
            return items.checked(name, made, "tasks")
        if wanted.task == synthetic.FROM_TEXT:
            windows = np.concatenate([
                np.asarray(self.dataset.windows[segment.domain][segment.begin : segment.end], dtype=np.int64)
                for segment in self.dataset.segments() if "iid" in segment.splits
            ])  # fmt: skip
            decode = self.tokenizer.decode
            made = synthetic.continuation(wanted.items or 200, wanted.seed, windows, lambda ids: decode(ids, False))
            return items.checked(name, made, f"{self.dataset.root}: validation sequences too few or too short")
        raise InputError(unknown(wanted.task))

    def score(self, model, ranks: Ranks) -> tuple[list[dict], float]:
        """Rows of metrics (see metrics.choice_metrics) and the seconds they took. All ranks call it."""
        began = time.monotonic()
        values = log_likelihoods(model, self.requests, ranks)
        rows, at = [], 0
        for task in self.tasks:
            each = []
            for item in task.items:
                each.append(values[at : at + len(item.choices)])
                at += len(item.choices)
            rows += choice_metrics(task, each)
        return rows, time.monotonic() - began


def unknown(name: str) -> str:
    """The error line for a task that does not exist, with the names nearest to it."""
    close = difflib.get_close_matches(name, KNOWN, n=3, cutoff=0.4)
    near = "did you mean " + " or ".join(map(repr, close)) if close else "known: " + ", ".join(KNOWN)
    return f"task {name!r} is not known; {near}? Items of your own: tasks: [{{task: NAME, file: ITEMS.jsonl}}]"


def table(rows: list[dict], *, run: str, params: int, step: int, tokens: int, loss: float, **extra: float) -> pd.DataFrame:
    """The `evaluations` table of one checkpoint. `loss` is the iid validation loss, nats per token; `extra` may hold
    unigram_loss and bits_per_byte."""
    return pd.DataFrame(rows).assign(run=run, params=params, step=step, tokens=tokens, loss=loss, **extra)


def write(directory: Path, name: str, frame: pd.DataFrame, vocabulary: str) -> Path:
    """evaluations/`name`.parquet of a run; rows of tasks that it had and `frame` has not stay."""
    path = directory / "evaluations" / f"{name}.parquet"
    if path.is_file():
        before = records.read(records.EVALUATIONS, path)
        kept = before[~before["task"].isin(frame["task"])]
        frame = pd.concat([kept[[c for c in kept if c in frame]], frame], ignore_index=True)
    records.write(records.EVALUATIONS, frame, path, vocabulary=vocabulary)
    return path
