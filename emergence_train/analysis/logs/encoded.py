"""The text of a file however it lies there: compressed (by its first bytes, not its name), with a byte order mark, in UTF-16."""

import itertools
import lzma
import re
from pathlib import Path
from typing import IO

import pyarrow as pa

from emergence_train.errors import InputError
from emergence_train.input_files import regular

COMPRESSED = (".gz", ".bz2", ".zst", ".xz", ".lz4")
# What a compressed file begins with, and pyarrow's name for it
MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\x28\xb5\x2f\xfd": "zstd", b"\x04\x22\x4d\x18": "lz4"}
XZ = b"\xfd7zXZ\x00"
ARCHIVES = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0", b"Rar!", b"7z\xbc\xaf")  # zip (.xlsx, .ods too), .xls, .rar, .7z
DIGITS = re.compile(r"\d+")
COMPARED, LEAST = 500, 3  # lines that a last one without its end is compared with, and how many of them must differ
MOST_RISES = 0.9  # of the lines of a count; some come again where a run was resumed
SEPARATORS = (",", ";", "|")
SHOWN = 60  # characters of a line in a note
COLOUR = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")  # and other codes of terminals
UTF16 = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}


def suffix_of(path: Path) -> str:
    """The kind of a file by its name: .csv of log.csv, LOG.CSV and log.csv.gz."""
    return _inner(path).suffix.lower()


def stem_of(path: Path) -> str:
    """Its name without the kind: log of log.csv.gz."""
    return _inner(path).stem


def text_of(path: Path, length: int | None = None, errors: str = "strict") -> str:
    """The text, or that of its first `length` bytes; what is not UTF-8 is taken as Windows' western encoding.

    Raises OSError, also for what can be read but once, UnicodeDecodeError for bytes that are no text with errors="strict", and
    InputError for an archive or nothing.
    """
    with open(regular(path), "rb") as file:
        head = file.read(8)
    if not head:
        raise InputError(f"{path}: is empty; name a file that has rows")
    if head.startswith(ARCHIVES):
        raise InputError(f"{path}: is an archive or a workbook; unpack it, or save it as CSV")
    try:
        with _opened(path, head) as stream:
            data = stream.read() if length is None else stream.read(length)
    except (pa.ArrowException, lzma.LZMAError, EOFError) as error:
        raise OSError(str(error)) from error
    return _decoded(data, errors)


def without_cut_line(text: str) -> tuple[str, tuple[str, ...]]:
    """-> (text without a last line that has no end and is not whole, as of a log that is being written; what to say of it).

    One that begins as others do, and stops, is not whole; nor is one whose last number has fewer decimals where all others
    have equally many, or fewer digits where it is a count that rises. Other numbers may well be shorter.
    """
    begin = max(text.rfind("\n"), text.rfind("\r")) + 1
    last = text[begin:]
    if not begin or not last.strip() or _is_whole(last, text[:begin].splitlines()[-COMPARED:]):
        return text, ()
    return text[:begin], (f"left out: a last line without an end that seems to be cut off, {last.strip()[:SHOWN]!r}",)


def _is_whole(last: str, before: list[str]) -> bool:
    form = _form(last)
    if form.endswith(SEPARATORS):
        return True  # whose last cell is empty
    alike = [line for line in before if _form(line) == form]
    if not alike:
        return sum(_form(line).startswith(form) for line in before) < LEAST
    if len(alike) < LEAST or not form.endswith("0"):
        return True
    ends = [DIGITS.findall(line)[-1] for line in alike]
    if form.endswith(".0"):
        comparable = len({*map(len, ends)}) == 1
    else:
        comparable = sum(int(b) > int(a) for a, b in itertools.pairwise(ends)) >= MOST_RISES * (len(ends) - 1)
    return not comparable or len(DIGITS.findall(last)[-1]) >= len(ends[-1])


def _form(line: str) -> str:
    """A line with one digit for several, and one blank."""
    return DIGITS.sub("0", " ".join(line.split()))


def _opened(path: Path, head: bytes) -> IO[bytes]:
    if head.startswith(XZ):
        return lzma.open(path)
    codec = next((name for magic, name in MAGIC.items() if head.startswith(magic)), None)
    return open(path, "rb") if codec is None else pa.input_stream(str(path), compression=codec)


def _decoded(data: bytes, errors: str) -> str:
    text = _text(data, errors)
    return COLOUR.sub("", text) if "\x1b" in text else text


def _text(data: bytes, errors: str) -> str:
    if encoding := UTF16.get(data[:2]) or _utf16_without_mark(data):
        return data.decode(encoding, errors=errors)
    try:
        return data.decode("utf-8-sig", errors=errors)
    except UnicodeDecodeError:
        if b"\0" in data:  # no text
            raise
        return data.decode("cp1252", errors="replace")


def _utf16_without_mark(data: bytes) -> str | None:
    """Of ASCII in UTF-16 every second byte is zero."""
    start = data[:64]
    if len(start) >= 4 and not any(start[1::2]) and all(start[0::2]):
        return "utf-16-le"
    return "utf-16-be" if len(start) >= 4 and not any(start[0::2]) and all(start[1::2]) else None


def _inner(path: Path) -> Path:
    return path.with_suffix("") if path.suffix.lower() in COMPRESSED else path
