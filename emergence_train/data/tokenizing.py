"""Tokenize batches of documents, in order, in this process or in several."""

import collections
import hashlib
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from emergence_train.data import tokenizer
from emergence_train.data.readers import Bad
from emergence_train.errors import RunError

DOCUMENTS_A_TASK = 64
CHARACTERS_A_TASK = 2_000_000
UNWRITABLE = "cannot be written in the tokenizer"


def document_hash(text: str) -> int:
    """A 64-bit hash of the text with white space collapsed: duplicates fall on the same side of the split."""
    return int.from_bytes(hashlib.blake2b(" ".join(text.split()).encode(), digest_size=8).digest(), "big")


def is_held_out(key: int, fraction: float) -> bool:
    """Whether the document with this hash is in the held-out `fraction`."""
    return key < fraction * 2**64


@dataclass(frozen=True)
class Document:
    """Ids of a document, uint32, and what validation needs of a held-out one."""

    ids: np.ndarray
    key: int  # document_hash
    byte_ends: np.ndarray | None  # bytes of the text up to the end of each token, int64; of held-out documents
    unknown: int  # number of unknown tokens


@dataclass(frozen=True)
class Encoded:
    """A batch: the document of each row, or its problem."""

    rows: list[Document | Bad]
    text_bytes: int


class Workers:
    """A pool of tokenizing processes; `count` 0: one per CPU, 1: this process itself."""

    def __init__(self, count: int, path: Path) -> None:
        self.count = count or os.cpu_count() or 1
        self.path = path
        self.pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> "Workers":
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
        if self.count > 1:
            context = multiprocessing.get_context("spawn")  # fork would copy the tokenizer's threads half
            self.pool = ProcessPoolExecutor(self.count, context, initializer=_start, initargs=(self.path,))
        else:
            _load(self.path)
        return self

    def __exit__(self, *_: object) -> None:
        if self.pool:
            self.pool.shutdown(cancel_futures=True)

    def encode(self, rows: Iterable[str | Bad], fraction: float) -> Iterator[Encoded]:
        """The rows' documents in batches, in order; at most a few batches ahead of the consumer; `fraction` is held out."""
        if not self.pool:
            yield from (_encode(batch, fraction) for batch in _batches(rows))
            return
        waiting: collections.deque[Future[Encoded]] = collections.deque()
        try:
            for batch in _batches(rows):
                waiting.append(self.pool.submit(_encode, batch, fraction))
                if len(waiting) > 3 * self.count:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool:
            raise RunError(
                "a tokenizing process was killed (out of memory?); run prepare again, it resumes after the last "
                "finished shard, with fewer data.workers if memory is short"
            ) from None


_encoder: Tokenizer | None = None
_unknown: int | None = None
_path = Path()


def _start(path: Path) -> None:
    """In a worker process: it ends with the one that started it, however that ended."""
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
    _load(path)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _load(path: Path) -> None:
    global _encoder, _path, _unknown
    _path = path
    _encoder = tokenizer.load_file(path)
    _unknown = tokenizer.unknown(_encoder)


def _encode(batch: list[str | Bad], fraction: float) -> Encoded:
    with tokenizer.panics_as_input_errors(_path):
        return _encoded(batch, fraction)


def _encoded(batch: list[str | Bad], fraction: float) -> Encoded:
    assert _encoder is not None, "_load comes first in every process"
    texts = [row for row in batch if isinstance(row, str)]
    keys = [document_hash(text) for text in texts]
    held_out = [is_held_out(key, fraction) for key in keys]
    with_offsets = partial(_encoder.encode, add_special_tokens=False)
    try:
        trained = [text for text, held in zip(texts, held_out) if not held]
        encoded = iter(_encoder.encode_batch_fast(trained, add_special_tokens=False))  # without offsets
        fast: Callable = lambda text: next(encoded)  # noqa: E731
    except Exception:  # one of them cannot be written, and the library does not say which
        fast = with_offsets
    of_texts = (_document(*row, with_offsets if row[2] else fast) for row in zip(texts, keys, held_out))
    rows = [next(of_texts) if isinstance(row, str) else row for row in batch]
    return Encoded(rows, sum(len(text.encode()) for text in texts))


def _document(text: str, key: int, held_out: bool, encode: Callable) -> Document | Bad:
    """The text's ids, and of a held-out one the bytes; a Bad without a place where the tokenizer cannot write it."""
    try:
        encoding = encode(text)
    except Exception as error:  # the library raises plain Exception
        return Bad(f"{UNWRITABLE} ({' '.join(str(error).split())[:200]})", "")
    ids = np.array(encoding.ids, dtype=np.uint32)
    ends = np.array(tokenizer.byte_ends(text, encoding.offsets), dtype=np.int64) if held_out else None
    return Document(ids, key, ends, int(np.count_nonzero(ids == _unknown)) if _unknown is not None else 0)


def _batches(rows: Iterable[str | Bad]) -> Iterator[list[str | Bad]]:
    batch, characters = [], 0
    for row in rows:
        batch.append(row)
        characters += len(row) if isinstance(row, str) else 0
        if len(batch) == DOCUMENTS_A_TASK or characters >= CHARACTERS_A_TASK:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
