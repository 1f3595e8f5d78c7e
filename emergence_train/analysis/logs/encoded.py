"""The text of a log however it lies there: compressed (.gz, .bz2, .zst, .lz4), with a byte order mark, in UTF-16."""

import codecs
from pathlib import Path

import pyarrow as pa

COMPRESSED = (".gz", ".bz2", ".zst", ".lz4")  # what pyarrow opens by a name's end
UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def suffix_of(path: Path) -> str:
    """The kind of a file by its name: .csv of log.csv and of log.csv.gz."""
    return _inner(path).suffix


def stem_of(path: Path) -> str:
    """Its name without the kind: log of log.csv.gz."""
    return _inner(path).stem


def text_of(path: Path, length: int | None = None, errors: str = "strict") -> str:
    """The text, or that of its first `length` bytes. Raises OSError, and UnicodeDecodeError with errors="strict"."""
    if path.suffix in COMPRESSED:
        try:
            with pa.input_stream(str(path), compression="detect") as stream:
                data = stream.read(length)
        except pa.ArrowException as error:
            raise OSError(str(error)) from error
    else:
        with open(path, "rb") as file:
            data = file.read(length)
    if data.startswith(UTF16):
        return data.decode("utf-16", errors=errors)
    return data.decode("utf-8-sig", errors=errors)


def _inner(path: Path) -> Path:
    return path.with_suffix("") if path.suffix in COMPRESSED else path
