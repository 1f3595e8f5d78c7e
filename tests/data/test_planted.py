"""Planted skills: questions that no training text contains, and that no rule short of the skill can answer."""

import itertools
import random
from collections import Counter

import pytest

from emergence_train.data import planted
from emergence_train.data.dataset import Dataset
from emergence_train.data.prepare import prepare
from emergence_train.errors import InputError
from support import data_of

QUESTIONS = 500
CHANCE = 1 / planted.CHOICES
SPREAD = 4 * (CHANCE * (1 - CHANCE) / QUESTIONS) ** 0.5  # four standard errors: 0.077


CHAINED = ("recall", "sums", "cipher")
CIPHER_OF_ABCD = "fryb"  # written in prepared data: another cipher would be another version of the text


@pytest.fixture(scope="module")
def asked() -> dict[str, list[planted.Question]]:
    return {skill: planted.questions(skill, QUESTIONS, seed=3) for skill in planted.SKILLS}


def score(questions, rule) -> float:
    """Share right of a rule that maps the context's symbols to one of them; what is no choice counts as a guess."""
    right = 0.0
    for question in questions:
        picked = " " + rule(question.context.split(), [choice.strip() for choice in question.choices])
        right += (picked == question.choices[question.answer]) if picked in question.choices else CHANCE
    return right / len(questions)


def solve(skill: str, symbols: list[str]) -> str:
    """The skill itself, by a loop over the symbols."""
    if skill == "latest":
        return symbols[max(place for place, symbol in enumerate(symbols) if symbol == ":") + 1]
    if skill == "sums":
        return str(sum(int(digit) for digit in [symbols[-4], symbols[-2]]) % 10)
    if skill == "cipher":
        return planted.CIPHER[symbols[symbols.index(">") - 8 + len(symbols) - symbols.index(">") - 1]]
    return symbols[symbols.index(symbols[-1]) + 1]


def counts(symbols, choices):
    return Counter(symbol for symbol in symbols if symbol in choices)


RULES = {
    "always one choice": lambda symbols, choices: choices[0],
    "the smallest": lambda symbols, choices: min(choices),
    "the largest": lambda symbols, choices: max(choices),
    "the commonest": lambda symbols, choices: max(sorted(choices), key=counts(symbols, choices).__getitem__),
    "the rarest": lambda symbols, choices: min(sorted(choices), key=counts(symbols, choices).__getitem__),
}


@pytest.mark.parametrize("skill", planted.SKILLS)
def test_the_skill_answers_every_question(skill, asked):
    assert score(asked[skill], lambda symbols, choices: solve(skill, symbols)) == 1
    assert all(len(set(question.choices)) == planted.CHOICES for question in asked[skill])


@pytest.mark.parametrize("skill", planted.SKILLS)
def test_rules_that_do_not_look_are_at_chance(skill, asked):
    scores = {name: score(asked[skill], rule) for name, rule in RULES.items()}
    assert all(abs(value - CHANCE) < SPREAD for value in scores.values()), scores


@pytest.mark.parametrize("skill", planted.SKILLS)
def test_no_fixed_distance_answers_much(skill, asked):
    """Right where the place happens to be so far back, one of five distances or more; elsewhere a guess."""
    scores = {
        back: score(asked[skill], lambda symbols, choices, back=back: symbols[-back] if len(symbols) >= back else "")
        for back in range(1, 16)
    }
    assert max(scores.values()) < CHANCE + (1 - CHANCE) / 5 + SPREAD, scores


def test_the_latest_digit_is_no_recall(asked):
    """In recall the digit seen last, and the first, are right no more often than a guess."""
    digits = [[symbol for symbol in question.context.split() if symbol.isdigit()] for question in asked["recall"]]
    for place in (0, -1):
        right = [values[place] == q.choices[q.answer].strip() for values, q in zip(digits, asked["recall"])]
        assert abs(sum(right) / QUESTIONS - CHANCE) < SPREAD


@pytest.mark.parametrize("skill", planted.SKILLS)
def test_no_question_stands_in_training_text(skill):
    text = "".join(itertools.islice(planted.documents(skill), 150))
    for question in planted.questions(skill, 100, seed=0):
        assert question.context + question.choices[question.answer] not in text


@pytest.mark.parametrize("skill", planted.SKILLS)
def test_text_is_always_the_same(skill):
    first, again = (list(itertools.islice(planted.documents(skill), 3)) for _ in range(2))
    assert first == again and first[0] != first[1]
    assert planted.questions(skill, 5, seed=1) == planted.questions(skill, 9, seed=1)[:5]
    assert planted.questions(skill, 5, seed=1) != planted.questions(skill, 5, seed=2)


def test_running_sums_are_those_of_all_addends():
    """The sum of the first digit and of all that were added, which no value that stands in the line is needed for."""
    for question in planted.questions("sums", 50, seed=5):
        symbols = question.context.split()
        total = int(symbols[0]) + sum(int(symbols[k + 1]) for k, symbol in enumerate(symbols) if symbol == "+")
        assert question.choices[question.answer] == f" {total % 10}"


def test_the_cipher_is_one_to_one_and_always_the_same():
    assert sorted(planted.CIPHER.values()) == sorted(planted.LETTERS)
    assert "".join(planted.CIPHER[letter] for letter in "abcd") == CIPHER_OF_ABCD


@pytest.mark.parametrize("skill", CHAINED)
def test_steps_of_a_chain_are_answered_one_after_another(skill):
    """Each context is the one before with its right answer and what the line asks next; no step can be had by elimination."""
    chains = planted.chains(skill, 4, 200, seed=2)
    assert len(chains) == 200 and chains[:5] == planted.chains(skill, 4, 5, seed=2)
    for chain in chains:
        assert all(q.choices[q.answer].strip() == solve(skill, q.context.split()) for q in chain)
        for before, after in itertools.pairwise(chain):
            assert after.context.startswith(before.context + before.choices[before.answer])
    for step in range(4):
        of_step = [chain[step] for chain in chains]
        scores = {name: score(of_step, rule) for name, rule in RULES.items()}
        assert all(abs(value - CHANCE) < SPREAD * (QUESTIONS / 200) ** 0.5 for value in scores.values()), scores


def test_a_skill_whose_lines_ask_seldom_has_no_chains():
    assert len(planted.chains("latest", 4, 3, seed=2)) < 3


def parity(draw):
    """Bits and their parity: two symbols to choose from."""
    bits = draw.choices("01", k=9)
    return planted.Exercise((*bits, str(bits.count("1") % 2)), {9: ("0", "1")})


def held_out(draw):
    return planted.Exercise(("g",), {0: tuple("abcd")})


def written(draw):
    return planted.Exercise(("a",), {0: tuple("abcd")})


@pytest.mark.parametrize("skill", [parity, written])
def test_a_skill_that_cannot_be_asked_is_one_line(skill, monkeypatch):
    """The lines of `written` are none of those held out."""
    monkeypatch.setitem(planted.SKILLS, "own", skill)
    says = "skill 'own': of 50000 lines none is held out and asks among 4 symbols; give `asked` 4 in more lines"
    with pytest.raises(InputError, match=says):
        planted.questions("own", 3, seed=0)


def test_a_skill_that_is_text_alone_is_prepared(monkeypatch, tmp_path):
    monkeypatch.setitem(planted.SKILLS, "own", parity)
    sources = [{"domain": "own", "planted": "own", "limit_documents": 40}]
    prepare(data_of(tmp_path / "data", sources=sources, ood=[]), log=lambda line: None)
    assert (tmp_path / "data").exists()


def test_questions_of_a_skill_that_asks_seldom_are_drawn(monkeypatch):
    """One line in 400 asks, of which one in four is held out."""

    def seldom(draw):
        word = draw.choices("abcdefgh", k=6)
        return planted.Exercise((*word, "i"), {6: tuple("fghi" if draw.random() < 1 / 400 else "i")})

    monkeypatch.setitem(planted.SKILLS, "own", seldom)
    drawn = planted.questions("own", 20, seed=1)
    assert len(drawn) == 20 and all(each.choices[each.answer] == " i" for each in drawn)


def few(draw):
    """30 lines: a letter, its next one, and the next one again."""
    letter = draw.randrange(30)
    symbols = tuple(chr(ord("A") + (letter + k) % 30) for k in range(3))
    among = tuple(chr(ord("A") + (letter + k) % 30) for k in range(9))
    return planted.Exercise(symbols, {1: among, 2: among})


def test_no_item_of_a_skill_of_few_lines_is_asked_twice(monkeypatch):
    """Each held-out line may be asked in two places, and as a whole; a repeated item would count as an independent one."""
    monkeypatch.setitem(planted.SKILLS, "own", few)
    draw = random.Random(0)
    lines = {line.symbols for _ in range(3000) if (line := few(draw)).held_out}
    contexts = [question.context for question in planted.questions("own", 200, seed=1)]
    assert sorted(contexts) == sorted(" " + " ".join(line[:end]) for line in lines for end in (1, 2))
    wholes = [chain[-1].context for chain in planted.chains("own", 2, 200, seed=1)]
    assert sorted(wholes) == sorted(" " + " ".join(line[:2]) for line in lines) and len(planted.SKILLS) == 5


def test_a_skill_without_training_text_is_one_line(monkeypatch):
    monkeypatch.setitem(planted.SKILLS, "own", held_out)
    with pytest.raises(InputError, match="skill 'own': of 4000 lines 0 may be written; draw more different ones"):
        next(planted.documents("own"))


def test_another_version_of_a_skill_is_other_data(monkeypatch, tmp_path):
    """Of that skill alone."""
    for name in ("own", "other"):
        monkeypatch.setitem(planted.SKILLS, name, planted.SKILLS["recall"])
        sources = [{"domain": "a", "planted": name, "limit_documents": 40}]
        prepare(data_of(tmp_path / name, sources=sources, ood=[]), log=lambda line: None)
    monkeypatch.setitem(planted.VERSIONS, "own", 2)
    with pytest.raises(InputError, match="planted:own: has 2 bytes, and had 1"):
        prepare(data_of(tmp_path / "own", sources=[sources[0] | {"planted": "own"}], ood=[]), log=lambda line: None)
    prepare(data_of(tmp_path / "other", sources=sources, ood=[]), log=lambda line: None)


def test_one_line_in_four_is_held_out():
    draw = random.Random(0)
    share = sum(planted.recall(draw).held_out for _ in range(4000)) / 4000
    assert abs(share - 1 / planted.HELD_OUT) < 4 * (0.25 * 0.75 / 4000) ** 0.5


def test_in_iid_false_keeps_a_domain_out_of_the_iid_set(tmp_path):
    """It is trained on, has its own set, and the same prepared data serve a run that leaves it out of training."""
    sources = [
        {"domain": "speeches", "sample": "speeches", "limit_documents": 20},
        {
            "domain": "recall",
            "planted": "recall",
            "limit_documents": 40,
            "weight": 3,
            "in_iid": False,
            "own_sequences": 6,
        },
    ]
    validation = {"sequences": 8, "domain_sequences": 4, "ood_sequences": 0, "fraction": 0.2}
    data = data_of(tmp_path / "data", sources=sources, ood=[], validation=validation)
    prepare(data, log=lambda line: None)
    dataset = Dataset(data, seed=0)
    splits = {
        domain: {split for segment in dataset.segments() if segment.domain == domain for split in segment.splits}
        for domain in ("speeches", "recall")
    }
    assert splits == {"speeches": {"iid", "speeches"}, "recall": {"recall"}}
    assert dataset.index["validation"]["splits"]["recall"]["sequences"] == 6
    assert sum(dataset.sampler[index].domain for index in range(8192)) == 6144  # three quarters
    control = data_of(
        tmp_path / "data", sources=[sources[0], sources[1] | {"weight": 0}], ood=[], validation=validation
    )
    prepare(control, log=lambda line: None)
    assert Dataset(control, seed=0).domains == ["speeches"]
