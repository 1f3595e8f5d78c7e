"""Read the rows of a text, JSON Lines, CSV or Parquet file: the text of each, or its problem and place.

Text is UTF-8; a byte order mark is skipped. A row without usable text is a Bad, so that callers can count, skip and name it.
A file that is unreadable as a whole (damaged compression, a missing column) raises InputError.
"""

import bz2
import csv
import gzip
import io
import itertools
import json
import lzma
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from emergence_train.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa

BOM = b"\xef\xbb\xbf"
OTHER_BOMS = (b"\xff\xfe", b"\xfe\xff")
NOT_UTF8 = "not UTF-8"
CHUNK = 1 << 20  # bytes of a text file at a time
LONGEST = 1_000_000  # characters of a document: a tokenizer needs some hundred times its memory
SUFFIXES = ".txt, .md, .jsonl, .ndjson, .csv, .tsv, .parquet (all but the last also .gz, .bz2, .xz, .zst)"


class Bad(NamedTuple):
    """A row without usable text: its problem and its place (file, line or row, column)."""

    problem: str
    place: str


def rows(path: Path, field: str, longest: int = LONGEST) -> Iterator[str | Bad]:
    """The texts of a file in order. `field`: the key or column that holds them, dotted for nested ones.

    A text of more than `longest` characters (in a text file) or LONGEST (elsewhere) becomes several documents, cut at blank
    lines if possible, else at line ends, spaces, or anywhere.

    Raises:
        InputError: the file cannot be read, has no such column, or has an unknown suffix.
    """
    kind = Path(path.stem).suffix if path.suffix in OPENERS else path.suffix
    if kind not in KINDS and kind not in TEXTS:
        raise InputError(f"{path}: unknown kind of file; use {SUFFIXES}")
    try:
        if kind in TEXTS:
            yield from _text(path, longest)
            return
        for text in KINDS[kind](path, field):
            if isinstance(text, str) and len(text) > LONGEST:
                yield from pieces(iter([text]), LONGEST)
            else:
                yield text
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read: {' '.join(str(error).split())}") from None


def is_text(path: Path) -> bool:
    """Whether the whole file is one document, not rows."""
    return (Path(path.stem).suffix if path.suffix in OPENERS else path.suffix) in TEXTS


# ------------------------------------------------------------------------------------------------------------- opening


def _open_zstd(path: Path) -> IO[bytes]:
    import pyarrow as pa

    return io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(open(path, "rb")), "zstd"), CHUNK)


OPENERS: dict[str, Callable] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".zst": _open_zstd}


def _open(path: Path) -> IO[bytes]:
    """Open for reading bytes, decompressed, after a UTF-8 byte order mark."""
    opener = OPENERS.get(path.suffix)
    if opener and not path.stat().st_size:
        raise InputError(f"{path}: cannot be read: it is empty, which no compressed file is; it was cut off")
    file = opener(path) if opener else open(path, "rb")  # noqa: SIM115 - the caller closes it
    buffered = file if hasattr(file, "peek") else io.BufferedReader(file)
    start = buffered.peek(1 << 12)[: 1 << 12]
    # Half of Latin letters' bytes in UTF-16 are zeros, of Cyrillic text those of its blanks; in UTF-8 a few are text.
    if start.startswith(OTHER_BOMS) or start.count(0) > max(3, len(start) // 50):
        raise InputError(f"{path}: is not UTF-8 but UTF-16 or UTF-32, by its first bytes; convert it first")
    if start.startswith(BOM):
        buffered.read(len(BOM))
    return buffered


# ------------------------------------------------------------------------------------------------------------- kinds


def _json_lines(path: Path, field: str) -> Iterator[str | Bad]:
    with _open(path) as file:
        lines = ((number, line) for number, line in enumerate(file, 1) if not line.isspace())
        for before, (number, line) in enumerate(lines):
            place = f"{path}: line {number}"
            try:
                row = json.loads(line.decode("utf-8"))
            except UnicodeDecodeError as error:
                yield Bad(f"is {NOT_UTF8} (byte {error.start + 1} of the line)", place)
                continue
            except (ValueError, RecursionError) as error:
                if not before and line.lstrip().startswith(b"["):
                    raise InputError(f"{path}: is a JSON array; write one object a line (.jsonl)") from None
                yield Bad(f"is not JSON ({' '.join(str(error).split())[:80]})", place)
                continue
            if isinstance(row, list) and not before:
                raise InputError(f"{path}: is a JSON array; write one object a line (.jsonl)")
            yield text_of(row, field, place)


def _csv(path: Path, field: str) -> Iterator[str | Bad]:
    csv.field_size_limit(2**31 - 1)
    tabs = path.name.removesuffix(path.suffix if path.suffix in OPENERS else "").endswith(".tsv")
    with _open(path) as file, io.TextIOWrapper(file, "utf-8", errors="surrogateescape", newline="") as lines:
        table = csv.reader(lines, delimiter="\t" if tabs else ",", strict=True)
        try:
            header = next(filter(None, table), None)
            if header is None:
                return
            if field not in header:
                raise InputError(f"{path}: no column {field!r} (it has {', '.join(header)[:200]}); set text_field")
            column = header.index(field)
            for row in table:
                if row:
                    text = row[column] if column < len(row) else None
                    yield _checked(text, f"in column {field!r}", f"{path}: line {table.line_num}")
        except csv.Error as error:
            raise InputError(f"{path}: line {table.line_num} is not CSV ({error}); fix its quotes") from None


def _parquet(path: Path, field: str) -> Iterator[str | Bad]:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    number = 0
    try:
        with open(path, "rb") as opened, pq.ParquetFile(opened) as file:
            keys = [field] if field in file.schema_arrow.names else field.split(".")
            kind = _arrow_kind(path, file.schema_arrow, field, keys)
            groups = range(file.num_row_groups)  # one by one: pyarrow cannot read nested dictionaries across them
            columns = [".".join(keys)]
            for batch in (b for n in groups for b in file.iter_batches(256, row_groups=[n], columns=columns)):
                column = batch.column(keys[0])
                for key in keys[1:]:
                    column = pc.struct_field(column, key)
                if pa.types.is_dictionary(kind):
                    column = column.cast(kind.value_type)
                # Invalid UTF-8 makes one row bad, not the file, so rows are decoded one by one.
                column = column.cast(pa.large_binary())
                for value in column.to_pylist():
                    number += 1
                    yield _checked(value, f"in column {field!r}", f"{path}: row {number}")
    except pa.ArrowException as error:
        raise InputError(f"{path}: cannot be read as Parquet: {' '.join(str(error).split())}") from None


def _arrow_kind(path: Path, schema: "pa.Schema", field: str, keys: list[str]) -> "pa.DataType":
    """The type of the column, which must be text or bytes."""
    import pyarrow as pa

    kind = pa.struct(list(schema))
    for key in keys:
        if not pa.types.is_struct(kind) or kind.get_field_index(key) < 0:
            raise InputError(f"{path}: no column {field!r} (it has {', '.join(schema.names)[:200]}); set text_field")
        kind = kind.field(key).type
    inner = kind.value_type if pa.types.is_dictionary(kind) else kind
    checks = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    if not any(check(inner) for check in (*checks, pa.types.is_string_view, pa.types.is_null)):
        raise InputError(f"{path}: column {field!r} holds {kind}, not text; set text_field")
    return kind


def _text(path: Path, longest: int) -> Iterator[str | Bad]:
    """The file as one document, or in pieces, up to the first byte that is not UTF-8."""
    wrong: list[Bad] = []

    def decoded(file: IO[bytes]) -> Iterator[str]:
        done, lines, rest = 0, 1, b""
        newlines = io.IncrementalNewlineDecoder(None, translate=True)
        for chunk in itertools.chain([start], iter(lambda: file.read(CHUNK), b"")):
            data = rest + chunk
            try:
                text, rest = data.decode("utf-8"), b""
            except UnicodeDecodeError as error:
                if error.end < len(data) or "unexpected end" not in error.reason:
                    where = f"{path}: line {lines + data[: error.start].count(10)}, byte {done + error.start + 1}"
                    wrong.append(Bad(f"is {NOT_UTF8} ({error.reason})", where))
                    return
                text, rest = data[: error.start].decode("utf-8"), data[error.start :]
            done, lines = done + len(data) - len(rest), lines + text.count("\n")
            yield newlines.decode(text)
        yield newlines.decode("", final=True)
        if rest:
            wrong.append(Bad(f"is {NOT_UTF8} (it ends within a character)", f"{path}: byte {done + 1}"))

    with _open(path) as file:
        start = file.read(CHUNK)
        texts: Iterable[str] = pieces(decoded(file), longest)
        if len(start) < CHUNK:  # small: where it is wrong anywhere, all of it is doubtful
            texts = list(texts)
            texts = [] if wrong else texts
        yield from texts
        yield from wrong


KINDS = {
    **dict.fromkeys((".jsonl", ".ndjson", ".json"), _json_lines),
    **dict.fromkeys((".csv", ".tsv"), _csv),
    ".parquet": _parquet,
}
TEXTS = (".txt", ".md", ".text")


# ------------------------------------------------------------------------------------------------------------- parts


def text_of(row: Any, field: str, place: str) -> str | Bad:
    """The text of a row, a dict."""
    return _checked(_field(row, field), f"under {field!r}", place)


def _field(row: Any, field: str) -> Any:
    """The value under a key, or under a dotted path of keys; None where there is none."""
    if isinstance(row, dict) and field in row:
        return row[field]
    for key in field.split("."):
        if not isinstance(row, dict) or key not in row:
            return None
        row = row[key]
    return row


def _checked(value: Any, where: str, place: str) -> str | Bad:
    """The value as text, or its problem."""
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError as error:
            return Bad(f"is {NOT_UTF8} {where} (byte {error.start + 1})", place)
    if not isinstance(value, str):
        return Bad(f"has no text {where}" + ("" if value is None else f" but {type(value).__name__}"), place)
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            surrogate = ord(value[error.start])
            kind = f"bytes that are {NOT_UTF8}" if 0xDC80 <= surrogate <= 0xDCFF else "a lone surrogate"
            return Bad(f"has {kind} {where} (character {error.start + 1})", place)
    return value


_CUTS = (re.compile(r"\n[ \t\r]*\n\s*"), re.compile(r"\n"), re.compile(r"\s"))


def pieces(chunks: Iterator[str], longest: int) -> Iterator[str]:
    """The concatenation of `chunks` in pieces of at most `longest` characters.

    Each is cut at the last blank line of its second half, else at the last line end or space there, else at `longest`. Joined,
    the pieces are the input.
    """
    held = ""
    for chunk in chunks:
        held, begin = held + chunk, 0
        while len(held) - begin > longest:
            end = _cut(held, begin, longest)
            yield held[begin:end]
            begin = end
        held = held[begin:]  # once a chunk: a row of a gigabyte is one
    if held:
        yield held


def _cut(text: str, begin: int, longest: int) -> int:
    """Where the piece from `begin` ends."""
    for pattern in _CUTS:
        if ends := [match.end() for match in pattern.finditer(text, begin + longest // 2, begin + longest)]:
            return ends[-1]
    return begin + longest
