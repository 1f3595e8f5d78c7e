"""Token shards on disk: raw little-endian uint16 or uint32, document boundaries in a second file, checksums in the index."""

import contextlib
import functools
import json
import os
import resource
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from emergence_train import files
from emergence_train.errors import InputError
from emergence_train.input_files import read_text


def token_dtype(vocabulary: int) -> np.dtype:
    """The narrowest of uint16 and uint32 that holds every id."""
    return np.dtype("<u2" if vocabulary <= 2**16 else "<u4")


def verify(root: Path, entries: list[dict], stamp: Path) -> None:
    """Raise InputError for the first file that is missing, truncated or altered.

    Checksums of large corpora take minutes, so files that were verified before and have not been written since (same
    size, time and inode) are trusted; `stamp` remembers them where the directory can be written.
    """
    try:
        known = json.loads(read_text(stamp))
    except (OSError, ValueError):
        known = {}
    seen = {}

    def check(entry: dict) -> None:
        path = root / entry["file"]
        try:
            status = os.stat(path)
        except OSError:
            raise InputError(f"{path}: is missing; restore it, or delete {root} and run prepare again") from None
        if status.st_size != entry["bytes"]:
            raise InputError(
                f"{path}: has {status.st_size} bytes instead of {entry['bytes']}; it is truncated or "
                f"altered: delete {root} and run prepare again"
            )
        mark = [entry["sha256"], status.st_size, status.st_mtime_ns, status.st_ino]
        if known.get(entry["file"]) != mark and files.sha256(path) != entry["sha256"]:
            raise InputError(
                f"{path}: its checksum does not match the index; it was altered: delete {root} and run prepare again"
            )
        seen[entry["file"]] = mark

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        list(pool.map(check, entries))
    if seen != known:
        try:
            files.write_json(stamp, seen)
        except Exception:  # a read-only corpus is verified in full every time
            stamp.unlink(missing_ok=True) if os.access(stamp.parent, os.W_OK) else None


def most_open_shards() -> int:
    """Shards of one domain to keep mapped, two descriptors each; raises the process' soft limit to its hard one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY or soft < hard:
        with contextlib.suppress(ValueError, OSError):
            wanted = 1 << 16 if hard == resource.RLIM_INFINITY else min(hard, 1 << 16)
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max((soft - 256) // 16, 4)


class TokenStream:
    """One domain's shards as one sequence of tokens, memory-mapped when read; the least recently used are closed."""

    def __init__(self, root: Path, shards: list[dict], dtype: np.dtype) -> None:
        self.root, self.shards, self.dtype = root, shards, dtype
        self.ends = np.cumsum([(root / shard["tokens"]["file"]).stat().st_size // dtype.itemsize for shard in shards])
        self._shard = functools.lru_cache(most_open_shards())(self._open)

    def _open(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """(tokens, ends of documents) of a shard."""
        shard = self.shards[number]
        tokens = np.memmap(self.root / shard["tokens"]["file"], dtype=self.dtype, mode="r")
        return tokens, np.load(self.root / shard["documents"]["file"], mmap_mode="r")

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def read(self, start: int, length: int) -> np.ndarray:
        """`length` tokens from `start`, as int64."""
        return np.concatenate([part[a:b].astype(np.int64) for part, _, a, b in self._pieces(start, length)])

    def document_ids(self, start: int, length: int) -> np.ndarray:
        """For each of those tokens the number of its document, counted from the window's first; int64."""
        ids, base = [], 0
        for _, boundaries, a, b in self._pieces(start, length):
            numbers = np.searchsorted(boundaries, np.arange(a, b), side="right")
            ids.append(numbers - numbers[0] + base)
            base = int(ids[-1][-1]) + 1  # a shard begins with a new document
        return np.concatenate(ids)

    def _pieces(self, start: int, length: int) -> Iterator[tuple[np.ndarray, np.ndarray, int, int]]:
        first = int(np.searchsorted(self.ends, start, side="right"))
        for number in range(first, len(self.shards)):
            tokens, boundaries = self._shard(number)
            begin = int(self.ends[number]) - len(tokens)
            yield tokens, boundaries, max(start - begin, 0), min(start + length - begin, len(tokens))
            if start + length <= self.ends[number]:
                return
