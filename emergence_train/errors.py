"""Errors that are reported as one line, each with its exit code. Any other exception is a bug, reported as such."""

import contextlib
import errno
import re
import sys
from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")
SURROGATE = re.compile("[\ud800-\udfff]")  # half of a pair, which is no text: of JSON, or of a byte that is not UTF-8

# Of a process: the words of Python, the C library and torch
NO_MEMORY = re.compile(
    "can't start new thread|failed to map segment|cannot allocate memory|can't allocate memory", re.IGNORECASE
)


def tell(text: str) -> None:
    """The one line, to standard error; where that cannot be written (a full disk, a reader that has gone) it is lost."""
    with contextlib.suppress(OSError):
        print(f"emergence-train: {text}", file=sys.stderr, flush=True)


def printable(text: str) -> str:
    """Text without the characters that a terminal obeys (escape sequences in what a model wrote, or in a file's name)."""
    return "".join(character if character.isprintable() or character in "\n\t" else "\ufffd" for character in text)


def listed(names: Iterable[object], most: int) -> str:
    """The first `most` names, and how many more there are."""
    words = [str(name) for name in names]
    return ", ".join(words[:most]) + (f" and {len(words) - most} more" if len(words) > most else "")


class OneLine(Exception):
    """Its text is one line whatever it quotes."""

    # Of an error that every rank raises alike: whether another rank's line is the one to show. None: this rank's own.
    already_reported: bool | None = None

    def __init__(self, text: str) -> None:
        super().__init__(" ".join(str(text).splitlines()))


class InputError(OneLine):
    """Wrong use or wrong input: what, where, and what to do about it."""

    code = 2


class RunError(OneLine):
    """A failure while running (a full disk, a loss that is not finite)."""

    code = 1


class Stopped(OneLine):
    """Stopped on request (SIGTERM, SIGUSR1, SIGHUP) with everything saved: the same command resumes.

    75 is EX_TEMPFAIL of sysexits.h, "try again later", for schedulers that requeue.
    """

    code = 75


class PeerLost(RunError):
    """Another process of the run was killed, stopped or hangs: run the same command to resume from the last saved state."""

    code = 76


BY_CODE: dict[int, type[OneLine]] = {kind.code: kind for kind in (RunError, InputError, Stopped, PeerLost)}


def exit_code(error: BaseException) -> int:
    """What a process that `error` ends exits with."""
    return error.code if isinstance(error, (RunError, InputError, Stopped)) else RunError.code


def describe(error: BaseException) -> str:
    """The one line to show for `error`: a bug is said to be one; a file that cannot be used, or a machine's limit, is not."""
    if isinstance(error, OneLine):
        return str(error)
    if isinstance(error, KeyboardInterrupt):
        return f"interrupted; run the same command again{f' ({error})' if str(error) else ''}"
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}; fix that and run the same command again"
    reason = " ".join(str(error).split())[:500]
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        return f"{reason}; raise the limit (ulimit -n) and run the same command again"
    if isinstance(error, MemoryError) or NO_MEMORY.search(reason):
        return f"{reason or 'out of memory'}; free some memory, or raise the limits (ulimit -v, -u), and run it again"
    return f"{type(error).__name__}: {reason} (a bug? see it with --debug)"


def repeat(code: int, text: str) -> OneLine:
    """Another rank's error, to be raised here too: the same exit code, and no second line on the screen."""
    error = BY_CODE.get(code, RunError)(text)
    error.already_reported = True
    return error


def attempt(make: Callable[[], T]) -> tuple[T | None, Exception | None]:
    """(what `make` returns, None), or (None, what it raises)."""
    try:
        return make(), None
    except Exception as error:
        return None, error
