"""Train or load the tokenizer; it is saved as tokenizer.json in the data set.

A loaded tokenizer is reduced to a map from text to ids (`normalised`): truncation, padding, post-processing and BPE dropout are
removed from the saved file, so that training, evaluation and exported checkpoints give the same ids. Special tokens spelled out
in a text are text.
"""

import contextlib
import hashlib
import itertools
import json
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, Tokenizer

from emergence_train.errors import InputError
from emergence_train.input_files import read_text

END_OF_TEXT = "<|endoftext|>"
KNOWN_ENDS = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "<|eos|>", "[SEP]")
KNOWN_PADS = ("<pad>", "<|pad|>", "[PAD]", "<|padding|>", "<|finetune_right_pad_id|>")
LONGEST_RUN = 256  # characters: learning merges is quadratic in a word's length
MARGIN, CHARACTERS = 256, 8  # `ending` takes so many tokens more, and first so many characters a token
WORD_END = re.compile(r"\s\S")  # backwards
_RUN = re.compile(rf"\S{{{LONGEST_RUN}}}(?=\S)|\s{{{LONGEST_RUN}}}(?=\s)")


def train(texts: Iterator[str], vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE; its first tokens are the end of text and the 256 bytes, so it can encode every text.

    Runs of more than LONGEST_RUN characters with or without white space (base64, rulers) are split.
    """
    tokenizer = Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((part for text in texts for part in _short_runs(text)), trainer)
    return normalised(tokenizer.to_str())


def _short_runs(text: str) -> Iterator[str]:
    begin = 0
    for run in _RUN.finditer(text):
        yield text[begin : run.end()]
        begin = run.end()
    yield text[begin:]


def normalised(serialised: str, end_of_text: str | None = None) -> Tokenizer:
    """A tokenizer of the text alone, from the content of a tokenizer.json: no truncation, padding, post-processor or dropout.

    Special tokens that a text spells out stay text, and so does the one that ends a text (`end_of_text`, or the first of
    KNOWN_ENDS), which becomes special where it was an ordinary one. Where the model itself would make one of its spelling
    (Unigram and word models have them among their pieces), a pre-tokenizer that cuts it after its first character is added.
    """
    content = json.loads(serialised)
    content |= {"truncation": None, "padding": None, "post_processor": None}
    if isinstance(content.get("model"), dict) and "dropout" in content["model"]:
        content["model"]["dropout"] = None
    tokenizer = _literal(Tokenizer.from_str(json.dumps(content, ensure_ascii=False)))
    names = [end_of_text] if end_of_text else KNOWN_ENDS
    end = next((name for name in names if tokenizer.token_to_id(name) is not None), None)
    if end and end not in _special(tokenizer):
        tokenizer.add_special_tokens([AddedToken(end, normalized=False, special=True)])
        content = json.loads(tokenizer.to_str())
    before = content["pre_tokenizer"]
    cuts = {
        token: f"{re.escape(token[0])}(?={re.escape(token[1:])})" for token in _special(tokenizer) if len(token) > 1
    }

    def is_cut(cut: str) -> bool:  # what is left then stands for unknown characters
        return json.dumps(cut)[1:-1] in json.dumps(before)

    forged = [token for token, cut in cuts.items() if not is_cut(cut) and _makes(tokenizer, token)]
    if not forged:
        return tokenizer
    pattern = "|".join(cuts[token] for token in sorted(forged, reverse=True))
    cut = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [before, cut]} if before else cut
    return _literal(Tokenizer.from_str(json.dumps(content, ensure_ascii=False)))


@contextlib.contextmanager
def panics_as_input_errors(path: str | Path) -> Iterator[None]:
    """InputError where the library, in Rust, panics in the block: a regular expression of the tokenizer at `path` that goes back
    and forth without end is one. A panic is no Exception, and the library writes many lines to the standard error first.
    """
    with tempfile.TemporaryFile() as output:
        own = os.dup(2)
        os.dup2(output.fileno(), 2)
        try:
            yield
        except BaseException as error:
            if type(error).__name__ != "PanicException":
                raise
            output.truncate(0)
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"tokenizer {path}: cannot encode this text ({reason}); give another tokenizer") from None
        finally:
            os.dup2(own, 2)
            os.close(own)
            output.seek(0)
            if rest := output.read():
                with contextlib.suppress(OSError):
                    os.write(2, rest)


def _special(tokenizer: Tokenizer) -> list[str]:
    return [token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special]


def _makes(tokenizer: Tokenizer, token: str) -> bool:
    """Whether a text that contains the spelling of `token` is given its id."""
    wanted = tokenizer.token_to_id(token)
    for text in (token, f"a{token}b", f"a {token} b"):
        with contextlib.suppress(Exception):  # the library's, of a text that the tokenizer cannot write
            if wanted in tokenizer.encode(text, add_special_tokens=False).ids:
                return True
    return False


def _literal(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.encode_special_tokens = True  # special tokens in a text are text; tokenizer.json cannot express this
    return tokenizer


def find(path: str | Path) -> Path:
    """The tokenizer.json at a path or in a directory."""
    path = Path(path)
    if path.is_dir() and (path / "tokenizer.json").is_file():
        path = path / "tokenizer.json"
    if not path.is_file():
        raise InputError(f"tokenizer {path}: no such file; give the path of a tokenizer.json")
    return path


def load_file(path: str | Path, end_of_text: str | None = None) -> Tokenizer:
    """The tokenizer of a tokenizer.json, `normalised`."""
    path = find(path)
    with _named_errors(path):
        return normalised(read_text(path), end_of_text)


@contextlib.contextmanager
def _named_errors(path: Path) -> Iterator[None]:
    try:
        with panics_as_input_errors(path):
            yield
    except InputError:
        raise
    except Exception as error:  # the library raises plain Exception
        raise InputError(f"tokenizer {path}: not a tokenizer.json: {' '.join(str(error).split())[:200]}") from None


def load_hub(name: str, end_of_text: str | None = None) -> Tokenizer:
    """The hub's tokenizer of this name, `normalised`."""
    try:
        return normalised(Tokenizer.from_pretrained(name).to_str(), end_of_text)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"tokenizer {name!r} cannot be fetched from the hub: {reason}; give a local file") from None


def end_of_text(tokenizer: Tokenizer, name: str | None = None) -> int:
    """The end-of-text id: of the token `name`, else of the first of KNOWN_ENDS."""
    for token in [name] if name else KNOWN_ENDS:
        if (token_id := tokenizer.token_to_id(token)) is not None:
            return token_id
    if name:
        raise InputError(f"the tokenizer has no token {name!r}; give data.tokenizer.end_of_text one of its tokens")
    raise InputError(
        f"the tokenizer has no end-of-text token of a known name ({', '.join(KNOWN_ENDS)}); name its own in "
        f"data.tokenizer.end_of_text"
    )


def size(tokenizer: Tokenizer) -> int:
    """One more than the greatest id, the rows of the embedding; ids may have gaps, so it may exceed the number of tokens."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1


def unknown(tokenizer: Tokenizer) -> int | None:
    """The id of the unknown token; None where there is none."""
    model = json.loads(tokenizer.to_str())["model"]
    if model.get("unk_id") is not None:
        return model["unk_id"]
    return tokenizer.token_to_id(model["unk_token"]) if model.get("unk_token") else None


def ending(tokenizer: Tokenizer, text: str, tokens: int) -> str:
    """The end of a long text, whose last `tokens` tokens are those of the text; a shorter text whole.

    A tokenizer takes some 200 bytes a byte. It is cut before white space, where hardly a token begins otherwise for what was
    before; what does differ (runs of digits, say, are counted from their start) has MARGIN tokens to come to the same.
    """
    length = CHARACTERS * (tokens + MARGIN)
    while length < len(text):
        before = WORD_END.search(text[len(text) - length :: -1])  # the nearest, from there backwards
        if before is None:
            break
        end = text[len(text) - length - before.start() :]
        if len(tokenizer.encode(end, add_special_tokens=False).ids) >= tokens + MARGIN:
            return end
        length *= 4
    return text


def byte_ends(text: str, offsets: list[tuple[int, int]]) -> list[int]:
    """UTF-8 bytes of `text` up to the end of each token, non-decreasing.

    `offsets`: (begin, end) in characters, as the library returns them. A character shared by several tokens counts with the first
    of them, and white space dropped between two tokens with the later one, so that sums over consecutive tokens are the bytes of
    the text between.
    """
    until: Sequence[int] = range(len(text) + 1)
    if not text.isascii():
        until = list(itertools.accumulate((len(character.encode()) for character in text), initial=0))
    ends, last = [], 0
    for _, end in offsets:
        last = max(last, until[end])
        ends.append(last)
    return ends


def fingerprint(path: Path) -> str:
    """A hash of the vocabulary of a tokenizer.json; losses in nats per token compare only where it is equal."""
    with _named_errors(path):
        return hashlib.sha256(Tokenizer.from_file(str(find(path))).to_str().encode()).hexdigest()[:16]
