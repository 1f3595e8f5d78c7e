"""Documents of a source, in a fixed order: local files, a hub data set, the embedded sample, or text that plants a skill."""

import glob
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

from emergence_train.data import planted, readers
from emergence_train.data.readers import Bad
from emergence_train.data_config import Data, Source
from emergence_train.errors import InputError, RunError

SAMPLE = Path(__file__).parent / "sample"
LOOKED_AT = 100  # rows, before anything is written
FEW_TEXTS = 32  # text files; a source of fewer is cut, so that some documents can be held out
PIECES = 128  # about as many
SHORTEST_PIECE = 2_000  # characters
PLANTED_DOCUMENTS = 1_000


def sample_domains() -> list[str]:
    """The domains of the embedded sample."""
    return sorted(path.name.removesuffix(".jsonl.xz") for path in SAMPLE.glob("*.jsonl.xz"))


def documents(source: Source, skip: int = 0) -> Iterator[str | Bad]:
    """The source's documents from number `skip` on. Empty and bad ones are yielded too, so that numbers do not shift."""
    if source.planted:
        most = source.limit_documents or PLANTED_DOCUMENTS
        return itertools.islice(planted.documents(_skill(source)), skip, max(most, skip))
    stream = _hub(source, skip) if source.hub else itertools.islice(_files(source), skip, None)
    if source.limit_documents is not None:
        stream = itertools.islice(stream, max(source.limit_documents - skip, 0))
    return stream


def check(source: Source) -> None:
    """Raise InputError where a source is missing, empty, or begins with bad rows only."""
    first = list(itertools.islice(documents(source), LOOKED_AT))
    if not first:
        raise InputError(f"source {source.domain!r} is empty: {source.files or source.hub or source.sample}")
    bad = [row for row in first if isinstance(row, Bad)]
    if len(bad) == len(first):
        remedy = "convert it to UTF-8 first" if readers.NOT_UTF8 in bad[0].problem else "set text_field"
        raise InputError(f"{bad[0].place} {bad[0].problem}, as all of the first {len(first)}; {remedy}")


def listing(source: Source) -> list[list]:
    """[path, size in bytes, time of the last change in ns] of each file of a local source; [] of a hub's. For planted text the
    version of its skill stands for the size.

    The same listing is taken as the same input.
    """
    if source.hub:
        return []
    if source.planted:
        return [[f"planted:{_skill(source)}", planted.VERSIONS.get(_skill(source), 1), 0]]
    if source.sample:
        return [[f"sample:{source.sample}", paths(source)[0].stat().st_size, 0]]
    return [[str(path), (status := _stat(path)).st_size, status.st_mtime_ns] for path in paths(source)]


def check_overlap(data: Data) -> None:
    """Raise InputError where two domains take the same text: what is held out of one would be trained on in the other. And
    where a pattern takes what prepare itself has written."""
    owners: dict[tuple, str] = {}
    for source in [*data.sources, *data.ood]:
        if source.planted and owners.setdefault((source.planted,), source.domain) != source.domain:
            raise InputError(
                f"the skill {source.planted!r} is planted in the domains {owners[(source.planted,)]!r} and "
                f"{source.domain!r}; give it to one of them"
            )
        for path in [] if source.hub or source.planted else paths(source):
            field = "" if readers.is_text(path) else source.text_field
            if Path(data.path).resolve() in path.resolve().parents:
                raise InputError(f"{path}: lies in data.path; choose another data.path, or write a pattern without it")
            owner = owners.setdefault((_identity(path), field), source.domain)
            if owner != source.domain:
                raise InputError(f"{path}: is in the domains {owner!r} and {source.domain!r}; give it to one of them")


def paths(source: Source) -> list[Path]:
    """The files of a local source, globs expanded, in sorted order by pattern, each once.

    Raises:
        InputError: a pattern matches nothing, or something that is neither file nor directory: a link to what is gone, a pipe.
    """
    if source.sample:
        path = SAMPLE / f"{source.sample}.jsonl.xz"
        if not path.is_file():
            raise InputError(
                f"source {source.domain!r}: the sample has no domain {source.sample!r}; "
                f"it has {', '.join(sample_domains())}"
            )
        return [path]
    files: dict[tuple, Path] = {}  # by what they are: patterns may overlap, and links name a file twice
    for pattern in source.files or ():
        # A name may look like a pattern: "part[1].jsonl".
        matches = [pattern] if os.path.lexists(pattern) else sorted(glob.glob(pattern, recursive=True))
        if not matches:
            raise InputError(f"source {source.domain!r}: no file matches {pattern!r}")
        for match in map(Path, matches):
            if match.is_file():
                files.setdefault(_identity(match), match)
            elif not match.is_dir():
                problem = (
                    f"is a link to {os.readlink(match)}, which cannot be found" if match.is_symlink() else "is no file"
                )
                raise InputError(f"{match}: {problem}; restore or remove it, or write a pattern without it")
    if not files:
        raise InputError(f"source {source.domain!r}: {source.files} are directories; write a glob such as dir/*.txt")
    return list(files.values())


def _skill(source: Source) -> str:
    """The name of the planted skill, checked."""
    if source.planted not in planted.SKILLS:
        raise InputError(
            f"source {source.domain!r}: no skill is called {source.planted!r}; there are {', '.join(planted.SKILLS)}"
        )
    return source.planted


def _identity(path: Path) -> tuple:
    """What a file is, whatever it is called: links of both kinds share it. Some mounts give every file the inode number 0, and
    unions of mounts may give one to two: their sizes and times tell them apart."""
    status = _stat(path)
    if not status.st_ino:
        return (path.resolve(),)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _stat(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None


def piece_length(source: Source, files: list[Path]) -> int:
    """Characters above which a text file of the source becomes several documents.

    Without a limit a corpus of a few files would be a few documents, and none could be held out.
    """
    if source.document_characters is not None:
        return min(source.document_characters, readers.LONGEST)
    if len(files) >= FEW_TEXTS or not all(map(readers.is_text, files)):
        return readers.LONGEST
    size = sum(path.stat().st_size for path in files)
    return min(max(size // PIECES, SHORTEST_PIECE), readers.LONGEST)


def _files(source: Source) -> Iterator[str | Bad]:
    files = paths(source)
    longest = piece_length(source, files)
    for path in files:
        yield from readers.rows(path, source.text_field, longest)


def _hub(source: Source, skip: int) -> Iterator[str | Bad]:
    """Stream a hub data set; the library's exceptions become InputErrors of one line."""
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
    for number in itertools.count(skip + 1):
        try:
            row = next(rows)
        except StopIteration:
            return
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            raise RunError(
                f"source {source.domain!r}: the stream of {source.hub!r} broke off: {reason}; run prepare again, "
                f"it resumes after the last finished shard"
            ) from None
        yield readers.text_of(row, source.text_field, f"{source.hub}: row {number} (it has {', '.join(row)})")
