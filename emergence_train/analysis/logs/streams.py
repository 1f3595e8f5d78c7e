"""Standard input and pipes as files: what recognises a log reads its beginning, and its reader begins anew."""

import contextlib
import json
import os
import signal
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from emergence_train.analysis.logs.cells import HEAD, is_delimited
from emergence_train.analysis.logs.encoded import text_of
from emergence_train.errors import InputError
from emergence_train.input_files import open_read

STDIN, DEVICES = "/dev/stdin", "/dev"


@contextlib.contextmanager
def as_files(paths: list[str]) -> Iterator[list[str]]:
    """The paths, with a file in the place of a pipe, until the block ends: all that is written to it, also where it is given
    twice. `-` is standard input."""
    names = [STDIN if path == "-" else path for path in paths]
    with contextlib.ExitStack() as stack:
        files = {name: _as_file(name, stack) for name in dict.fromkeys(names)}
        yield [files[name] for name in names]


def _as_file(given: str, stack: contextlib.ExitStack) -> str:
    try:
        mode = os.stat(given).st_mode
    except OSError:
        if given == STDIN:
            raise InputError(f"{STDIN}: standard input is closed; name a file, or write to a pipe") from None
        return given  # who reads it says that there is none
    path = Path(given)
    if stat.S_ISREG(mode) and path.is_relative_to(DEVICES) and path.resolve().is_file():
        return str(path.resolve())  # redirected: its name says what it is
    if stat.S_ISDIR(mode) or stat.S_ISREG(mode) and not path.is_relative_to(DEVICES):
        return given
    try:
        with open_read(given) as file:
            content = file.read()
    except OSError as error:
        raise InputError(
            f"{given}: {error.strerror}; name a file, a run directory or what is written to a pipe"
        ) from None
    stack.enter_context(_exit_on_sigterm())
    copy = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="emergence-train-"))) / Path(given).name
    copy.write_bytes(content)
    return str(copy if copy.suffix else copy.rename(copy.with_suffix(_suffix(copy, content))))


@contextlib.contextmanager
def _exit_on_sigterm() -> Iterator[None]:
    """Exit as a scheduler asks, so that the copies are removed; the signal alone would leave them."""
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _suffix(path: Path, content: bytes) -> str:
    """By the content, which a file's name would say."""
    if content.startswith(b"PAR1"):
        return ".parquet"
    try:
        text = text_of(path, errors="replace")
    except (OSError, InputError):
        return ""
    for part, suffix in ((text, ".json"), (text.lstrip().partition("\n")[0], ".jsonl")):
        with contextlib.suppress(ValueError, RecursionError):
            if isinstance(json.loads(part), (dict, list)):
                return suffix
    return ".csv" if is_delimited(text[:HEAD]) else ""
