"""Evaluate a checkpoint: tasks, and losses that are comparable between tokenizers."""

import math
import shlex
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from emergence_train.config import Samples, TaskConfig
from emergence_train.data.dataset import Dataset
from emergence_train.data.tokenizer import load_file
from emergence_train.errors import InputError, listed
from emergence_train.evaluation.comparable import comparable, unigram_losses
from emergence_train.evaluation.suite import Suite
from emergence_train.evaluation.task_digest import Digests
from emergence_train.evaluation.text_samples import TextSamples
from emergence_train.models.language_model import LanguageModel
from emergence_train.parallel.mesh import Mesh

if TYPE_CHECKING:
    import pandas as pd


class Scores(NamedTuple):
    rows: list[dict]  # rows of metrics, see evaluation.metrics
    seconds: float  # of the tasks
    texts: list[dict[str, str]]  # prompt and text of each sample


class Evaluator:
    """Scores the tasks of a run and writes its samples; raises InputError where a task or its data are unavailable, or a
    prompt too long."""

    def __init__(self, tasks: list[TaskConfig], dataset: Dataset, samples: Samples | None = None) -> None:
        self.dataset = dataset
        self.texts: TextSamples | None = None
        if samples is not None and samples.prompts:
            tokenizer, end = load_file(dataset.root / "tokenizer.json"), dataset.index["tokenizer"]["end_of_text"]
            self.texts = TextSamples(samples, tokenizer, end, dataset.sequence)
        self.suite = Suite(tasks, dataset, dataset.sequence) if tasks else None

    @cached_property
    def unigram(self) -> dict[str, float]:
        """Cross-entropy of each validation split under the unigram model, nats per token."""
        return unigram_losses(self.dataset)

    def comparable(self, losses: dict[str, float]) -> dict:
        """bits_per_byte and log_pplu of each validation split's loss."""
        return comparable(self.dataset, losses, self.unigram)

    @property
    def notes(self) -> list[str]:
        """Notes for the log on how tasks are scored."""
        return self.suite.notes if self.suite else []

    @property
    def cut(self) -> int:
        """Number of requests whose context was truncated on the left."""
        return self.suite.cut if self.suite else 0

    @property
    def digests(self) -> Digests:
        """What each task asks, see task_digest. Computed once; rank 0 alone needs them."""
        return self.suite.digests if self.suite else Digests()

    def other_items(self, folder: Path, but: Path | None = None) -> dict[str, tuple[TaskConfig, Path]]:
        """The tasks that have scores of other items in the tables of `folder`, which would be one curve with new ones, by name,
        with the first such table; the table `but` is written anew."""
        from emergence_train.recorder import evaluations  # pandas

        tasks: dict[str, tuple[TaskConfig, Path]] = {}
        if self.suite is None:
            return tasks
        digests = self.digests  # where there are no tables too: what a task cannot build, it says at the start
        for path, row, digest in evaluations.digests(folder):
            if path != but and digests.differs(row, digest):
                name = str(digests.owner(row))
                tasks.setdefault(name, (self.suite.wanted[name], path))
        return tasks

    def unknown_items(self, folder: Path) -> list[str]:
        """Notes on the tables of `folder` that have scores of the tasks of which the items are not known."""
        from emergence_train.recorder import evaluations  # pandas

        of_tasks: dict[str, dict[str, None]] = {}
        for path, row, digest in evaluations.digests(folder):
            if not digest and self.digests.of(row):
                of_tasks.setdefault(str(self.digests.owner(row)), {})[path.stem] = None
        return [
            f"{folder}: scores of {name} at {listed(steps, 3)} stay, on items that are not known; score those steps again too"
            for name, steps in of_tasks.items()
        ]

    def check_items(self, folder: Path, remedy: Callable[[TaskConfig], str], but: Path | None = None) -> None:
        """Raise InputError for a task of `other_items`, with what to do about it."""
        for task, table in self.other_items(folder, but).values():
            raise InputError(other_items(task, table) + f"; {remedy(task)}")

    def score(self, model: LanguageModel, mesh: Mesh, each_batch: Callable[[], None] = lambda: None) -> Scores:
        """Score the tasks and write the samples. Collective: all ranks call it; `each_batch` is called before each batch on
        all ranks and may raise to stop."""
        rows, seconds = self.suite.score(model, mesh, each_batch) if self.suite else ([], 0.0)
        return Scores(rows, seconds, self.texts.write(model, mesh, each_batch) if self.texts else [])

    def table(self, scores: Scores, *, run: str, params: int, step: int, tokens: int, losses: dict) -> "pd.DataFrame":
        """The `evaluations` table of one checkpoint; `losses` are its mean losses by split, nats per token."""
        from emergence_train.evaluation.evaluations_table import table  # pandas: rank 0 alone makes tables

        return table(
            scores.rows,
            self.digests,
            run=run,
            params=params,
            step=step,
            tokens=tokens,
            loss=losses["iid"],
            unigram_loss=self.unigram.get("iid", math.nan),
            bits_per_byte=self.comparable(losses)["bits_per_byte"]["iid"],
        )


def other_items(task: TaskConfig, table: Path) -> str:
    """That a table has scores of other items of a task."""
    asked = f"{task.file} holds" if task.file else "the task asks"
    return f"{table}: has scores of {task.table_name!r} on other items than {asked} now, or scored in another way"


def renamed(task: TaskConfig) -> str:
    """How `--tasks` gives a task of a file another name: the beginning of a remedy, "" of others."""
    return f"give it another name (--tasks {shlex.quote(f'{task.table_name}-2={task.file}')}), or " if task.file else ""
