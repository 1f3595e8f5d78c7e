"""The tokenizer: trained here or loaded, always kept as one tokenizer.json beside the shards."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import tokenizers
from tokenizers import Tokenizer

from emergence_train.errors import InputError

END_OF_TEXT = "<|endoftext|>"
KNOWN_ENDS = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "<|eos|>", "[SEP]")


def train(texts: Iterator[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE: every text can be written in it, and its first tokens are the end of text and the 256 bytes."""
    tokenizer = Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def load_file(path: str | Path) -> Tokenizer:
    path = Path(path)
    if not path.is_file():
        raise InputError(f"tokenizer {path}: no such file; give the path of a tokenizer.json")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise InputError(f"tokenizer {path}: not a tokenizer.json: {error}") from None


def load_hub(name: str) -> Tokenizer:
    try:
        return Tokenizer.from_pretrained(name)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"tokenizer {name!r} cannot be fetched from the hub: {reason}; give a local file") from None


def end_of_text(tokenizer: Tokenizer) -> int:
    """The id that closes every document."""
    for token in KNOWN_ENDS:
        if (found := tokenizer.token_to_id(token)) is not None:
            return found
    raise InputError(f"the tokenizer has no end-of-text token; add one of {', '.join(KNOWN_ENDS)} to it")


def fingerprint(tokenizer: Tokenizer) -> str:
    """Names the vocabulary in tables and shards: losses in nats per token compare only where it is the same."""
    return hashlib.sha256(tokenizer.to_str().encode()).hexdigest()[:16]
