"""`emergence-train prepare`: sources to tokenizer, shards and validation sets.

The work is done in parts: one shard with its held-out windows and a record of the rows read. The record is written last, so a
restart resumes after the last finished part, over the same files: recipe.json lists them by path, size and modification time.
dataset.json, the index, is written last of all: a directory without it is not a data set, and remains of another recipe or of
other files are replaced.
"""

import collections
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from emergence_train import files
from emergence_train.data import held_out, shards, sources, tokenizer
from emergence_train.data import recipe as recipes
from emergence_train.data.parts import PartReader, tokenize_source
from emergence_train.data.readers import Bad
from emergence_train.data.sampling import quotas
from emergence_train.data.tokenizing import Workers, document_hash, is_held_out
from emergence_train.data_config import Data, Source
from emergence_train.errors import InputError, RunError

BYTES_A_TOKEN = 2.0  # a low estimate, for the check of free space
MOST_HELD_OUT = 0.5  # of a source too small for any validation sequence at data.validation.fraction
ALL_HELD_OUT = 1 - 1e-9  # where nothing is trained
OURS = (recipes.FILE, "tokenizer.json", "verified.json", "parts", "train", "validation")
PROGRESS_SECONDS = 5.0


def prepare(data: Data, log: Callable[[str], None] = print, *, trained: bool = True) -> Path:
    """Prepare `data.path` and return it; does nothing where it was prepared from the same configuration and files.

    `trained`: every source needs text for training too, and not for validation alone.
    """
    root = Path(data.path)
    if root.exists() and not root.is_dir():
        raise InputError(f"{root}: is a file; data.path must be a directory, or not exist")
    recipe = _recipe(data)
    if (root / "dataset.json").is_file():
        note = _compare_finished(root, recipe, data)
        shutil.rmtree(root / "parts", ignore_errors=True)  # of a try that was killed as it had finished
        log(f"{root}: already prepared from this configuration{note}")
        return root
    sources.check_overlap(data)
    for source in [*data.sources, *data.ood]:
        sources.check(source)
    made_from = _made_from(data)
    _check_space(data, root)
    with files.lock(root, busy="another process is preparing it; wait for it", other="data.path") as no_locks:
        if no_locks:
            log(no_locks)
        if (root / "dataset.json").is_file():  # since the look above: another process was at it
            return root
        if recipes.read(root) != recipes.known(recipe) | {"made_from": made_from}:
            _clear(root)
            files.write_json(root / recipes.FILE, recipe | {"made_from": made_from})
            sources.check_overlap(data)  # now that there is something of ours that a pattern could take
        _sweep(root)
        return _prepare(data, root, made_from, log, trained)


def _prepare(data: Data, root: Path, made_from: dict, log: Callable[[str], None], trained: bool) -> Path:
    encoder = _tokenizer(data, root, log)
    end = tokenizer.end_of_text(encoder, data.tokenizer.end_of_text)
    dtype = shards.token_dtype(tokenizer.size(encoder))
    needed = _needed(data)
    parts = {}
    with Workers(data.workers, root / "tokenizer.json") as workers:
        for source in [*data.sources, *data.ood]:
            fraction = 1.0 if source in data.ood else data.validation.fraction
            reader = PartReader(data, source, root, dtype, end, needed[source.domain], fraction)
            most = MOST_HELD_OUT if trained else ALL_HELD_OUT
            parts[source.domain] = _enough_held_out(data, reader, workers, most, log)
    if trained:
        _check_lengths(data, parts)
    index: dict[str, Any] = {
        "format": 1,
        "sequence": data.sequence,
        "dtype": dtype.str,
        "tokenizer": {
            **files.describe(root, root / "tokenizer.json"),
            "vocabulary": tokenizer.size(encoder),
            "fingerprint": tokenizer.fingerprint(root / "tokenizer.json"),
            "end_of_text": end,
        },
        "domains": {source.domain: _domain(source, parts[source.domain]) for source in data.sources},
        "validation": _validation_sets(data, root, parts, dtype, end, log),
    }
    if not trained:
        index["trained"] = False
    _check_unchanged(made_from, _made_from(data), root)
    files.write_json(root / "dataset.json", index)
    shutil.rmtree(root / "parts", ignore_errors=True)
    for domain, entry in index["domains"].items():
        unknown = entry["unknown_tokens"] / max(entry["tokens"], 1)
        tell = f", {unknown:.1%} of them unknown to the tokenizer" if entry["unknown_tokens"] else ""
        log(f"{domain}: {entry['tokens']:,} tokens in {entry['documents']:,} documents{tell}")
    log(
        f"{root}: ready, vocabulary {tokenizer.size(encoder):,}, validation "
        + ", ".join(
            f"{name} {entry['sequences']} (of {entry['documents']} documents)"
            for name, entry in index["validation"]["splits"].items()
        )
    )
    return root


def _domain(source: Source, parts: list[dict]) -> dict:
    return {
        "weight": source.weight,
        "tokens": sum(part["train_tokens"] for part in parts),
        "documents": sum(part["train_documents"] for part in parts),
        "unknown_tokens": sum(part["unknown_tokens"] for part in parts),
        "rows_left_out": sum(part["bad_rows"] for part in parts),
        "shards": [part["shard"] for part in parts if part["shard"]],
    }


# ------------------------------------------------------------------------------------------------------------ checks


def _recipe(data: Data) -> dict:
    """What determines the prepared bytes."""
    return recipes.of_texts(data) | {"iid_shares": _iid_shares(data), "ood_shares": _ood_shares(data)}


def _made_from(data: Data) -> dict:
    """The files that are read, by domain; and the tokenizer's."""
    listed = {source.domain: sources.listing(source) for source in [*data.sources, *data.ood]}
    given = tokenizer.find(data.tokenizer.file) if data.tokenizer.file else None
    return {"files": listed, "tokenizer": files.sha256(given) if given else ""}


def _check_unchanged(before: dict, now: dict, root: Path) -> None:
    """Raise InputError where an input was written while it was read: what was read of it is neither the old nor the new."""
    if before == now:
        return
    rows = [{tuple(row) for listed in made_from["files"].values() for row in listed} for made_from in (before, now)]
    changed = min(rows[0] ^ rows[1], default=("the tokenizer",))[0]
    raise InputError(f"{changed}: has changed while {root} was prepared from it; prepare again, which begins anew")


def _compare_finished(root: Path, recipe: dict, data: Data) -> str:
    """Raise InputError where the finished data set has another recipe or other files; return a note for the log."""
    finished = recipes.read(root)
    if finished is None or "made_from" not in finished:
        raise InputError(f"{root / recipes.FILE}: cannot be read; delete {root} and prepare again")
    before, wanted = finished.pop("made_from"), recipes.known(recipe)
    if finished != wanted:
        changed = next((key for key in wanted if finished.get(key) != wanted[key]), "data")
        changed = {"iid_shares": "sources (their weights)", "ood_shares": "ood (their weights)"}.get(changed, changed)
        raise InputError(f"{root}: was prepared with another data.{changed}; choose another data.path or delete it")
    try:
        now = _made_from(data)
    except InputError:
        return "; some of its source files no longer exist"
    touched = 0
    for domain, listed in before["files"].items():
        there = {path: size for path, size, _ in now["files"].get(domain, [])}
        known = {path for path, _, _ in listed}
        for path, size, _ in listed:
            if path in there and there[path] != size:
                raise InputError(
                    f"{path}: has {there[path]:,} bytes, and had {size:,} when {root} was prepared from it; choose another "
                    f"data.path or delete it"
                )
        if new := sorted(there.keys() - known):
            raise InputError(f"{new[0]}: did not exist when {root} was prepared; choose another data.path or delete it")
        touched += sum(row not in now["files"].get(domain, []) for row in listed)
    if before["tokenizer"] != now["tokenizer"]:
        raise InputError(
            f"{data.tokenizer.file}: is not the tokenizer of {root}; choose another data.path or delete it"
        )
    return f"; {touched} source files were deleted, or rewritten at the same size" if touched else ""


def _clear(root: Path) -> None:
    """Remove an unfinished data set."""
    for path in (root / name for name in OURS):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _sweep(root: Path) -> None:
    """Take away the temporary files of writes that a kill has cut off."""
    for name in (*OURS, "dataset.json"):
        for rest in [*root.glob(f".{name}.*.tmp"), *(root / name).rglob(".*.tmp")]:
            rest.unlink()


def _check_space(data: Data, root: Path) -> None:
    """Raise RunError where the shards of the local sources would not fit; sizes of hub data sets are unknown."""
    text = sum(size for source in [*data.sources, *data.ood] for _, size, _ in sources.listing(source))
    place = root
    while not place.exists():
        place = place.parent
    needed, free = int(text / BYTES_A_TOKEN * 2), shutil.disk_usage(place).free
    if free < needed:
        raise RunError(
            f"{place}: {free / 1e6:,.1f} MB free, about {needed / 1e6:,.1f} MB needed for the shards; "
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


# --------------------------------------------------------------------------------------------------------- tokenizer


def _tokenizer(data: Data, root: Path, log: Callable[[str], None]) -> Tokenizer:
    path = root / "tokenizer.json"
    if path.is_file():
        return tokenizer.load_file(path)
    wanted = data.tokenizer
    if wanted.file:
        encoder = tokenizer.load_file(wanted.file, wanted.end_of_text)
    elif wanted.hub:
        encoder = tokenizer.load_hub(wanted.hub, wanted.end_of_text)
    else:
        assert wanted.vocab_size, "config.Tokenizer has exactly one of the three"
        began = time.monotonic()
        encoder = tokenizer.train(_training_texts(data, log), wanted.vocab_size)
        log(f"tokenizer: {tokenizer.size(encoder):,} tokens trained in {time.monotonic() - began:.0f} s")
    tokenizer.end_of_text(encoder, wanted.end_of_text)
    files.write_bytes(path, encoder.to_str().encode())
    return encoder


def _training_texts(data: Data, log: Callable[[str], None]) -> Iterator[str]:
    """Training documents of all domains, each up to its share of `train_bytes`; no held-out ones."""
    total = sum(source.weight for source in data.sources)
    shown, read = time.monotonic(), 0
    for source in data.sources:
        budget = data.tokenizer.train_bytes * source.weight / total
        for text in sources.documents(source):
            if budget <= 0:
                break
            if isinstance(text, Bad) or is_held_out(document_hash(text), data.validation.fraction):
                continue
            size = len(text.encode())
            budget, read = budget - size, read + size
            yield text
            if time.monotonic() - shown > PROGRESS_SECONDS:
                shown = time.monotonic()
                log(
                    f"tokenizer: counting words, {read / 1e6:,.0f} MB of at most {data.tokenizer.train_bytes / 1e6:,.0f}"
                )
    if read > 1e7:
        log(f"tokenizer: learning merges from {read / 1e6:,.0f} MB")


# -------------------------------------------------------------------------------------------------------- validation


def _iid_shares(data: Data) -> dict[str, int]:
    """Sequences of each domain in the iid set."""
    weights = [source.weight if source.in_iid else 0.0 for source in data.sources]
    return dict(zip((s.domain for s in data.sources), _shares(weights, data.validation.sequences, "sequences")))


def _ood_shares(data: Data) -> dict[str, int]:
    """Sequences of each domain in the ood set."""
    if not data.ood or not data.validation.ood_sequences:
        return {}
    weights = [source.weight for source in data.ood]
    return dict(zip((s.domain for s in data.ood), _shares(weights, data.validation.ood_sequences, "ood_sequences")))


def _shares(weights: list[float], total: int, key: str) -> list[int]:
    try:
        return quotas(weights, total)
    except InputError:
        enough = next((n for n in range(total + 1, 1 << 16) if _works(weights, n)), None)
        if enough is None:
            raise
        raise InputError(
            f"data.validation.{key} is {total}, too few to hold a sequence of each domain by its weight; "
            f"raise it to {enough}"
        ) from None


def _works(weights: list[float], total: int) -> bool:
    try:
        return bool(quotas(weights, total))
    except InputError:
        return False


def _needed(data: Data) -> dict[str, int]:
    """Windows that each domain's validation sets need at most."""
    iid = _iid_shares(data)
    needed = {source.domain: max(iid[source.domain], _own(data, source)) for source in data.sources}
    return needed | {source.domain: _ood_shares(data).get(source.domain, 0) for source in data.ood}


def _own(data: Data, source: Source) -> int:
    """Sequences wanted in the domain's own set."""
    own = data.validation.domain_sequences if source.own_sequences is None else source.own_sequences
    return own if source.weight > 0 else 0


def _enough_held_out(
    data: Data, reader: PartReader, workers: Workers, most: float, log: Callable[[str], None]
) -> list[dict]:
    """The source's parts, with a larger held-out fraction, up to `most`, where it is too small for any validation window."""
    parts = tokenize_source(reader, workers, log)
    while not reader.windows(parts) and len(parts) == 1 and reader.most and reader.fraction < most:
        reader.restart(min(4 * reader.fraction, most))
        parts = tokenize_source(reader, workers, log)
        if reader.windows(parts):
            log(
                f"{reader.source.domain}: {reader.fraction:.0%} of its documents are held out, not "
                f"{data.validation.fraction:.0%}: the source is too small for a validation set otherwise"
            )
    return parts


def _validation_sets(
    data: Data, root: Path, parts: dict, dtype: np.dtype, end: int, log: Callable[[str], None]
) -> dict:
    """Write validation/<domain>.bin, [windows, sequence + 1] tokens, and return the ranges of windows of each split.

    A domain's file serves two splits: its first windows are its share of iid, and its first `domain_sequences` are the split
    named after it. Where a domain has fewer than its share, the split is smaller.
    """
    iid, ood, needed = _iid_shares(data), _ood_shares(data), _needed(data)
    sets: dict[str, dict] = {}
    splits: dict = collections.defaultdict(lambda: {"sequences": 0, "bytes": 0, "documents": 0})
    for source in [*data.sources, *data.ood]:
        domain = source.domain
        if not needed[domain]:
            continue
        arrays = [held_out.read(root / "parts" / domain / part["held_out"]) for part in parts[domain]]
        windows = held_out.choose(arrays, needed[domain], data.sequence + 1, end)
        has = len(windows)
        own = min(_own(data, source), has)
        ranges = {"ood": min(ood[domain], has)} if domain in ood else {"iid": min(iid[domain], has), domain: own}
        wanted = ood.get(domain, iid.get(domain, 0))
        if has < wanted:
            log(
                f"{domain}: has {has} validation sequences for its share of {wanted}, so its part of the "
                f"{'ood' if domain in ood else 'iid'} set is smaller; add text or raise data.validation.fraction for more"
            )
        if not has:
            continue
        _, counts = np.unique(windows.documents, return_counts=True)
        if has >= 4 and counts.max() > has / 2:
            log(f"{domain}: {counts.max()} of its {has} validation sequences come from one document")
        path = root / "validation" / f"{domain}.bin"
        files.write_bytes(path, windows.tokens.astype(dtype).tobytes())
        sets[domain] = {**files.describe(root, path), "sequences": has, "ranges": ranges}
        for split, count in ranges.items():
            splits[split]["sequences"] += count
            splits[split]["bytes"] += int(windows.text_bytes[:count].sum())
            splits[split]["documents"] += len(np.unique(windows.documents[:count]))
    if not splits["iid"]["sequences"]:
        raise InputError(
            f"no source with a weight above 0 has {data.sequence + 1} tokens of held-out text, for one "
            f"validation sequence; add text or shorten data.sequence"
        )
    return {"sets": sets, "splits": {name: entry for name, entry in splits.items() if entry["sequences"]}}
