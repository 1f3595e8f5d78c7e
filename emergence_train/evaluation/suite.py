"""The tasks of a configuration, scored on a model."""

import difflib
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from emergence_train.config import TaskConfig
from emergence_train.data import planted
from emergence_train.data import tokenizer as tokenizers
from emergence_train.data.dataset import Dataset
from emergence_train.errors import InputError
from emergence_train.evaluation import generation, items, synthetic, task_digest
from emergence_train.evaluation.metrics import answer_metrics, choice_metrics, open_metrics, steps_metrics
from emergence_train.evaluation.scoring import Request, encode, log_likelihoods, score
from emergence_train.models.begin_token import beginning
from emergence_train.models.language_model import LanguageModel
from emergence_train.parallel.mesh import Mesh

LM_EVAL = "lm-eval/"
LONG_ANSWER, LONGEST_TOKEN = 1_000_000, 256  # characters: beyond both an answer is too long, tokenized or not
GENERATED = 200  # items of a task, by default
KNOWN = (*synthetic.GENERATORS, synthetic.FROM_TEXT)


class Suite:
    """The tasks' items, tokenized as requests. The constructor checks everything and needs no model."""

    def __init__(self, wanted: list[TaskConfig], dataset: Dataset, longest: int) -> None:
        self.dataset, self.longest = dataset, longest
        self.tokenizer = tokenizers.load_file(dataset.root / "tokenizer.json")
        self.end = dataset.index["tokenizer"]["end_of_text"]
        self._encoded: dict[tuple[str, str], Request] = {}
        self.of_lm_eval = [config for config in wanted if config.task.startswith(LM_EVAL)]
        if self.of_lm_eval:
            from emergence_train.evaluation import lm_eval_adapter  # an extra, imported where it is used

            for config in self.of_lm_eval:
                lm_eval_adapter.reach([config.task.removeprefix(LM_EVAL)], config.include_path, config.shots)
        built = [config for config in wanted if not config.task.startswith(LM_EVAL)]
        self.wanted = {config.table_name: config for config in wanted}
        self.built = tasks = [self._task(config) for config in built]
        self.fewer = [note for config, task in zip(built, tasks) if (note := _fewer(config, len(task.items)))]
        names = [task.name for task in tasks] + [config.table_name for config in self.of_lm_eval]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise InputError(f"tasks: {twice[0]!r} is listed twice; give one of them a name of its own")
        self.tasks = [task for task in tasks if isinstance(task, items.Task)]
        self.step_tasks = [task for task in tasks if isinstance(task, items.StepsTask)]
        self.answer_tasks = [task for task in tasks if isinstance(task, items.AnswerTask)]
        self.open_tasks = [task for task in tasks if isinstance(task, items.OpenTask)]
        of_steps = [step for task in self.step_tasks for item in task.items for step in item]
        self.requests = self._requests([*(item for task in self.tasks for item in task.items), *of_steps])
        self.answers = self._requests([item for task in self.answer_tasks for item in task.items])

    @cached_property
    def digests(self) -> task_digest.Digests:
        """What each task asks and how it is scored, by its name in the tables (see task_digest)."""
        known = {task.name: task_digest.of_task(task) for task in self.built}
        if self.of_lm_eval:
            from emergence_train.evaluation import lm_eval_adapter

            for config in self.of_lm_eval:
                name = config.task.removeprefix(LM_EVAL)
                known[config.table_name] = lm_eval_adapter.digest(name, config.shots, config.items, config.include_path)
        return task_digest.Digests(known, frozenset(config.table_name for config in self.of_lm_eval))

    def _requests(self, questions: Sequence[items.Item]) -> list[Request]:
        return [self._request(pair) for item in questions for pair in item.pairs]

    def _request(self, pair: tuple[str, str]) -> Request:
        if pair not in self._encoded:
            self._encoded[pair] = encode(self.tokenizer, *pair, self.end, self.longest)
        return self._encoded[pair]

    def _too_long(self, item: items.Item) -> str:
        """Why an item cannot be scored: of an answer that is longer than a sequence only the end would be."""
        most = max(LONG_ANSWER, LONGEST_TOKEN * self.longest)
        if (characters := max(map(len, item.choices))) > most:
            return f"has an answer of {characters:,} characters, more than the {self.longest} tokens of a sequence"
        longest = max(request.scored + request.lost for request in self._requests([item]))
        if longest <= self.longest:
            return ""
        return f"has an answer of {longest} tokens, more than the {self.longest} of a sequence"

    @property
    def notes(self) -> list[str]:
        """Notes for the log on skipped items and truncated contexts."""
        scored: list[items.Task | items.AnswerTask] = [*self.tasks, *self.answer_tasks]
        notes = [*self.fewer, *(task.note for task in scored if task.note)]
        if self.cut:
            asked = len(self.requests) + len(self.answers)
            notes.append(f"{self.cut} of {asked} contexts are longer than {self.longest} tokens: truncated on the left")
        return notes

    @property
    def cut(self) -> int:
        """Number of requests whose context was truncated on the left."""
        return sum(len(request.ids) == self.longest + 1 for request in (*self.requests, *self.answers))

    def _task(self, wanted: TaskConfig) -> items.Task | items.StepsTask | items.AnswerTask | items.OpenTask:
        name = wanted.table_name
        if wanted.steps is not None:
            return _of_steps(wanted, wanted.steps, self._too_long)
        if wanted.file:
            return items.from_file(name, Path(wanted.file), wanted.items, self._too_long)
        if wanted.task in synthetic.GENERATORS:
            task = synthetic.GENERATORS[wanted.task](wanted.items or GENERATED, wanted.seed)
            return items.checked(name, task, "tasks", self._too_long)
        if wanted.task == synthetic.FROM_TEXT:
            windows = np.concatenate(
                [
                    np.asarray(self.dataset.windows[segment.domain][segment.begin : segment.end], dtype=np.int64)
                    for segment in self.dataset.segments()
                    if "iid" in segment.splits
                ]
            )
            decode = self.tokenizer.decode
            task = synthetic.continuation(
                wanted.items or GENERATED, wanted.seed, windows, lambda ids: decode(ids, False)
            )
            where = f"{self.dataset.root}: validation sequences too few or too short"
            return items.checked(name, task, where, self._too_long)
        raise InputError(unknown(wanted.task))

    def score(
        self, model: LanguageModel, mesh: Mesh, each_batch: Callable[[], None] = lambda: None
    ) -> tuple[list[dict], float]:
        """Return rows of metrics (see metrics.choice_metrics) and the seconds taken. Collective: all ranks call it, and each
        calls `each_batch` before each batch."""
        began = time.monotonic()
        rows, at = [], 0
        values = log_likelihoods(model, self.requests, mesh, each_batch) if self.requests else np.empty(0)

        def of(item: items.Item) -> np.ndarray:
            nonlocal at
            at += len(item.choices)
            return values[at - len(item.choices) : at]

        for task in self.tasks:
            rows += choice_metrics(task, [of(item) for item in task.items])
        for stepwise in self.step_tasks:
            rows += steps_metrics(stepwise, [[of(step) for step in item] for item in stepwise.items])
        if self.answers:
            values, at = score(model, self.answers, mesh, each_batch, greedy=True), 0
            for answered in self.answer_tasks:
                rows += answer_metrics(answered, values[at : at + len(answered.items)])
                at += len(answered.items)
        rows += [
            row
            for task in self.open_tasks
            for row in open_metrics(task, self._generated(model, task, mesh, each_batch))
        ]
        if self.of_lm_eval:
            from emergence_train.evaluation import lm_eval_adapter

            lm = lm_eval_adapter.EmergenceLM(model, self.tokenizer, self.end, self.longest, mesh, each_batch)
            for config in self.of_lm_eval:
                name = config.task.removeprefix(LM_EVAL)
                scored = lm_eval_adapter.run_tasks(lm, name, config.shots, config.items, config.include_path)
                rows += [row | {"task": config.table_name + row["task"].removeprefix(name)} for row in scored]
        return rows, time.monotonic() - began

    def _generated(
        self, model: LanguageModel, task: items.OpenTask, mesh: Mesh, each_batch: Callable[[], None]
    ) -> list[str]:
        """Generate the answer to each item, up to a line break, or for chains of thought to the end of text."""
        longest = min(task.longest, self.longest // 2)
        room = self.longest - longest
        prompts = [
            self.tokenizer.encode(tokenizers.ending(self.tokenizer, item.context, room), add_special_tokens=False).ids[
                -room:
            ]
            or beginning(model, self.end)
            for item in task.items
        ]
        whole = any(item.number for item in task.items)

        def finished(ids: list[int]) -> bool:
            return ids[-1] == self.end or (not whole and "\n" in self.tokenizer.decode(ids).lstrip("\n "))

        generated = generation.generate(model, prompts, longest, finished, mesh, each_batch)
        texts = [self.tokenizer.decode(ids) for ids in generated]
        return texts if whole else [text.lstrip("\n ").split("\n")[0] for text in texts]


def _of_steps(wanted: TaskConfig, steps: int, too_long: items.Problem) -> items.StepsTask:
    """The task of several steps on a planted skill; raises InputError where the skill has no such lines."""
    if wanted.task not in planted.SKILLS:
        raise InputError(
            f"task {wanted.task!r}: steps are of planted skills ({', '.join(planted.SKILLS)}); a file's rows have steps of "
            "their own; leave steps out"
        )
    name, count = wanted.table_name, wanted.items or GENERATED
    drawn = synthetic.planted_steps(wanted.task, steps, count, wanted.seed)
    if not drawn:
        raise InputError(
            f"task {wanted.task!r}: lines that ask {steps} times are too rare; lower steps, or ask another skill"
        )
    return items.checked_steps(name, drawn, "tasks", too_long)


def _fewer(wanted: TaskConfig, count: int) -> str:
    """The note of a generated task that has no more items that differ."""
    asked = wanted.items or GENERATED
    return "" if wanted.file or count >= asked else f"task {wanted.table_name!r}: {count} different items, not {asked}"


def unknown(name: str) -> str:
    """The InputError for an unknown task, with the nearest names."""
    close = difflib.get_close_matches(name, KNOWN, n=3, cutoff=0.4)
    near = (
        "did you mean " + " or ".join(map(repr, close)) + "?"
        if close
        else "generated ones are " + ", ".join(KNOWN) + "."
    )
    return (
        f"task {name!r} is not known; {near} Tasks of lm-eval are named lm-eval/NAME; items of your own: "
        "NAME=ITEMS.jsonl, or in a configuration {task: NAME, file: ITEMS.jsonl}"
    )
