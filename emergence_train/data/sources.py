"""Documents of a source, in a fixed order: local files, a hub data set, or the embedded sample."""

import glob
import gzip
import itertools
import json
import lzma
from collections.abc import Iterator
from pathlib import Path

from emergence_train.config import Source
from emergence_train.errors import InputError, RunError

SAMPLE = Path(__file__).parent / "sample"


def sample_domains() -> list[str]:
    """The domains of the embedded sample."""
    return sorted(path.name.removesuffix(".jsonl.xz") for path in SAMPLE.glob("*.jsonl.xz"))


def documents(source: Source, skip: int = 0) -> Iterator[str]:
    """The source's documents from number `skip` on. Empty ones are passed through, so that numbers stay put."""
    if source.hub:
        stream = _hub(source, skip)
    else:
        stream = itertools.islice(_files(source), skip, None)
    if source.limit_documents is not None:
        stream = itertools.islice(stream, max(source.limit_documents - skip, 0))
    return stream


def check(source: Source) -> None:
    """Raise InputError where a source is missing or empty, before anything is written."""
    if next(documents(source), None) is None:
        raise InputError(f"source {source.domain!r} is empty: {source.files or source.hub or source.sample}")


def _files(source: Source) -> Iterator[str]:
    for path in paths(source):
        name = path.name.removesuffix(".gz").removesuffix(".xz")
        if name.endswith((".jsonl", ".json")):
            yield from _json_lines(path, source.text_field)
        elif name.endswith(".parquet"):
            yield from _parquet(path, source.text_field)
        elif name.endswith((".txt", ".md", ".text")):
            yield _read_text(path)
        else:
            raise InputError(f"{path}: unknown kind of file; use .txt, .md, .jsonl (also .gz, .xz) or .parquet")


def paths(source: Source) -> list[Path]:
    """The files of a local source, globs expanded, in sorted order."""
    if source.sample:
        path = SAMPLE / f"{source.sample}.jsonl.xz"
        if not path.is_file():
            raise InputError(
                f"source {source.domain!r}: the sample has no domain {source.sample!r}; "
                f"it has {', '.join(sample_domains())}"
            )
        return [path]
    found = []
    for pattern in source.files:
        matches = sorted(glob.glob(pattern, recursive=True))
        if not matches:
            raise InputError(f"source {source.domain!r}: no file matches {pattern!r}")
        found += [Path(match) for match in matches if Path(match).is_file()]
    if not found:
        raise InputError(f"source {source.domain!r}: {source.files} are directories; write a glob such as dir/*.txt")
    return found


def _open(path: Path):
    opener = {".gz": gzip.open, ".xz": lzma.open}.get(path.suffix, open)
    return opener(path, "rt", encoding="utf-8")


def _read_text(path: Path) -> str:
    try:
        with _open(path) as file:
            return file.read()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); convert it first") from None
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None


def _json_lines(path: Path, field: str) -> Iterator[str]:
    try:
        with _open(path) as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise InputError(f"{path}: line {number} is not JSON: {error}") from None
                if not isinstance(row, dict) or not isinstance(row.get(field), str):
                    raise InputError(f"{path}: line {number} has no text under {field!r}; set text_field")
                yield row[field]
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); convert it first") from None
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None


def _parquet(path: Path, field: str) -> Iterator[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        if field not in file.schema_arrow.names:
            raise InputError(
                f"{path}: no column {field!r} (it has {', '.join(file.schema_arrow.names)}); set text_field"
            )
        for batch in file.iter_batches(batch_size=1024, columns=[field]):
            for text in batch.column(0).to_pylist():
                yield text or ""
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path}: cannot be read as Parquet: {' '.join(str(error).split())}") from None


def _hub(source: Source, skip: int) -> Iterator[str]:
    """A streamed hub data set. The library's many exceptions become one line each."""
    try:
        import datasets
    except ImportError:
        raise InputError(f"source {source.domain!r} is a hub data set: pip install 'emergence-train[hub]'") from None
    try:
        stream = datasets.load_dataset(source.hub, source.subset, split=source.hub_split, streaming=True)
        rows = iter(stream.skip(skip) if skip else stream)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"source {source.domain!r}: hub data set {source.hub!r} cannot be opened: {reason}") from None
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            raise RunError(
                f"source {source.domain!r}: the stream of {source.hub!r} broke off: {reason}; run prepare again, "
                f"it resumes from the last finished shard"
            ) from None
        if not isinstance(row.get(source.text_field), str):
            raise InputError(
                f"source {source.domain!r}: {source.hub!r} has no text under {source.text_field!r} "
                f"(it has {', '.join(row)}); set text_field"
            )
        yield row[source.text_field]
