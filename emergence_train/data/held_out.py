"""Cut held-out documents into validation windows, and choose the windows of a validation set.

A window is sequence + 1 tokens of one document at a random offset. Windows are ranked by a hash of the document's text, so the
choice is even over documents and does not depend on the order of the files. Where a domain has too few documents of that length,
short ones are packed: concatenated with an end-of-text token between them.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from emergence_train.data.tokenizing import Document


@dataclass(frozen=True)
class Windows:
    """n windows in the order of their rank."""

    tokens: np.ndarray  # (n, sequence + 1)
    text_bytes: np.ndarray  # (n,) of the text behind the targets, UTF-8
    documents: np.ndarray  # (n,) hash of the document that each comes from; of a packed one, of the first

    def __len__(self) -> int:
        return len(self.tokens)


class HeldOut:
    """Collects the held-out documents of one part of a source; keeps the `most` best windows."""

    def __init__(self, window: int, most: int, dtype: np.dtype) -> None:
        self.window, self.most, self.dtype = window, max(most, 1), dtype
        self.by_priority: dict[int, tuple[np.ndarray, int, int]] = {}  # hash of the text, so that duplicates count once
        self.short: dict[int, tuple[np.ndarray, np.ndarray]] = {}  # by document: ids, bytes of each token
        self.short_tokens = 0

    def add(self, document: Document) -> None:
        ids, ends, key = document.ids, document.byte_ends, document.key
        if ends is None:
            raise ValueError("the document was not held out: its byte_ends are missing")
        if len(ids) < self.window:
            if key not in self.short:
                self.short[key] = (ids.astype(self.dtype), np.diff(ends, prepend=0).astype(np.uint32))
                self.short_tokens += len(ids)
                self._bound_short()
            return
        # A random offset, as in a training sample: not always the document's title.
        offset = key % (len(ids) % self.window + 1)
        for number in range(len(ids) // self.window):
            begin = offset + number * self.window
            last = begin + self.window - 1
            # An order that depends on the text alone, so that windows are chosen evenly over documents.
            digest = hashlib.blake2b(key.to_bytes(8, "big") + number.to_bytes(8, "big"), digest_size=8).digest()
            row = ids[begin : last + 1].astype(self.dtype)
            self.by_priority.setdefault(int.from_bytes(digest, "big"), (row, int(ends[last] - ends[begin]), key))
        if len(self.by_priority) > 4 * self.most + 1000:
            self.by_priority = {key: self.by_priority[key] for key in sorted(self.by_priority)[: self.most]}

    def _bound_short(self) -> None:
        enough = (self.most + 1) * self.window
        if self.short_tokens <= 4 * enough + 100_000:
            return
        kept, self.short_tokens = {}, 0
        for key in sorted(self.short):
            kept[key] = self.short[key]
            self.short_tokens += len(kept[key][0])
            if self.short_tokens >= enough:
                break
        self.short = kept

    def arrays(self) -> dict[str, np.ndarray]:
        """The content of the part's file, for numpy.savez."""
        order = sorted(self.by_priority)
        short = sorted(self.short)
        empty = np.zeros(0, np.uint32)
        return {
            "priorities": np.array(order, np.uint64),
            "windows": np.array([self.by_priority[p][0] for p in order], self.dtype).reshape(-1, self.window),
            "bytes": np.array([self.by_priority[p][1] for p in order], np.int64),
            "documents": np.array([self.by_priority[p][2] for p in order], np.uint64),
            "short_keys": np.array(short, np.uint64),
            "short_lengths": np.array([len(self.short[key][0]) for key in short], np.int64),
            "short_ids": np.concatenate([empty.astype(self.dtype), *(self.short[key][0] for key in short)]),
            "short_bytes": np.concatenate([empty, *(self.short[key][1] for key in short)]),
        }


def read(path: Path) -> dict[str, np.ndarray]:
    """Read `HeldOut.arrays` of a part into memory: an open .npz reads an array again at every access."""
    with np.load(path) as stored:
        return dict(stored)


def choose(parts: list[dict[str, np.ndarray]], needed: int, window: int, end_of_text: int) -> Windows:
    """The best `needed` windows of all parts, packed ones last; fewer where the parts have fewer."""
    priorities = np.concatenate([part["priorities"] for part in parts])
    # Duplicate documents share their priority: one of each is enough.
    _, first = np.unique(priorities, return_index=True)
    first = first[:needed]
    tokens, sizes, documents = (
        np.concatenate([part[name] for part in parts])[first] for name in ("windows", "bytes", "documents")
    )
    if len(first) < needed:
        packed = _packed(parts, needed - len(first), window, end_of_text)
        tokens = np.concatenate([tokens, packed.tokens.astype(tokens.dtype)])
        sizes = np.concatenate([sizes, packed.text_bytes])
        documents = np.concatenate([documents, packed.documents])
    return Windows(tokens, sizes, documents)


def _packed(parts: list[dict[str, np.ndarray]], needed: int, window: int, end_of_text: int) -> Windows:
    """Windows of the short documents, concatenated in the order of their hashes."""
    documents: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    for part in parts:
        ends = np.cumsum(part["short_lengths"])
        for key, end, length in zip(part["short_keys"].tolist(), ends, part["short_lengths"]):
            documents.setdefault(key, (part["short_ids"][end - length : end], part["short_bytes"][end - length : end]))
    ids, sizes, keys = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], [np.zeros(0, np.uint64)]
    total = 0
    for key in sorted(documents):
        if total >= needed * window:
            break
        tokens, counts = documents[key]
        ids += [tokens.astype(np.int64), np.array([end_of_text])]
        sizes += [counts.astype(np.int64), np.zeros(1, np.int64)]
        keys.append(np.full(len(tokens) + 1, key, np.uint64))
        total += len(tokens) + 1
    count = min(total // window, needed)
    rows, counts, owners = (np.concatenate(x)[: count * window].reshape(count, window) for x in (ids, sizes, keys))
    return Windows(rows, counts[:, 1:].sum(1), owners[:, 0])
