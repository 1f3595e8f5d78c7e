"""Planted skills: text generated from a seed that teaches one thing, and questions whose instances no such text contains.

A skill draws exercises. An exercise is a line of symbols, some of which follow from those before them. A hash of the line
decides whether it may be written in training text or asked in a task, so the two never meet, whatever the seeds.

The wrong choices of a question stand in its context as the right one does, and nothing but the skill tells them apart: a rule
that ignores what is asked (the commonest, the smallest) is right one time in four, and the symbol at a fixed distance where
the distance happens to be that; tests/data/test_planted.py has the scores.
"""

import hashlib
import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from emergence_train.errors import InputError

CHOICES = 4
HELD_OUT = 4  # one line in so many is asked, never written
LINES = 20  # of a document
# Lines looked at before there are said to be too few: for one that is written, or a task of several steps; for a question
LOOKED, SELDOM = 200, 50_000
LETTERS = "abcdefghijklmnopqrstuvwxyz"
DIGITS = "0123456789"


@dataclass(frozen=True)
class Exercise:
    """A line of symbols. `asked` has, for each place that follows from those before it, the symbols among which it is to be
    found."""

    symbols: tuple[str, ...]
    asked: dict[int, tuple[str, ...]]

    @property
    def held_out(self) -> bool:
        """Whether the line is for questions alone."""
        digest = hashlib.blake2b("".join(self.symbols).encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") % HELD_OUT == 0

    def text(self, end: int | None = None) -> str:
        """The symbols before place `end`, a space before each."""
        return "".join(" " + symbol for symbol in self.symbols[:end])


@dataclass(frozen=True)
class Question:
    """A beginning of a held-out line, and symbols of which the one numbered `answer` continues it."""

    context: str
    choices: tuple[str, ...]
    answer: int


def latest(draw: random.Random) -> Exercise:
    """A value that is set and read: " : 3 q n = 3 m = 3 : 7 x = 7". After = stands the digit that the last : has set, with 0 to
    4 letters in between; the wrong choices were set before it and stand there as often."""
    symbols: list[str] = []
    asked, value, times = {}, "", dict.fromkeys(DIGITS, 0)
    while len(symbols) < 48:
        if value:
            symbols += draw.choices(LETTERS, k=draw.randrange(5))
        if not value or draw.random() < 0.3:
            value = draw.choice(DIGITS)
            symbols += [":", value]
        else:
            asked[len(symbols) + 1] = tuple(digit for digit in DIGITS if times[digit] == times[value])
            symbols += ["=", value]
        times[value] += 1
    return Exercise(tuple(symbols), asked)


def recall(draw: random.Random) -> Exercise:
    """Four letters with a digit each, in random order with repetition: " q 3 m 7 q 3 t 0 m 7". Asked is the digit of a letter
    that was there before; the wrong choices are those of the others."""
    table = dict(zip(draw.sample(LETTERS, 4), draw.sample(DIGITS, 4)))
    symbols: list[str] = []
    asked: dict[int, tuple[str, ...]] = {}
    seen: set[str] = set()
    for letter in draw.choices(sorted(table), k=20):
        if table[letter] in seen:
            asked[len(symbols) + 1] = tuple(sorted(seen))
        seen.add(table[letter])
        symbols += [letter, table[letter]]
    return Exercise(tuple(symbols), asked)


def sums(draw: random.Random) -> Exercise:
    """A running sum modulo 10: " 3 + 5 = 8 + 4 = 2". Asked are the last five of ten, whose beginnings are too many to be known;
    the wrong choices are other digits."""
    value = draw.randrange(10)
    symbols: list[str] = [str(value)]
    asked: dict[int, tuple[str, ...]] = {}
    for number in range(10):
        added = draw.randrange(10)
        value = (value + added) % 10
        symbols += ["+", str(added), "=", str(value)]
        if number >= 5:
            asked[len(symbols) - 1] = tuple(DIGITS)
    return Exercise(tuple(symbols), asked)


CIPHER = dict(zip(LETTERS, random.Random("planted/cipher").sample(LETTERS, len(LETTERS))))


def cipher(draw: random.Random) -> Exercise:
    """Eight letters, and the same in a cipher that is always the same one: " q f m a > x r t c". The wrong choices are those of
    letters that are still to come."""
    word = draw.sample(LETTERS, 8)
    written = [CIPHER[letter] for letter in word]
    asked = {len(word) + 1 + number: tuple(sorted(written[number:])) for number in range(len(word))}
    return Exercise((*word, ">", *written), asked)


SKILLS: dict[str, Callable[[random.Random], Exercise]] = {
    "latest": latest,
    "recall": recall,
    "sums": sums,
    "cipher": cipher,
}
# Of a skill's text, from 1: raise it here with any change, so that prepared data are known to be of another.
VERSIONS: dict[str, int] = {}


def documents(skill: str) -> Iterator[str]:
    """Training text of a skill, without end: LINES exercises a document, none of them held out.

    Raises:
        InputError: nearly all of its lines are held out.
    """
    draw = random.Random(f"planted/{skill}/text")
    while True:
        looked = (SKILLS[skill](draw) for _ in range(LOOKED * LINES))
        lines = [each.text() + "\n" for each in itertools.islice((e for e in looked if not e.held_out), LINES)]
        if len(lines) < LINES:
            raise InputError(
                f"skill {skill!r}: of {LOOKED * LINES} lines {len(lines)} may be written; draw more different ones"
            )
        yield "".join(lines)


def questions(skill: str, count: int, seed: int) -> list[Question]:
    """`count` questions, each with a context of its own, on held-out lines; CHOICES choices, so chance is 1/4.

    Returns:
        Fewer than `count` where no more are found in SELDOM lines: a repeated question would count as an independent one.

    Raises:
        InputError: held-out lines that ask among so many symbols are too rare.
    """
    draw = random.Random(f"planted/{skill}/questions/{seed}")
    drawn: dict[str, Question] = {}
    looked = 0  # since the last new one
    for line in _lines(skill, draw):
        if len(drawn) == count or looked == SELDOM:
            break
        looked += 1
        if line.held_out and (places := _askable(line)):
            question = _question(line, draw.choice(places), draw)
            if question.context not in drawn:
                drawn[question.context], looked = question, 0
    if not drawn:
        raise InputError(
            f"skill {skill!r}: of {SELDOM} lines none is held out and asks among {CHOICES} symbols; give `asked` "
            f"{CHOICES} in more lines"
        )
    return list(drawn.values())


def chains(skill: str, steps: int, count: int, seed: int) -> list[tuple[Question, ...]]:
    """`count` tasks of several steps: the last `steps` askable places of a held-out line of its own, each given all before it.

    Returns:
        Fewer than `count` where lines repeat; none where those that can be asked so often are too rare.
    """
    draw = random.Random(f"planted/{skill}/steps/{seed}")
    drawn: dict[str, tuple[Question, ...]] = {}
    lines = 0  # that can be asked
    for line in itertools.islice(_lines(skill, draw), LOOKED * count):
        if line.held_out and len(places := _askable(line)) >= steps:
            lines += 1
            chain = tuple(_question(line, place, draw) for place in places[-steps:])
            drawn.setdefault(chain[-1].context, chain)
        if len(drawn) == count:
            break
    return list(drawn.values()) if lines >= count else []


def _lines(skill: str, draw: random.Random) -> Iterator[Exercise]:
    while True:
        yield SKILLS[skill](draw)


def _askable(exercise: Exercise) -> list[int]:
    return [place for place, among in exercise.asked.items() if len(among) >= CHOICES]


def _question(exercise: Exercise, place: int, draw: random.Random) -> Question:
    right = exercise.symbols[place]
    wrong = draw.sample([symbol for symbol in exercise.asked[place] if symbol != right], CHOICES - 1)
    order = draw.sample([right, *wrong], CHOICES)
    return Question(exercise.text(place), tuple(f" {symbol}" for symbol in order), order.index(right))
