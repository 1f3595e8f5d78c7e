"""Evaluate a checkpoint: tasks, and losses that are comparable between tokenizers."""

import math
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from emergence_train.config import Samples, TaskConfig
from emergence_train.data.dataset import Dataset
from emergence_train.data.tokenizer import load_file
from emergence_train.errors import InputError
from emergence_train.evaluation import task_digest
from emergence_train.evaluation.comparable import comparable, unigram_losses
from emergence_train.evaluation.suite import Suite
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

    def check_items(self, folder: Path, but: Path | None = None) -> None:
        """Raise InputError where a task has scores of other items in the tables of `folder`, which would be one curve with new
        ones; the table `but` is written anew. Rank 0 alone."""
        from emergence_train.recorder import evaluations  # pandas

        if self.suite is None or not folder.is_dir():
            return
        for path, row, digest in evaluations.digests(folder):
            if path != but and self.is_of_other_items(row, digest):
                name = task_digest.owner(row, self.suite.digests)
                raise InputError(_other_items(self.suite.wanted[str(name)], path))

    def is_of_other_items(self, row: str, digest: str) -> bool:
        """Whether scores of the task `row` are of one that is scored here under that name, and of another digest. An empty one is
        not known."""
        digests = self.suite.digests if self.suite else {}
        name = task_digest.owner(row, digests)
        return name is not None and digest not in ("", digests[name])

    def score(self, model: LanguageModel, mesh: Mesh, each_batch: Callable[[], None] = lambda: None) -> Scores:
        """Score the tasks and write the samples. Collective: all ranks call it; `each_batch` is called before each batch on
        all ranks and may raise to stop."""
        rows, seconds = self.suite.score(model, mesh, each_batch) if self.suite else ([], 0.0)
        return Scores(rows, seconds, self.texts.write(model, mesh, each_batch) if self.texts else [])

    def table(self, scores: Scores, *, run: str, params: int, step: int, tokens: int, losses: dict) -> "pd.DataFrame":
        """The `evaluations` table of one checkpoint; `losses` are its mean losses by split, nats per token."""
        from emergence_train.evaluation.evaluations_table import table  # pandas: rank 0 alone makes tables

        digests = self.suite.digests if self.suite else {}
        return table(
            scores.rows,
            digests,
            run=run,
            params=params,
            step=step,
            tokens=tokens,
            loss=losses["iid"],
            unigram_loss=self.unigram.get("iid", math.nan),
            bits_per_byte=self.comparable(losses)["bits_per_byte"]["iid"],
        )


def _other_items(task: TaskConfig, table: Path) -> str:
    """Why a task is refused, and what to do."""
    name = task.table_name
    asked = f"{task.file} holds" if task.file else "the task asks"
    other = f"another name (--tasks {name}-2={task.file})" if task.file and task.name is None else "another `name`"
    return (
        f"{table}: has scores of {name!r} on other items than {asked} now, or scored in another way; give it {other}, or score "
        f"every checkpoint of the run again, the first with `evaluate RUN --replace`, which removes the old scores"
    )
