"""`emergence-train prepare`: sources to tokenizer, shards and validation sets.

The work is done in parts: one finished shard with its held-out windows and a record of how many documents were read.
A part's record is written last, so a restart goes on after the last finished part. dataset.json, the index, comes
last of all: a directory without it is not a data set.
"""

import collections
import hashlib
import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np

from emergence_train import files
from emergence_train.config import Data, Source
from emergence_train.data import shards, sources, tokenizer
from emergence_train.data.sampling import quotas
from emergence_train.errors import InputError, RunError

DOCUMENTS_A_TASK = 64
BYTES_A_TOKEN = 2.0  # a low guess, for the check of free space


def prepare(data: Data, log: Callable[[str], None] = print) -> Path:
    """Make `data.path` and return it; does nothing where it is already made from the same configuration."""
    root = Path(data.path)
    recipe = _recipe(data)
    _check_recipe(root, recipe)
    if (root / "dataset.json").is_file():
        log(f"{root}: already prepared from this configuration")
        return root
    for source in [*data.sources, *data.ood]:
        sources.check(source)
    _check_space(data, root)
    files.write_json(root / "recipe.json", recipe)
    encoder = _tokenizer(data, root, log)
    vocabulary = encoder.get_vocab_size()
    dtype = shards.token_dtype(vocabulary)
    parts = {}
    with _Workers(data, root / "tokenizer.json") as workers:
        for source in data.sources:
            parts[source.domain] = _tokenize(data, source, root, dtype, workers, log, held_out=data.validation.fraction)
        for source in data.ood:
            parts[source.domain] = _tokenize(data, source, root, dtype, workers, log, held_out=1.0)
    _check_lengths(data, parts)
    index = {
        "format": 1,
        "sequence": data.sequence,
        "dtype": dtype.str,
        "tokenizer": {
            **files.describe(root, root / "tokenizer.json"),
            "vocabulary": vocabulary,
            "fingerprint": tokenizer.fingerprint(encoder),
            "end_of_text": tokenizer.end_of_text(encoder),
        },
        "domains": {
            source.domain: {
                "weight": source.weight,
                "tokens": sum(part["train_tokens"] for part in parts[source.domain]),
                "documents": sum(part["train_documents"] for part in parts[source.domain]),
                "shards": [part["shard"] for part in parts[source.domain] if part["shard"]],
            }
            for source in data.sources
        },
        "validation": _validation_sets(data, root, parts, dtype, encoder),
    }
    files.write_json(root / "dataset.json", index)
    shutil.rmtree(root / "parts")
    for domain, entry in index["domains"].items():
        log(f"{domain}: {entry['tokens']:,} tokens in {entry['documents']:,} documents")
    log(
        f"{root}: ready, vocabulary {vocabulary:,}, validation "
        + ", ".join(f"{name} {entry['sequences']}" for name, entry in index["validation"]["splits"].items())
    )
    return root


# ------------------------------------------------------------------------------------------------------------ checks


def _recipe(data: Data) -> dict:
    """What decides the prepared bytes. Weights, worker counts and the path do not."""
    recipe = data.model_dump(mode="json", exclude={"path", "workers"})
    for source in recipe["sources"] + recipe["ood"]:
        del source["weight"]
    recipe["iid_shares"] = _iid_shares(data)
    return recipe


def _iid_shares(data: Data) -> dict[str, int]:
    """Sequences of each domain in the iid set."""
    shares = quotas([source.weight for source in data.sources], data.validation.sequences)
    return {source.domain: share for source, share in zip(data.sources, shares)}


def _check_recipe(root: Path, recipe: dict) -> None:
    if root.exists() and not root.is_dir():
        raise InputError(f"{root}: is a file; data.path is a directory to be made")
    try:
        found = json.loads((root / "recipe.json").read_text())
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise InputError(f"{root / 'recipe.json'}: cannot be read ({error}); delete {root} and prepare again") from None
    if found != recipe:
        changed = next((key for key in recipe if found.get(key) != recipe[key]), "data")
        raise InputError(f"{root}: was prepared with another data.{changed}; choose another data.path or delete it")


def _check_space(data: Data, root: Path) -> None:
    """Local text is at most 1/BYTES_A_TOKEN tokens a byte; hub data sets cannot be known beforehand."""
    text = 0
    for source in data.sources:
        if not source.hub:
            text += sum(path.stat().st_size for path in sources.paths(source))
    place = root
    while not place.exists():
        place = place.parent
    needed, free = int(text / BYTES_A_TOKEN * 2), shutil.disk_usage(place).free
    if free < needed:
        raise InputError(
            f"{place}: {free / 1e9:.1f} GB free, about {needed / 1e9:.1f} GB needed for the shards; "
            f"free some or choose another data.path"
        )


def _check_lengths(data: Data, parts: dict[str, list[dict]]) -> None:
    for source in data.sources:
        tokens = sum(part["train_tokens"] for part in parts[source.domain])
        if source.weight > 0 and tokens < data.sequence + 1:
            raise InputError(
                f"source {source.domain!r} has {tokens} training tokens, fewer than one sequence "
                f"({data.sequence + 1}); add text or shorten data.sequence"
            )


# -------------------------------------------------------------------------------------------------------- tokenizing


def document_hash(text: str) -> int:
    """64 bits of the text with white space folded: equal documents fall on the same side of the split."""
    return int.from_bytes(hashlib.blake2b(" ".join(text.split()).encode(), digest_size=8).digest(), "big")


def _held_out(text: str, fraction: float) -> bool:
    return document_hash(text) < fraction * 2**64


def _tokenizer(data: Data, root: Path, log: Callable[[str], None]):
    path = root / "tokenizer.json"
    if path.is_file():
        return tokenizer.load_file(path)
    wanted = data.tokenizer
    if wanted.file:
        encoder = tokenizer.load_file(wanted.file)
    elif wanted.hub:
        encoder = tokenizer.load_hub(wanted.hub)
    else:
        began = time.monotonic()
        encoder = tokenizer.train(_training_texts(data), wanted.vocab_size)
        log(f"tokenizer: {encoder.get_vocab_size():,} tokens trained in {time.monotonic() - began:.0f} s")
    tokenizer.end_of_text(encoder)
    files.write_bytes(path, encoder.to_str().encode())
    return encoder


def _training_texts(data: Data) -> Iterator[str]:
    """Training documents of all domains, each up to its share of `train_bytes`; nothing that is held out."""
    total = sum(source.weight for source in data.sources)
    for source in data.sources:
        budget = data.tokenizer.train_bytes * source.weight / total
        for text in sources.documents(source):
            if budget <= 0:
                break
            if not _held_out(text, data.validation.fraction):
                budget -= len(text.encode())
                yield text


class _Workers:
    """Tokenizes batches of documents, in order, in this process or in several."""

    def __init__(self, data: Data, path: Path) -> None:
        self.count = data.workers or os.cpu_count() or 1
        self.path = path
        self.pool = None

    def __enter__(self) -> "_Workers":
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
        if self.count > 1:
            context = multiprocessing.get_context("spawn")  # fork would copy the tokenizer's threads half
            self.pool = ProcessPoolExecutor(self.count, context, initializer=_load, initargs=(self.path,))
        else:
            _load(self.path)
        return self

    def __exit__(self, *_) -> None:
        if self.pool:
            self.pool.shutdown(cancel_futures=True)

    def encode(self, batches: Iterator[list[str]]) -> Iterator[tuple[list[str], list[np.ndarray]]]:
        """Each batch with its documents' ids, in order; at most a few batches ahead of the reader."""
        if not self.pool:
            yield from ((batch, _encode(batch)) for batch in batches)
            return
        waiting = collections.deque()
        try:
            for batch in batches:
                waiting.append((batch, self.pool.submit(_encode, batch)))
                if len(waiting) > 3 * self.count:
                    done, future = waiting.popleft()
                    yield done, future.result()
            while waiting:
                done, future = waiting.popleft()
                yield done, future.result()
        except BrokenProcessPool:
            raise RunError(
                "a tokenizing process was killed (out of memory?); run prepare again, it resumes from the "
                "last finished shard, with fewer data.workers if memory is short"
            ) from None


_encoder = None


def _load(path: Path) -> None:
    global _encoder
    _encoder = tokenizer.load_file(path)


def _encode(batch: list[str]) -> list[np.ndarray]:
    return [np.array(e.ids, dtype=np.uint32) for e in _encoder.encode_batch(batch, add_special_tokens=False)]


def _tokenize(
    data: Data,
    source: Source,
    root: Path,
    dtype: np.dtype,
    workers: _Workers,
    log: Callable[[str], None],
    held_out: float,
) -> list[dict]:
    """The source's parts, those of an earlier try included."""
    folder = root / "parts" / source.domain
    done = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    if done and done[-1]["last"]:
        return done
    skip = sum(part["documents_read"] for part in done)
    if skip:
        log(f"{source.domain}: resuming after {skip:,} documents")
    end = tokenizer.end_of_text(tokenizer.load_file(root / "tokenizer.json"))
    part = _Part(data, source, root, dtype, end, len(done))
    began = shown = time.monotonic()
    total = size = 0
    expected = _text_bytes(source)
    for texts, encoded in workers.encode(_batches(sources.documents(source, skip))):
        for text, ids in zip(texts, encoded):
            part.add(text, ids, held_out)
            if part.tokens >= data.shard_tokens:
                done.append(part.finish(last=False))
                part = _Part(data, source, root, dtype, end, len(done))
        total += sum(map(len, encoded))
        size += sum(len(text.encode()) for text in texts)
        if time.monotonic() - shown > 5:
            shown = time.monotonic()
            left = (shown - began) * max(expected / size - 1, 0) if expected else None
            log(
                f"{source.domain}: {total:,} tokens, {total / (shown - began):,.0f} tokens/s, ETA "
                + ("unknown" if left is None else f"{left:.0f} s")
            )
    done.append(part.finish(last=True))
    return done


def _text_bytes(source: Source) -> float | None:
    """About how much text a local source holds; None for a stream, whose end is not known beforehand."""
    if source.hub or source.limit_documents:
        return None
    packed = {".gz": 3.0, ".xz": 4.0, ".parquet": 2.0}  # usual ratios of text to file
    return sum(path.stat().st_size * packed.get(path.suffix, 1.0) for path in sources.paths(source))


def _batches(texts: Iterator[str]) -> Iterator[list[str]]:
    batch = []
    for text in texts:
        batch.append(text)
        if len(batch) == DOCUMENTS_A_TASK:
            yield batch
            batch = []
    if batch:
        yield batch


class _Part:
    """What becomes one shard and the held-out windows met on the way."""

    def __init__(self, data: Data, source: Source, root: Path, dtype: np.dtype, end: int, number: int) -> None:
        self.window, self.root, self.dtype, self.end = data.sequence + 1, root, dtype, end
        self.shard = root / "train" / source.domain / f"{number:05d}.bin"
        self.record = root / "parts" / source.domain / f"{number:05d}.json"
        self.documents: list[np.ndarray] = []
        self.windows: list[np.ndarray] = []
        self.priorities: list[int] = []
        self.tokens = self.read = 0

    def add(self, text: str, ids: np.ndarray, held_out: float) -> None:
        self.read += 1
        if not len(ids):
            return
        if not _held_out(text, held_out):
            self.documents.append(np.append(ids, np.uint32(self.end)).astype(self.dtype))
            self.tokens += len(ids) + 1
            return
        key = document_hash(text)
        # Like a training sample, a window begins anywhere in its document, not at its title.
        offset = key % (len(ids) % self.window + 1)
        for number in range(len(ids) // self.window):
            begin = offset + number * self.window
            self.windows.append(ids[begin : begin + self.window].astype(self.dtype))
            # A random order that depends on the text alone, so that windows are chosen evenly over documents.
            self.priorities.append(
                int.from_bytes(
                    hashlib.blake2b(key.to_bytes(8, "big") + number.to_bytes(8, "big"), digest_size=8).digest(), "big"
                )
            )

    def finish(self, last: bool) -> dict:
        shard = None
        if self.documents:
            ends = np.cumsum([len(document) for document in self.documents], dtype=np.int64)
            boundaries = self.shard.with_suffix(".docs.npy")
            with files.atomic_path(self.shard) as path, open(path, "wb") as file:
                for document in self.documents:
                    file.write(document.tobytes())
            with files.atomic_path(boundaries) as path, open(path, "wb") as file:
                np.save(file, ends)
            shard = {
                "tokens": files.describe(self.root, self.shard),
                "documents": files.describe(self.root, boundaries),
            }
        held = self.record.with_suffix(".npz")
        with files.atomic_path(held) as path, open(path, "wb") as file:
            np.savez(
                file,
                windows=np.array(self.windows, dtype=self.dtype).reshape(-1, self.window),
                priorities=np.array(self.priorities, dtype=np.uint64),
            )
        record = {
            "documents_read": self.read,
            "train_tokens": self.tokens,
            "train_documents": len(self.documents),
            "shard": shard,
            "held_out": held.name,
            "last": last,
        }
        files.write_json(self.record, record)
        return record


# -------------------------------------------------------------------------------------------------------- validation


def _validation_sets(data: Data, root: Path, parts: dict, dtype: np.dtype, encoder) -> dict:
    """validation/<domain>.bin with [windows, sequence + 1] tokens, and which windows make up which split.

    A domain's file serves two splits: its first windows are its share of iid, and its first `domain_sequences` are the
    split named after it.
    """
    share = _iid_shares(data)
    ood = {}
    if data.ood and data.validation.ood_sequences:
        weights = [source.weight for source in data.ood]
        ood = dict(zip((s.domain for s in data.ood), quotas(weights, data.validation.ood_sequences)))
    sets, splits = {}, collections.defaultdict(lambda: {"sequences": 0, "bytes": 0})
    for source in [*data.sources, *data.ood]:
        domain = source.domain
        windows = _windows(root, domain, parts[domain])
        if domain in ood:
            ranges = {"ood": ood[domain]}
        else:
            own = min(data.validation.domain_sequences, len(windows)) if source.weight > 0 else 0
            ranges = {"iid": share[domain], domain: own}
        needed = max(ranges.values())
        if len(windows) < needed:
            remedy = "add text" if domain in ood else "raise data.validation.fraction, lower data.validation.sequences"
            raise InputError(
                f"source {domain!r}: its held-out documents give {len(windows)} validation sequences of "
                f"{data.sequence + 1} tokens, {needed} are needed; {remedy} or shorten data.sequence"
            )
        if not needed:
            continue
        chosen = windows[:needed]
        path = root / "validation" / f"{domain}.bin"
        files.write_bytes(path, chosen.astype(dtype).tobytes())
        # Bytes of text behind the targets, for bits per byte.
        sizes = [len(encoder.decode(row[1:].tolist(), skip_special_tokens=False).encode()) for row in chosen]
        sets[domain] = {**files.describe(root, path), "sequences": needed, "ranges": ranges}
        for split, count in ranges.items():
            splits[split]["sequences"] += count
            splits[split]["bytes"] += sum(sizes[:count])
    return {"sets": sets, "splits": {name: entry for name, entry in splits.items() if entry["sequences"]}}


def _windows(root: Path, domain: str, parts: list[dict]) -> np.ndarray:
    """All held-out windows of a domain, in the order of their priorities."""
    loaded = [np.load(root / "parts" / domain / part["held_out"]) for part in parts]
    windows = np.concatenate([arrays["windows"] for arrays in loaded])
    priorities = np.concatenate([arrays["priorities"] for arrays in loaded])
    # Twins (a document that is listed twice in a source) share their priority: one of each is enough.
    _, first = np.unique(priorities, return_index=True)
    return windows[first]
