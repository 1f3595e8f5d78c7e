"""Tasks as tables: every question with its answer. Which of them are trained on is drawn by each run."""

import csv
import hashlib
import io
import itertools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from emergence_train import files
from emergence_train.errors import InputError
from emergence_train.input_files import read_text
from emergence_train.section import Section

NAMED = {"add": "x+y", "subtract": "x-y", "multiply": "xy"}
TERM = re.compile(r"([+-]?)(\d*)\*?(?:x(?:\^(\d+))?)?\*?(?:y(?:\^(\d+))?)?")
MOST_ROWS = 2**20
PADDING = ""  # before questions shorter than the longest


@dataclass(frozen=True)
class QuestionTable:
    """Questions (N, T) of symbols 0 ... symbols - 1 and their answers (N,), 0 ... classes - 1; int64. No question is
    listed twice."""

    questions: np.ndarray
    answers: np.ndarray
    symbols: int
    classes: int

    @property
    def digest(self) -> str:
        """Of all of it."""
        content = hashlib.sha256(repr((self.questions.shape, self.symbols, self.classes)).encode())
        for part in (self.questions, self.answers):
            content.update(np.ascontiguousarray(part, dtype="<i8").data)
        return content.hexdigest()


def _operation(text: str) -> str:
    if text not in NAMED and text != "divide":
        parse_polynomial(text)
    return text


class Modular(Section):
    """Arithmetic modulo a number (arXiv 2201.02177): question x, y; answer x o y."""

    kind: Literal["modular"]
    modulus: int = Field(ge=2, le=1000, description="the modulus; a prime for division")
    operation: Annotated[str, AfterValidator(_operation)] = Field(
        default="add", description="add, subtract, multiply, divide, or a polynomial as x^2+xy+y^2"
    )

    @model_validator(mode="after")
    def _prime(self) -> "Modular":
        if self.operation == "divide" and any(self.modulus % k == 0 for k in range(2, int(self.modulus**0.5) + 1)):
            raise ValueError(f"operation divide needs a prime modulus, not {self.modulus}; set another")
        return self


class Permutations(Section):
    """Composition in the symmetric group S_n: question a, b; answer a o b, that is b first."""

    kind: Literal["permutations"]
    degree: int = Field(ge=2, le=6, description="n of S_n, which has n! elements and n!^2 questions")


class Parity(Section):
    """Sparse parity: the parity of a few hidden bits among many."""

    kind: Literal["parity"]
    bits: int = Field(ge=1, le=60, description="bits of a question")
    relevant: int = Field(ge=1, description="how many of them, the first ones, make the answer")
    examples: int = Field(ge=4, le=MOST_ROWS, description="distinct questions, drawn at random")

    @model_validator(mode="after")
    def _fits(self) -> "Parity":
        if self.relevant > self.bits or self.examples > 2**self.bits:
            raise ValueError(
                f"{self.bits} bits have no {self.relevant} relevant ones or {self.examples} questions; lower those"
            )
        return self


class AnyTable(Section):
    """A file of questions and answers. A question is one column, split at blanks, or several, each a symbol."""

    kind: Literal["table"]
    file: str = Field(description="CSV with a header, or JSONL; relative to the sweep's file")
    question: Annotated[list[str], BeforeValidator(lambda name: [name] if isinstance(name, str) else name)] = Field(
        default=["question"], min_length=1, description="its column, or a list of several"
    )
    answer: str = Field(default="answer", description="its column; every distinct text is a class")

    @model_validator(mode="after")
    def _answer_is_not_asked(self) -> "AnyTable":
        if self.answer in self.question:
            raise ValueError(f"the answer {self.answer!r} is a column of question too; leave it out there")
        return self


Task = Annotated[Modular | Permutations | Parity | AnyTable, Field(discriminator="kind")]


def load(task: Task, folder: Path) -> QuestionTable:
    """The table of a task; `folder` is where its file's name begins.

    Raises:
        InputError: the file cannot be read, lacks a column, or has a question with two answers or one answer for all.
    """
    if isinstance(task, Modular):
        return _modular(task)
    if isinstance(task, Permutations):
        return _permutations(task.degree)
    if isinstance(task, Parity):
        return _parity(task)
    return _from_file(folder / task.file, task.question, task.answer)


def identity(task: Task, table: QuestionTable) -> dict[str, Any]:
    """What decides a task's table: its digest, so the content of a file, whatever it is called. The first three kinds are
    generated and go by their keys, by which stores of old have their runs."""
    by_keys = isinstance(task, Modular | Permutations | Parity)
    return task.model_dump() if by_keys else {"kind": task.kind, "table": table.digest}


def parse_polynomial(text: str) -> list[tuple[int, int, int]]:
    """Terms (coefficient, power of x, power of y) of a text such as 3x^2-xy+1.

    Raises:
        ValueError: it is no such polynomial.
    """
    terms, place = [], 0
    compact = text.replace(" ", "")
    while place < len(compact):
        match = TERM.match(compact, place)
        if match is None or match.end() == place or match[0] in "+-" or (place and not match[1]):
            break
        body = match[0]
        power_x = int(match[3] or 1) if "x" in body else 0
        power_y = int(match[4] or 1) if "y" in body else 0
        terms.append((int(match[1] + (match[2] or "1")), power_x, power_y))
        place = match.end()
    if not terms or place < len(compact):
        raise ValueError(
            f"operation {text!r} is unknown; choose add, subtract, multiply, divide or a polynomial as x^2+xy+y^2"
        )
    return terms


def _modular(task: Modular) -> QuestionTable:
    p = task.modulus
    x, y = (part.ravel() for part in np.meshgrid(np.arange(p), np.arange(p), indexing="ij"))
    if task.operation == "divide":
        x, y = x[y > 0], y[y > 0]
        inverse = np.array([0, *(pow(int(k), -1, p) for k in range(1, p))])
        answers = x * inverse[y] % p
    else:
        answers = np.zeros_like(x)
        for coefficient, power_x, power_y in parse_polynomial(NAMED.get(task.operation, task.operation)):
            answers = (answers + coefficient * _power(x, power_x, p) * _power(y, power_y, p)) % p
    return QuestionTable(np.stack([x, y], 1), answers, p, p)


def _power(base: np.ndarray, exponent: int, modulus: int) -> np.ndarray:
    return np.array([pow(int(value), exponent, modulus) for value in range(modulus)])[base]


def _permutations(degree: int) -> QuestionTable:
    elements = np.array(list(itertools.permutations(range(degree))))
    weights = degree ** np.arange(degree)
    place = np.full(degree**degree, -1)
    place[elements @ weights] = np.arange(len(elements))
    composed = elements[:, elements]  # [a, b, k] = a[b[k]]
    a, b = (part.ravel() for part in np.meshgrid(np.arange(len(elements)), np.arange(len(elements)), indexing="ij"))
    return QuestionTable(np.stack([a, b], 1), place[composed @ weights].ravel(), len(elements), len(elements))


def _parity(task: Parity) -> QuestionTable:
    rng = np.random.default_rng([task.bits, task.relevant, task.examples])
    if task.bits <= 20:
        numbers = rng.permutation(2**task.bits)[: task.examples]
    else:  # rare duplicates are drawn again
        numbers = np.unique(rng.integers(0, 2**task.bits, 2 * task.examples))
        numbers = rng.permutation(numbers)[: task.examples]
    questions = numbers[:, None] >> np.arange(task.bits) & 1
    return QuestionTable(questions, questions[:, : task.relevant].sum(1) % 2, 2, 2)


def _from_file(path: Path, columns: list[str], answer: str) -> QuestionTable:
    rows = _rows(path)
    questions: dict[tuple[str, ...], str] = {}
    for number, row in enumerate(rows, 1):
        filled = [name for name, value in row.items() if value is not None and str(value).strip()]
        missing = [name for name in (*columns, answer) if name not in filled]
        if missing:
            raise InputError(
                f"{path}: row {number} has no {missing[0]!r} (it has {', '.join(map(str, filled))}); name its columns in task"
            )
        nested = [name for name in (*columns, answer) if isinstance(row[name], list | dict)]
        if nested:
            raise InputError(f"{path}: row {number}: {nested[0]!r} is a list or an object; give text or a number")
        cells = [str(row[name]) for name in columns]
        question = tuple(cells[0].split()) if len(columns) == 1 else tuple(cells)
        if questions.setdefault(question, str(row[answer])) != str(row[answer]):
            raise InputError(f"{path}: row {number}: the question {' '.join(question)!r} has two answers; remove a row")
    if len(questions) < 4:
        raise InputError(f"{path}: has {len(questions)} questions; give at least 4")
    if len(set(questions.values())) < 2:
        raise InputError(f"{path}: every question has the same {answer!r}, so nothing can be learnt; give at least 2")
    longest = max(map(len, questions))
    padded = [(PADDING,) * (longest - len(question)) + question for question in questions]
    symbols = {text: k for k, text in enumerate(sorted({text for question in padded for text in question}))}
    classes = {text: k for k, text in enumerate(sorted(set(questions.values())))}
    return QuestionTable(
        np.array([[symbols[text] for text in question] for question in padded]),
        np.array([classes[text] for text in questions.values()]),
        len(symbols),
        len(classes),
    )


def _rows(path: Path) -> list[dict]:
    try:
        text = read_text(path, encoding="utf-8-sig")
        rows = files.json_lines(text) if path.suffix == ".jsonl" else _csv_rows(path, text)
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(
            f"{path}: cannot be read ({' '.join(str(error).split())}); give CSV with a header or JSONL"
        ) from None
    if not all(isinstance(row, dict) for row in rows) or len(rows) > MOST_ROWS:
        raise InputError(f"{path}: give an object a line, and at most {MOST_ROWS:,} of them")
    return rows


def _csv_rows(path: Path, text: str) -> list[dict]:
    reader = csv.DictReader(io.StringIO(text, newline=""))
    names = reader.fieldnames or []
    for name in names:
        if list(names).count(name) > 1:
            raise InputError(f"{path}: the header has {name!r} twice; give each column a name of its own")
    return list(reader)
