"""Items of tasks (multiple choice, several steps, one continuation, open answers) and how they are read from files.

An item is a context, its choices and the index of the right one; a model is scored by the log-likelihood of each choice after
the context. Items are text, tokenized by each run's tokenizer.
"""

import gzip
import io
import json
import math
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from emergence_train.errors import SURROGATE, InputError
from emergence_train.input_files import open_read

BAD = 0.05  # share of unusable items beyond which a file is refused
KINDS = ("answers", "steps", "request", "continuation", "choices")  # the keys that say which kind a row is
GZIP = b"\x1f\x8b"  # a pipe's name does not say it
UNCONDITIONAL = 1_000_000  # oe_eval: from this doc_id on a requests file has choices without their context


@dataclass(frozen=True)
class Item:
    """A multiple-choice question; `contexts` where each choice has a context of its own (WinoGrande)."""

    context: str
    choices: tuple[str, ...]
    answer: int
    contexts: tuple[str, ...] = ()

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """(context, choice) of each choice."""
        return list(zip(self.contexts or (self.context,) * len(self.choices), self.choices))


@dataclass(frozen=True)
class OpenItem:
    """A prompt and its accepted answers. With `number` only the last number of a generation is compared."""

    context: str
    answers: tuple[str, ...]
    number: bool = False


@dataclass(frozen=True)
class OpenTask:
    """Items whose answers are generated: greedy, up to the first line break, at most `longest` tokens."""

    name: str
    items: tuple[OpenItem, ...]
    longest: int = 64


@dataclass(frozen=True)
class AnswerTask:
    """Contexts with one right continuation, an Item of one choice each: LAMBADA, and gold answers scored in bits per byte.

    Scored by the log-likelihood of the answer, and by whether greedy generation would give it.
    """

    name: str
    items: tuple[Item, ...]
    note: str = ""


@dataclass(frozen=True)
class Task:
    """A named list of items, with a note on skipped ones. `chance` is the accuracy of uniform guessing."""

    name: str
    items: tuple[Item, ...]
    note: str = ""

    @property
    def chance(self) -> float:
        return sum(1 / len(item.choices) for item in self.items) / len(self.items)


@dataclass(frozen=True)
class StepsTask:
    """Items of several steps. A step is a question whose context has the right answers of the steps before it.

    So each step is scored by itself, and a model that answers one step after the other from its own answers gets the whole right
    where it gets every step right: up to its first error both contexts are the same.
    """

    name: str
    items: tuple[tuple[Item, ...], ...]

    @property
    def steps(self) -> int:
        return len(self.items[0])


Problem = Callable[[Item], str]  # why an item cannot be scored; "" where it can


def no_problem(item: Item) -> str:
    return ""


def checked(
    name: str, items: list[Item], where: str, too_long: Problem = no_problem, problem_of: Problem | None = None
) -> Task:
    """Return the task without the items that cannot be scored (real data sets have a few); its note counts them.

    Raises InputError, with the first reason, where they are more than the share BAD.
    """
    if not items:
        raise InputError(f"{where}: task {name!r} has no items; fill it, or remove the task")
    problem_of = problem_of or _problem
    problems = {n: problem for n, item in enumerate(items, 1) if (problem := problem_of(item) or too_long(item))}
    if not problems:
        return Task(name, tuple(items))
    number, problem = next(iter(problems.items()))
    if len(problems) > BAD * len(items):
        raise InputError(
            f"{where}: item {number} of task {name!r} {problem} ({len(problems)} of "
            f"{len(items)} items cannot be scored); fix the file"
        )
    note = f"task {name!r}: {len(problems)} of {len(items)} items skipped, the first because item {number} {problem}"
    return Task(name, tuple(item for number, item in enumerate(items, 1) if number not in problems), note)


def checked_steps(name: str, items: list[tuple[Item, ...]], where: str, too_long: Problem = no_problem) -> StepsTask:
    """As `checked`, of items of several steps: all have as many, two at least.

    Raises InputError where one has not, and for any step that cannot be scored: a step less is another task.
    """
    for number, steps in enumerate(items, 1):
        if len(steps) < 2 or len(steps) != len(items[0]):
            raise InputError(
                f"{where}: item {number} of task {name!r} has {len(steps)} steps, the first {len(items[0])}; give all "
                "items as many, two at least"
            )
        for step, item in enumerate(steps, 1):
            if problem := _problem(item) or too_long(item):
                raise InputError(f"{where}: step {step} of item {number} of task {name!r} {problem}; fix the file")
    return StepsTask(name, tuple(items))


def _problem(item: Item) -> str:
    if len(item.choices) < 2:
        return (
            f"has {len(item.choices)} choices, not at least 2; items with one right answer go into a file of their own"
        )
    if any(not choice.strip() for choice in item.choices):
        return "has an empty choice"
    if len(set(item.pairs)) < len(item.choices):
        return "has the same choice twice"
    if not 0 <= item.answer < len(item.choices):
        return f"has the answer {item.answer}, which is not one of 0 to {len(item.choices) - 1}"
    return ""


def _no_answer(item: Item) -> str:
    return "" if item.choices[0].strip() else "has an empty continuation"


def from_file(
    name: str, path: Path, most: int | None = None, too_long: Problem = no_problem
) -> Task | StepsTask | AnswerTask | OpenTask:
    """Read the items of a JSONL file, also in gzip.

    Rows are of one of these kinds, the same in a file
    - {"context", "choices", "answer"};
    - {"steps": [{"context", "choices", "answer"}, ...]}, as many in all rows;
    - {"context", "continuation"}, the one right answer;
    - oe_eval's requests, a row per choice: {"doc_id", "idx", "label", "request": {"context", "continuation"}};
    - {"context", "answers"}, open answers; "extract": "number" compares the last number alone (chains of thought).

    Contexts are text; choices, continuations and answers text or numbers. Raises InputError for a missing or malformed file,
    naming the row.
    """
    rows = list(_rows(path))
    kind = _kind(path, rows)
    if kind == "answers":
        return _open_task(name, path, rows[:most])
    if kind == "steps":
        steps = [_steps_of_row(path, number, row) for number, row in rows[:most]]
        return checked_steps(name, steps, str(path), too_long)
    if kind == "request":
        items = _of_requests(path, rows)
    else:
        items = [_of_row(path, number, row) for number, row in rows]
    if items and kind != "choices" and all(len(item.choices) == 1 for item in items):
        task = checked(name, items[:most], str(path), too_long, _no_answer)
        return AnswerTask(name, task.items, task.note)
    return checked(name, items[:most], str(path), too_long)


def _kind(path: Path, rows: list[tuple[int, dict]]) -> str:
    """The key that says which kind the items are. Raises InputError for a row that has another."""
    kinds = [[key for key in KINDS if key in row] for _, row in rows]
    first = next(iter(kinds[0] if kinds else []), "choices")
    for (number, _), of_row in zip(rows, kinds):
        if of_row not in ([], [first]):
            raise InputError(
                f"{path}: row {number}: needs {first} alone, and has {' and '.join(of_row)}; items of another kind go into a "
                f"file of their own"
            )
    return first


def _rows(path: Path) -> Iterator[tuple[int, dict]]:
    try:
        with open_read(path) as opened:
            plain = gzip.GzipFile(fileobj=opened) if opened.read(2) == GZIP else opened
            opened.seek(0)
            for number, line in enumerate(io.TextIOWrapper(plain, encoding="utf-8-sig"), 1):
                if line.strip():
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise InputError(f"{path}: row {number} is not a JSON object")
                    yield number, row
    except FileNotFoundError:
        raise InputError(
            f"{path}: no such file; a task's items are a JSONL file of context, choices and answer"
        ) from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: is not UTF-8; convert it first") from None
    except (OSError, EOFError, zlib.error, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as JSONL: {' '.join(str(error).split())}") from None


def _text(value: object, what: str, *, number: bool = False) -> str:
    """A text of a row, also a number where that is allowed; ValueError for anything else."""
    if number and isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return str(value)
    if not isinstance(value, str):
        raise ValueError(f"{what} is {str(value)[:30]!r}, which is no text")
    if SURROGATE.search(value):
        raise ValueError(f"{what} has half of a surrogate pair, which is no text")
    return value


def _texts(value: object, what: str) -> tuple[str, ...]:
    """The texts or numbers of a list in a row."""
    if not isinstance(value, list):
        raise ValueError(f"its {what}s are {str(value)[:30]!r}")
    return tuple(_text(part, f"a {what}" if what == "choice" else f"an {what}", number=True) for part in value)


def _index(value: object, what: str) -> int:
    if isinstance(value, float) and value.is_integer():  # as pandas writes a column with gaps
        value = int(value)
    if isinstance(value, bool) or not re.fullmatch(r"-?\d+", str(value)):
        raise ValueError(f"its {what} is {str(value)[:30]!r}")
    return int(str(value))


def _of_row(path: Path, number: int, row: dict) -> Item:
    needs = "context and continuation" if "continuation" in row else "context, choices (a list) and answer (an index)"
    try:
        if "continuation" in row:
            return Item(
                _text(row["context"], "its context"), (_text(row["continuation"], "its continuation", number=True),), 0
            )
        choices, answer = _texts(row["choices"], "choice"), _index(row["answer"], "answer")
        return Item(_text(row["context"], "its context"), choices, answer)
    except (KeyError, ValueError) as error:
        raise InputError(f"{path}: row {number}: needs {needs}: {_in_words(error)}") from None


def _in_words(error: Exception) -> str:
    return f"it has no {error.args[0]!r}" if isinstance(error, KeyError) else str(error)


def _steps_of_row(path: Path, number: int, row: dict) -> tuple[Item, ...]:
    steps = row.get("steps")
    if not isinstance(steps, list) or not all(isinstance(step, dict) and "choices" in step for step in steps):
        raise InputError(
            f"{path}: row {number}: needs steps (a list), each with context, choices and answer, as the first row"
        )
    return tuple(_of_row(path, number, step) for step in steps)


def as_number(text: str) -> float:
    """A number, with or without commas between its digits; NaN for other text."""
    try:
        return float(text.replace(",", ""))
    except ValueError:
        return math.nan


def _open_task(name: str, path: Path, rows: list[tuple[int, dict]]) -> OpenTask:
    items = [_open_item(path, number, row) for number, row in rows]
    for (number, _), item in zip(rows, items):
        if item.number != items[0].number:
            raise InputError(f'{path}: row {number}: give all rows "extract": "number", or none')
    return OpenTask(name, tuple(items), 256 if items[0].number else 64)


def _open_item(path: Path, number: int, row: dict) -> OpenItem:
    try:
        answers, extract = _texts(row["answers"], "answer"), row.get("extract")
        if not answers or not all(answer.strip() for answer in answers):
            raise InputError(f"{path}: row {number}: has no answer, or an empty one")
        if extract not in (None, "number"):
            raise InputError(f'{path}: row {number}: extract is {str(extract)[:30]!r}; write "number", or leave it out')
        wordy = next((answer for answer in answers if extract and not math.isfinite(as_number(answer))), None)
        if wordy:
            raise InputError(
                f'{path}: row {number}: its answer {wordy[:30]!r} is no number, as "extract": "number" needs; write the number '
                f"alone"
            )
        return OpenItem(_text(row["context"], "its context"), answers, extract == "number")
    except (KeyError, ValueError) as error:
        raise InputError(f"{path}: row {number}: needs context and answers (a list): {_in_words(error)}") from None


def _of_requests(path: Path, rows: list[tuple[int, dict]]) -> list[Item]:
    documents: dict[int, list[tuple[int, dict]]] = {}
    for number, row in rows:
        try:
            if row["doc_id"] < UNCONDITIONAL and "continuation" in row["request"]:
                documents.setdefault(row["doc_id"], []).append((number, row))
        except (KeyError, TypeError) as error:
            raise InputError(
                f"{path}: row {number}: is not a request with doc_id and request: {_in_words(error)}"
            ) from None
    items = []
    for parts in documents.values():
        number, first = parts[0]
        try:
            if len(parts) > 1:  # that of one alone is null, its label the accepted answers
                parts.sort(key=lambda part: part[1]["idx"])
                if (places := [row["idx"] for _, row in parts]) != list(range(len(parts))):
                    raise ValueError(f"the idx of its choices are {', '.join(map(str, places))}, not 0, 1, ...")
            contexts = tuple(_text(row["request"]["context"], "a context") for _, row in parts)
            choices = tuple(_text(row["request"]["continuation"], "a continuation", number=True) for _, row in parts)
            answer = _index(first["label"], "label") if len(parts) > 1 else 0
            items.append(Item(contexts[0], choices, answer, contexts if len(set(contexts)) > 1 else ()))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{path}: row {number}: needs label and request.continuation: {_in_words(error)}"
            ) from None
    return items
