"""Run lm-eval's tasks on a Decoder: `pip install 'emergence-train[tasks]'`, tasks named lm-eval/NAME.

Imported only where a task needs it. Every rank holds every request and scoring.score distributes the batches, so lm-eval itself
sees a world of one rank. Log-likelihoods and choices equal those of lm-eval's own Hugging Face
backend on the same weights (tests/evaluation/test_lm_eval.py).
"""

import contextlib
import functools
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from emergence_train.data.tokenizer import ending
from emergence_train.errors import InputError
from emergence_train.evaluation import generation, scoring, task_digest
from emergence_train.evaluation.lm_eval_results import generation_settings, rows
from emergence_train.models.begin_token import beginning
from emergence_train.models.language_model import LanguageModel
from emergence_train.parallel.mesh import Mesh
from emergence_train.parallel.ranks import broadcast_from_rank0

FEWSHOT_SEED = 1234  # simple_evaluate's
TRIED = 50  # items of a task that are built twice: some draw each time

try:
    import lm_eval
    from lm_eval.api.model import LM
    from lm_eval.tasks import TaskManager
except ImportError as error:
    raise InputError("lm-eval is not installed: pip install 'emergence-train[tasks]'") from error


class EmergenceLM(LM):
    """`model` is a LanguageModel or a DeepSpeed engine around one; `longest` the tokens it can look at."""

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: Tokenizer,
        end_of_text: int,
        longest: int,
        mesh: Mesh,
        each_batch: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__()
        self.each_batch = each_batch
        self.model, self.tokens, self.end, self.longest, self.mesh = model, tokenizer, end_of_text, longest, mesh

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Of each (context, continuation), whether greedy generation would give it, too."""
        pairs = [request.args for request in requests]
        wanted = [scoring.encode(self.tokens, context, text, self.end, self.longest) for context, text in pairs]
        return [(float(value), bool(greedy)) for value, greedy in self._score(wanted)]

    def _score(self, requests: list[scoring.Request]) -> np.ndarray:
        return (
            scoring.score(self.model, requests, self.mesh, self.each_batch, greedy=True)
            if requests
            else np.empty((0, 2))
        )

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts in windows of `longest` tokens; each token is predicted once, the last window has
        as much context as fits."""
        windows, owner = [], []
        for number, request in enumerate(requests):
            ids = [self.end, *self._ids(request.args[0])]
            for begin in range(1, len(ids), self.longest):
                end = min(begin + self.longest, len(ids))
                start = max(end - self.longest - 1, 0)
                windows.append(scoring.Request(tuple(ids[start:end]), end - begin, unconditional=start == 0))
                owner.append(number)
        values = self._score(windows)[:, 0]
        return np.bincount(owner, values, len(requests)).tolist()

    def _ids(self, text: str) -> list[int]:
        return self.tokens.encode(text, add_special_tokens=False).ids

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Greedy continuations up to the first stop string."""
        texts = [""] * len(requests)
        groups: dict[tuple, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(generation_settings(request.args[1]), []).append(number)
        for (most, until), numbers in groups.items():
            room = self.longest - most
            if room < 1:
                raise InputError(f"a task generates up to {most} tokens, the model's context is {self.longest}")
            ends = [ending(self.tokens, requests[number].args[0], room) for number in numbers]
            prompts = [self._ids(text)[-room:] or beginning(self.model, self.end) for text in ends]
            done = lambda ids, until=until: ids[-1] == self.end or any(s in self.tokens.decode(ids) for s in until)  # noqa: E731
            generated = generation.generate(self.model, prompts, most, done, self.mesh, self.each_batch)
            for number, ids in zip(numbers, generated):
                ids = ids[: ids.index(self.end)] if self.end in ids else ids
                text = self.tokens.decode(ids)
                for stop in until:
                    text = text.split(stop)[0] if stop else text
                texts[number] = text
        return texts


@contextlib.contextmanager
def _seeded() -> Iterator[None]:
    """Python's and numpy's random numbers as lm-eval seeds them; the states, which the training run uses, are restored."""
    python, of_numpy = random.getstate(), np.random.get_state()
    random.seed(0)
    np.random.seed(1234)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(of_numpy)


class Tasks(TaskManager):
    """lm-eval's tasks, each with its data loaded once and reused at every checkpoint."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._load_once = functools.cache(lambda names: super(Tasks, self).load(list(names)))

    def load(self, task_list: list[str]) -> Any:
        with _seeded():  # process_docs that draws makes the same rows in every process
            return self._load_once(tuple(task_list))

    def check(self, names: list[str]) -> None:
        """Raise InputError for a name that lm-eval does not have."""
        for name in names:
            if name not in self.all_tasks:
                raise InputError(_unknown(name, self.all_tasks))


@functools.cache
def tasks(include_path: str | None = None, shots: int | None = None) -> Tasks:
    """lm-eval's tasks, with those of a directory beside them. Of each number of shots their own: lm-eval writes it into the task,
    and a task that has had 0 keeps it."""
    return Tasks(include_path=include_path) if include_path else Tasks()


def reach(names: list[str], include_path: str | None = None, shots: int | None = None) -> None:
    """Load the tasks before training; raise InputError where a name is unknown or its data are unavailable."""
    tasks(include_path, shots).check(names)
    for name in names:
        with _explained(name):
            tasks(include_path, shots).load([name])


def digest(name: str, shots: int | None, limit: int | None, include_path: str | None) -> str:
    """The digest of what is asked of a task, group or tag (see task_digest): each request with its prompt, few-shot examples and
    right answer, and lm-eval's version of the task, its metrics and filters. Where code scores the answer (`process_results`) the
    whole row. So it is one whatever revision and cache the rows are from. Empty, which is not known, where the first items are
    others each time that they are built."""
    manager = tasks(include_path, shots)
    with _explained(name):
        loaded = manager.load([name])
        first = min(limit or TRIED, TRIED)
        if _asked(loaded, shots, first) != _asked(loaded, shots, first):
            return ""
        asked = _asked(loaded, shots, limit)
    group = loaded["groups"].get(name)
    aggregates = [[each.metric, each.weight_by_size] for each in (group.aggregate_metric_list if group else None) or []]
    settings = {key: _settings(task) for key, task in loaded["tasks"].items()}
    return task_digest.digest(["lm-eval", settings, aggregates], asked)


def _asked(loaded: Any, shots: int | None, limit: int | None) -> list[list]:
    """What each request asks, built as simple_evaluate builds it."""
    with _seeded():
        return [line for task in loaded["tasks"].values() for line in _of_task(task, shots, limit)]


def _of_task(task: Any, shots: int | None, limit: int | None) -> Iterator[list]:
    own = task.get_config("num_fewshot")
    if own is None or (shots is not None and own != 0):
        task.set_config(key="num_fewshot", value=shots or 0)
    task.set_fewshot_seed(seed=FEWSHOT_SEED)
    task.build_all_requests(limit=limit)
    whole = task.get_config("process_results") is not None
    for request in task.instances:
        right = request.doc if whole else _right(task, request.doc)
        yield [task.config.task, request.request_type, request.idx, _plain([request.arguments, right])]


def _right(task: Any, row: dict) -> Any:
    """A row's right answer; of tasks that are scored without one, and have none, the whole row."""
    try:
        return task.doc_to_target(row)
    except Exception:  # code of the task's; where its scores need it, scoring says what is wrong
        return row


def _settings(task: Any) -> Any:
    """What of a task's configuration changes a score beside its requests."""
    config = task.config
    metrics = [config.output_type, config.metric_list, config.filter_list, config.repeats, config.process_results]
    return _plain([task.VERSION, (config.metadata or {}).get("version"), *metrics])


def _plain(value: Any) -> Any:
    """`value` as JSON has it; of a function its name."""
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if callable(value):
        return getattr(value, "__name__", type(value).__name__)
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


@contextlib.contextmanager
def _explained(names: str) -> Iterator[None]:
    """Convert an exception of the datasets library to an InputError of one line."""
    try:
        yield
    except (OSError, ConnectionError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"lm-eval task {names}: its data are unavailable ({reason}); offline, set HF_DATASETS_CACHE to a copy or "
            f"give the items as a file"
        ) from error


def run_tasks(
    lm: EmergenceLM,
    name: str,
    shots: int | None = None,
    limit: int | None = None,
    include_path: str | None = None,
) -> list[dict]:
    """Run a task, group or tag of lm-eval; return rows of metrics as metrics.choice_metrics does (see lm_eval_results.rows).

    Collective: rank 0's rows are broadcast, since under torchrun lm-eval returns nothing on the others.
    """
    manager = tasks(include_path, shots)
    manager.check([name])
    # lm-eval would seed torch, numpy and Python, whose random states the training run uses, and leave them so.
    seeds = dict(random_seed=None, numpy_random_seed=None, torch_random_seed=None)
    with _explained(name), torch.no_grad(), _seeded():
        group = manager.load([name])["groups"].get(name)
        results = lm_eval.simple_evaluate(
            lm,
            tasks=[name],
            num_fewshot=shots,
            limit=limit,
            bootstrap_iters=100,
            task_manager=manager,
            log_samples=True,
            **seeds,
        )
    aggregates = (group.aggregate_metric_list if group else None) or []
    by_size = {aggregate.metric: aggregate.weight_by_size for aggregate in aggregates}
    return broadcast_from_rank0(lambda: rows(results, name, by_size))


def _unknown(name: str, known: list[str]) -> str:
    import difflib

    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    near = "; did you mean " + " or ".join(map(repr, close)) + "?" if close else ""
    return f"lm-eval has no task {name!r}{near} (task files of your own: --include-path DIR)"
