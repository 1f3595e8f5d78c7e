"""Requests of long texts: only their ends are tokenized, and their ids are those of the whole."""

import random

import pytest
import torch
from tokenizers import Tokenizer, models

from emergence_train.data.tokenizer import ending, load_file
from emergence_train.evaluation.scoring import Request, encode, score
from emergence_train.evaluation.suite import Suite
from emergence_train.models.begin_token import WithBeginToken
from emergence_train.models.decoder import Decoder
from emergence_train.models.decoder_config import DecoderConfig
from emergence_train.parallel.ranks import start
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
    """As lm-eval's _encode_pair: the context's own tokens, and of the whole text those after as many; then cut."""
    own = tokenizer.encode(context.rstrip(), add_special_tokens=False).ids
    rest = tokenizer.encode(context + continuation, add_special_tokens=False).ids[len(own) :]
    return Request(tuple([*own, *rest][-(longest + 1) :]), min(len(rest), longest))


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


def joined() -> Tokenizer:
    """Words as in English, and "ab" joined to one token, as byte-pair merges do: a 0, b 1, ab 2, c 3, bc 4, "." 5."""
    vocabulary = {"a": 0, "b": 1, "ab": 2, "c": 3, "bc": 4, ".": 5}
    return Tokenizer(models.BPE(vocabulary, [("a", "b"), ("b", "c")]))


@pytest.mark.parametrize(
    "context, continuation, ids, scored",
    [
        (".a", "c", (5, 0, 3), 1),  # nothing joins
        (".a", "bc", (5, 0, 3), 1),  # whole: . ab c; lm-eval has the context's . a and the third token on
        (".a", "b", (5, 2), 1),  # whole: . ab; nothing is left after two tokens: the joined one
        ("a", "b", (9, 2), 1),
        ("", "c", (9, 3), 1),
    ],
)
def test_tokens_that_join_are_split_as_lm_eval_s(context, continuation, ids, scored):
    request = encode(joined(), context, continuation, 9, 8)
    assert (request.ids, request.scored) == (ids, scored) and request.unconditional == (ids[0] == 9)


def test_an_empty_context_follows_the_begin_token_alone():
    """Log-likelihoods of plain logits after the begin token; those with a context have it before that, in any order."""
    torch.manual_seed(0)
    model = Decoder(DecoderConfig(layers=1, width=16, heads=2, kv_heads=1, ffn=24, vocab_size=32, max_sequence=32))
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    end, begin = 1, 7
    texts = [((), (5, 6, 8)), ((9, 4), (5,)), ((), (8,)), ((end,), (5, 6))]
    requests = [
        Request((*context, *text) if context else (end, *text), len(text), unconditional=not context)
        for context, text in texts
    ]
    for greedy in (False, True):
        scores = score(WithBeginToken(model, begin), requests, start(1), greedy=greedy)
        for (context, text), (value, likeliest) in zip(texts, scores):
            ids = [begin, *context, *text]
            with torch.no_grad():
                log_p = model(torch.tensor([ids[:-1]]))[0].double().log_softmax(-1)[-len(text) :]
            assert value == pytest.approx(float(log_p[range(len(text)), list(text)].sum()), abs=1e-5)
            assert not greedy or likeliest == float(log_p.argmax(-1).tolist() == list(text))
    assert score(model, requests[:1], start(1))[0, 0] != scores[0, 0]  # of a model without, after the end of text


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
