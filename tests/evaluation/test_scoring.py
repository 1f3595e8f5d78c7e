"""Requests of long texts: only their ends are tokenized, and their ids are those of the whole."""

import random

import pytest

from emergence_train.data.tokenizer import ending, load_file
from emergence_train.evaluation.scoring import Request, encode
from emergence_train.evaluation.suite import Suite
from foreign_tokenizers import CORPUS, KINDS

WORDS = [
    *" ".join(CORPUS[:4]).split(),
    "42",
    "1234567890123",
    "====",
    "\u00e9t\u00e9",
    "snake_case(x);",
    "\u4f60\u597d",
]
SPACES = [" "] * 9 + ["  ", "\n", "\n\n", "\t", "       ", ".\n"]


def drawn(seed: int, words: int) -> str:
    draw = random.Random(seed)
    return "".join(draw.choice(WORDS) + draw.choice(SPACES) for _ in range(words))


def tokenizer_of(kind: str, data_path):
    return load_file(data_path / "tokenizer.json") if kind == "own" else KINDS[kind]()


def of_the_whole(tokenizer, context: str, continuation: str, longest: int) -> Request:
    """As lm-eval does it: both texts tokenized whole, then cut."""
    bare = context.rstrip()
    whole = tokenizer.encode(context + continuation, add_special_tokens=False).ids
    scored = len(whole) - len(tokenizer.encode(bare, add_special_tokens=False).ids)
    return Request(tuple(whole[-(longest + 1) :]), min(max(scored, 1), longest))


@pytest.mark.parametrize("kind", ["own", *KINDS])
def test_a_long_context_gives_the_ids_of_the_whole(data_path, kind):
    """Runs of digits, signs and spaces, lines, text of several bytes a character; tokenizers with and without words."""
    tokenizer = tokenizer_of(kind, data_path)
    for seed in range(12):
        context, longest = drawn(seed, 3_000 + 97 * seed), 1 + 23 * seed
        assert len(ending(tokenizer, context, longest + 1)) < len(context)
        for continuation in (" the lazy dog", "42", drawn(seed + 99, 9)):
            request = encode(tokenizer, context, continuation, 0, longest)
            assert (request.ids, request.scored) == tuple(
                vars(of_the_whole(tokenizer, context, continuation, longest)).values()
            )[:2]


@pytest.mark.parametrize("text", ["a" * 30_000, "12 " * 9_000 + "7" * 30_000, " " * 30_000, "words of a short text"])
def test_a_text_is_cut_at_a_word_or_not_at_all(data_path, text):
    """A run is counted from its start: it is whole in what is left, be it all of the text."""
    tokenizer = tokenizer_of("own", data_path)
    kept = ending(tokenizer, text, 16)
    assert text.endswith(kept) and (kept == text or kept[0].isspace() and not text[: -len(kept)][-1].isspace())
    whole = tokenizer.encode(text, add_special_tokens=False).ids
    assert tokenizer.encode(kept, add_special_tokens=False).ids[-16:] == whole[-16:]


def test_a_megabyte_of_context_is_tokenized_at_its_end(data_path, monkeypatch):
    """What a tokenizer is given, in characters; 200 bytes of memory each."""
    seen: list[int] = []

    class Counted:
        def __init__(self, inner):
            self.inner = inner

        def encode(self, text, **given):
            seen.append(len(text))
            return self.inner.encode(text, **given)

    encode(Counted(tokenizer_of("own", data_path)), "one two three " * 80_000, " four", 0, 32)
    assert sum(seen) < 20_000


def test_an_answer_of_millions_of_characters_is_not_tokenized():
    from emergence_train.evaluation.items import Item

    suite = object.__new__(Suite)
    suite.longest = 32
    says = suite._too_long(Item("context", ("short", "long " * 400_000), 0))
    assert says == "has an answer of 2,000,000 characters, more than the 32 tokens of a sequence"
