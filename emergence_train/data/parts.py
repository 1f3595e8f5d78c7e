"""A source in parts: each is a shard, the held-out windows of its rows, and a record of the rows read."""

import array
import itertools
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from emergence_train import files
from emergence_train.data import sources
from emergence_train.data.held_out import HeldOut
from emergence_train.data.readers import Bad
from emergence_train.data.tokenizing import UNWRITABLE, Document, Workers
from emergence_train.data_config import Data, Source
from emergence_train.errors import InputError
from emergence_train.input_files import read_text

PROGRESS_SECONDS = 5.0
FEW_ROWS = 10  # bad rows allowed in any source of at least 100 rows; a tenth of a smaller one
ROWS_BEFORE_REFUSAL = 1000
RATIOS = {".gz": 3.0, ".xz": 4.0, ".zst": 3.0, ".bz2": 4.0, ".parquet": 2.0}  # typical ratio of text to file size


class PartReader:
    """Paths and settings of a source's parts."""

    def __init__(
        self, data: Data, source: Source, root: Path, dtype: np.dtype, end_of_text: int, most: int, fraction: float
    ) -> None:
        """`most`: validation windows needed at most. `fraction`: share of the documents held out."""
        self.data, self.source, self.root, self.dtype, self.end = data, source, root, dtype, end_of_text
        self.most = most
        self.folder = root / "parts" / source.domain
        self.shards = root / "train" / source.domain
        self.fraction = next((part["fraction"] for part in self.finished()), fraction)

    def finished(self) -> list[dict]:
        """Records of the parts of an earlier try, in order, as far as what they name is whole."""
        records = (json.loads(read_text(path)) for path in sorted(self.folder.glob("*.json")))
        return list(itertools.takewhile(self._is_whole, records))

    def _is_whole(self, record: dict) -> bool:
        named = [self.root / entry["file"] for entry in (record["shard"] or {}).values()]
        sizes = [entry["bytes"] for entry in (record["shard"] or {}).values()]
        there = all(path.is_file() and path.stat().st_size == size for path, size in zip(named, sizes))
        return there and (self.folder / record["held_out"]).is_file()

    def restart(self, fraction: float) -> None:
        """Delete the parts and start over with another held-out fraction."""
        self.fraction = fraction
        for folder in (self.folder, self.shards):
            shutil.rmtree(folder, ignore_errors=True)

    def windows(self, parts: list[dict]) -> int:
        """Upper bound of the validation windows in the parts."""
        return sum(part["windows"] for part in parts) or sum(part["short_tokens"] for part in parts) // (
            self.data.sequence + 1
        )


class Part:
    """One shard in the making, and its held-out windows."""

    def __init__(self, reader: PartReader, done: list[dict]) -> None:
        """`done`: the records of the parts before it."""
        self.reader, self.before = reader, sum(part["documents_read"] for part in done)
        self.shard = reader.shards / f"{len(done):05d}.bin"
        self.record = reader.folder / f"{len(done):05d}.json"
        # One growing buffer each: a million small arrays would take many times their size in a fragmented heap.
        self.ids, self.ends = bytearray(), array.array("q")
        self.held_out = HeldOut(reader.data.sequence + 1, reader.most, reader.dtype)
        self.read = self.bad = self.unknown = 0
        self.first_bad: Bad | None = None

    @property
    def tokens(self) -> int:
        """Training tokens so far."""
        return len(self.ids) // self.reader.dtype.itemsize

    def add(self, row: Document | Bad) -> None:
        self.read += 1
        if isinstance(row, Bad):
            self.bad += 1
            place = row.place or f"{self.reader.source.domain}: document {self.before + self.read}"
            self.first_bad = self.first_bad or Bad(row.problem, place)
        elif len(row.ids) and row.byte_ends is not None:
            self.held_out.add(row)
        elif len(row.ids):
            self.ids += np.append(row.ids, np.uint32(self.reader.end)).astype(self.reader.dtype).tobytes()
            self.ends.append(self.tokens)
            self.unknown += row.unknown

    def finish(self, last: bool) -> dict:
        """Write the shard and the windows, then the record; return the record."""
        root, shard = self.reader.root, None
        if self.ends:
            boundaries = self.shard.with_suffix(".docs.npy")
            with files.atomic_path(self.shard) as path, open(path, "wb") as file:
                file.write(self.ids)
            with files.atomic_path(boundaries) as path, open(path, "wb") as file:
                np.save(file, np.array(self.ends, dtype=np.int64))
            shard = {"tokens": files.describe(root, self.shard), "documents": files.describe(root, boundaries)}
        held, arrays = self.record.with_suffix(".npz"), self.held_out.arrays()
        with files.atomic_path(held) as path, open(path, "wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]  # none of them is called allow_pickle
        record = {
            "documents_read": self.read,
            "train_tokens": self.tokens,
            "train_documents": len(self.ends),
            "unknown_tokens": self.unknown,
            "bad_rows": self.bad,
            "first_bad": self.first_bad and list(self.first_bad),
            "shard": shard,
            "held_out": held.name,
            "fraction": self.reader.fraction,
            "windows": len(arrays["windows"]),
            "short_tokens": int(self.held_out.short_tokens + len(self.held_out.short)),
            "last": last,
        }
        files.write_json(self.record, record)
        return record


def tokenize_source(reader: PartReader, workers: Workers, log: Callable[[str], None]) -> list[dict]:
    """Tokenize the source; return the records of its parts, those of an interrupted prepare included.

    Raises:
        InputError: more rows without usable text than data.bad_rows allows; names the first.
    """
    source, done = reader.source, reader.finished()
    if done and done[-1]["last"]:
        return done
    part = Part(reader, done)
    if part.before:
        log(f"{source.domain}: resuming after {part.before:,} documents")
    began = shown = time.monotonic()
    size, tokens, expected = 0, 0, _text_bytes(source)
    for batch in workers.encode(sources.documents(source, part.before), reader.fraction):
        for row in batch.rows:
            part.add(row)
            if part.tokens >= reader.data.shard_tokens:
                done.append(part.finish(last=False))
                part = Part(reader, done)
        size += batch.text_bytes
        tokens += sum(len(row.ids) for row in batch.rows if isinstance(row, Document))
        _check_bad(reader, done, part, ended=False)
        if time.monotonic() - shown > PROGRESS_SECONDS:
            shown = time.monotonic()
            left = (shown - began) * max(expected / size - 1, 0) if expected and size else None
            log(
                f"{source.domain}: {tokens:,} tokens, {tokens / (shown - began):,.0f} tokens/s, ETA "
                + ("unknown" if left is None else f"{left:.0f} s")
            )
    _check_bad(reader, done, part, ended=True)
    done.append(part.finish(last=True))
    if bad := sum(record["bad_rows"] for record in done):
        problem, place = next(record["first_bad"] for record in done if record["first_bad"])
        read = sum(record["documents_read"] for record in done)
        log(f"{source.domain}: {bad:,} of {read:,} rows skipped, the first: {place} {problem}")
    return done


def _check_bad(reader: PartReader, done: list[dict], part: Part, *, ended: bool) -> None:
    bad = sum(record["bad_rows"] for record in done) + part.bad
    read = sum(record["documents_read"] for record in done) + part.read
    share = reader.data.bad_rows
    allowed = max(share * read, min(FEW_ROWS, 0.1 * read)) if share else 0
    if bad <= allowed or (not ended and read < ROWS_BEFORE_REFUSAL):
        return
    problem, place = part.first_bad or next(record["first_bad"] for record in done if record["first_bad"])
    remedy = f"fix them, or raise data.bad_rows ({share:g}) to skip them"
    if problem.startswith("has no text"):
        remedy = f"set text_field, {remedy}"
    if problem.startswith(UNWRITABLE):
        remedy = f"take a tokenizer with a token for the unknown, or raise data.bad_rows ({share:g}) to leave them out"
    raise InputError(f"{place} {problem}; {bad:,} of {read:,} rows of {reader.source.domain!r} are no text: {remedy}")


def _text_bytes(source: Source) -> float | None:
    """Estimated bytes of text in a local source; None for a stream of unknown length."""
    if source.hub or source.planted or source.limit_documents:
        return None
    return sum(path.stat().st_size * RATIOS.get(path.suffix, 1.0) for path in sources.paths(source))
