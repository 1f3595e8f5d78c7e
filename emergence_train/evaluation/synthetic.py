"""Tasks generated from a seed, without a download: in-context copying, modular arithmetic, word unscrambling, and
true against false continuations of held-out text.

The first three are small versions of tasks on which emergence was reported (in-context learning; modified arithmetic and word
unscrambling of BIG-bench). The fourth is easy enough for tiny models. Questions on planted skills are tasks too.
"""

import random
from collections.abc import Callable

import numpy as np

from emergence_train.data import planted
from emergence_train.evaluation.items import Item

_TEXT = (
    "able acid back ball band bank base bath bear beat bell belt bird blow blue boat body bone book born both bowl "
    "burn calm camp card care case cell city coal coat cold come cook copy corn cost crew crop dark data date dawn "
    "days dead deal deep deer desk dish door down draw dream drink drop dust duty earth east edge face fact fair fall "
    "farm fast fear feed feel film find fire fish five flat flow food foot form four free full gain game gate gift "
    "girl give glad goal gold good gray green grow hair half hall hand hard harm head hear heat help high hill hold "
    "hole home hope horse hour house idea iron jump keep kind king lady lake land last late lead leaf left life lift "
    "light line list long loud love"
)
WORDS = _TEXT.split()
CHOICES = 4
SHOTS = 3
MODULUS = 5
TRIES = 20  # draws for each item that is wanted: one that repeats another would count as an independent one


def copying(items: int, seed: int) -> list[Item]:
    """A list of words starts a second time: which word comes next? The wrong choices are in the list too."""
    draw = random.Random(f"copying/{seed}")
    drawn = []
    for _ in range(items):
        words = draw.sample(WORDS, 5)
        place = draw.randrange(1, 5)
        wrong = [word for number, word in enumerate(words) if number not in (place, place - 1)]
        choices = [words[place], *draw.sample(wrong, CHOICES - 1)]
        context = " ".join(words) + "\n" + " ".join(words) + "\n" + " ".join(words[:place])
        drawn.append(_shuffled(context, [" " + word for word in choices], draw))
    return drawn


def modular_addition(items: int, seed: int) -> list[Item]:
    """a + b modulo MODULUS after a few worked examples; the choices are all residues."""
    draw = random.Random(f"modular-addition/{seed}")

    def line(a: int, b: int) -> str:
        return f"{a} + {b} = {(a + b) % MODULUS}"

    drawn: dict[str, Item] = {}
    for _ in range(TRIES * items):
        pairs = [(draw.randrange(MODULUS), draw.randrange(MODULUS)) for _ in range(SHOTS + 1)]
        *shots, (a, b) = pairs
        context = f"modulo {MODULUS}\n" + "\n".join(line(*shot) for shot in shots) + f"\n{a} + {b} ="
        drawn.setdefault(context, Item(context, tuple(f" {r}" for r in range(MODULUS)), (a + b) % MODULUS))
        if len(drawn) == items:
            break
    return list(drawn.values())


def unscrambling(items: int, seed: int) -> list[Item]:
    """Letters in a wrong order, then the word; the wrong choices are other words of the same length."""
    draw = random.Random(f"unscrambling/{seed}")
    four = [word for word in WORDS if len(word) == 4 and len(set(word)) > 1]

    def scrambled(word: str) -> str:
        letters = list(word)
        while "".join(letters) == word:
            draw.shuffle(letters)
        return "".join(letters)

    drawn = []
    for _ in range(items):
        *shots, word = draw.sample(four, SHOTS + 1)
        others = [other for other in four if sorted(other) != sorted(word) and other not in shots]
        wrong = draw.sample(others, CHOICES - 1)
        context = "\n".join(f"{scrambled(shot)} -> {shot}" for shot in shots) + f"\n{scrambled(word)} ->"
        drawn.append(_shuffled(context, [f" {choice}" for choice in (word, *wrong)], draw))
    return drawn


def continuation(items: int, seed: int, windows: np.ndarray, decode: Callable[[list[int]], str]) -> list[Item]:
    """Held-out text (`windows` (n, T) of token ids) with four continuations: its own, and three of other texts."""
    draw = random.Random(f"continuation/{seed}")
    context, length = min(24, windows.shape[1] // 2), min(8, windows.shape[1] // 4)
    drawn: dict[str, Item] = {}
    for _ in range(TRIES * items):
        if len(drawn) == items or windows.shape[1] <= context + length or len(windows) < CHOICES:
            break
        rows = draw.sample(range(len(windows)), CHOICES)
        starts = [draw.randrange(windows.shape[1] - context - length) for _ in rows]
        texts = [decode(windows[r][s + context : s + context + length].tolist()) for r, s in zip(rows, starts)]
        before = decode(windows[rows[0]][starts[0] : starts[0] + context].tolist())
        if (
            len(set(texts)) == CHOICES
            and all(text.strip() for text in texts)
            and "\ufffd" not in before + "".join(texts)
        ):
            drawn.setdefault(before, _shuffled(before, texts, draw))
    return list(drawn.values())


def planted_skill(skill: str) -> Callable[[int, int], list[Item]]:
    """The generator of questions on a planted skill, four choices, chance 1/4; no text that plants it contains them."""

    def generate(items: int, seed: int) -> list[Item]:
        return [Item(each.context, each.choices, each.answer) for each in planted.questions(skill, items, seed)]

    return generate


def planted_steps(skill: str, steps: int, items: int, seed: int) -> list[tuple[Item, ...]]:
    """Tasks of several steps on a planted skill: so many questions on one line, each with the line before it."""
    return [
        tuple(Item(each.context, each.choices, each.answer) for each in chain)
        for chain in planted.chains(skill, steps, items, seed)
    ]


def _shuffled(context: str, choices: list[str], draw: random.Random) -> Item:
    """The item with its choices in random order; the first of `choices` is right."""
    right = choices[0]
    order = draw.sample(choices, len(choices))
    return Item(context, tuple(order), order.index(right))


GENERATORS: dict[str, Callable[[int, int], list[Item]]] = {
    "copying": copying,
    "modular-addition": modular_addition,
    "unscrambling": unscrambling,
    **{skill: planted_skill(skill) for skill in planted.SKILLS},
}
FROM_TEXT = "continuation"
