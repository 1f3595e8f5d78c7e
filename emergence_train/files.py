"""Atomic writes, fsync and checksums of files."""

import contextlib
import errno
import hashlib
import json
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

from emergence_train.errors import InputError, RunError

if TYPE_CHECKING:
    import pandas

FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a cell that a spreadsheet computes begins with
NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)  # Lustre mounted without flock, some NFS servers


@contextlib.contextmanager
def lock(directory: Path, *, busy: str, other: str, wait: float = 0.0, writes: bool = True) -> Iterator[str | None]:
    """Make `directory` and hold its lock until the block ends, or the process does, however it ends.

    `wait`: seconds that another process may still hold it. `writes`: False where the block may have nothing to write, and calls
    `check_writable` where it has.

    Yields None, or a warning where the file system has no locks.

    Raises:
        InputError: another process holds the lock (the message is `busy`); or the directory cannot be created, written or locked
            (the remedy names another `other`).
    """
    import fcntl  # Unix only, and the analyses run elsewhere too

    try:
        make_directory(directory)
        fsync_directory(directory.parent)  # it may be of a start that was killed before it came to this
        path = directory / ".lock"
        of_another = path.is_file() and not os.access(path, os.W_OK)  # user, who shares the directory
        file = open(path, "r" if of_another else "w")  # noqa: SIM115 - the with statement below closes it
    except OSError as error:
        raise _unwritable(directory, error.strerror, other) from None
    with file:
        if writes:
            check_writable(directory, other)
        end = time.monotonic() + wait
        try:
            while True:  # not LOCK_EX alone: the lock of a node that is gone may never be given up
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= end:
                        raise InputError(f"{directory}: {busy}") from None
                    time.sleep(0.02)
            note = None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise InputError(f"{directory}: cannot be locked ({error.strerror}); choose another {other}") from None
            note = (
                f"{directory}: this file system has no locks ({error.strerror}); see to it yourself that one process at a "
                f"time writes there"
            )
        # At the interpreter's end, where a holder is left open, modules are gone.
        owner, getpid = os.getpid(), os.getpid
        try:
            yield note
        finally:
            # processes forked meanwhile have the file open, and the lock with it
            if note is None and getpid() == owner:
                fcntl.flock(file, fcntl.LOCK_UN)


def is_locked(directory: Path) -> bool:
    """Whether a process holds the directory's lock; False too where that cannot be known."""
    import fcntl

    try:
        with open(directory / ".lock") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False


def writable(directory: Path) -> bool:
    """Whether this user may make files in `directory`, or, where it is missing, may make it."""
    place = directory.absolute()
    while not place.exists():
        place = place.parent
    return os.access(place, os.W_OK | os.X_OK)


def check_writable(directory: Path, other: str) -> None:
    """Raise InputError unless `directory` is writable."""
    if not writable(directory):
        raise _unwritable(directory, os.strerror(errno.EACCES), other)


def _unwritable(directory: Path, reason: str | None, other: str) -> InputError:
    return InputError(f"{directory}: cannot be made or written ({reason}); choose another {other}")


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the directory of `path`; when the block succeeds it is fsynced and renamed to `path`.

    A reader (or a crash) sees the old file or the whole new one. A full disk raises a RunError that names the path.
    """
    path = Path(path)
    with named_errors(path):
        make_directory(path.parent)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
        try:
            temporary.open("x").close()  # not by mkstemp, whose files others may not read whatever the umask is
            yield temporary
            fsync_file(temporary)
            os.replace(temporary, path)
            fsync_directory(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, value: object) -> None:
    """Write `value` as indented JSON, atomically."""
    write_bytes(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def write_csv(path: Path, frame: "pandas.DataFrame") -> None:
    """Write a pandas frame as CSV, numbers to 8 digits, atomically. Text that a spreadsheet would take for a formula gets an
    apostrophe before it."""
    text = {name: frame[name].map(_no_formula) for name in frame.columns if not _is_number(frame[name].dtype)}
    with atomic_path(path) as temporary:
        frame.assign(**text).to_csv(temporary, index=False, float_format="%.8g")


def _is_number(dtype: object) -> bool:
    return getattr(dtype, "kind", "O") in "biufc"


def _no_formula(value: object) -> object:
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value


def json_lines(text: str) -> list:
    """The values of JSON lines; blank lines are none. Only a line feed ends a line: U+2028 and its like may stand in a text.

    Raises:
        ValueError: a line is no JSON; by its number.
    """
    values = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                values.append(json.loads(line))
            except (ValueError, RecursionError) as error:
                raise ValueError(f"line {number}: {str(error).split(': line 1 ')[0]}") from None
    return values


def sha256(path: Path) -> str:
    """The file's SHA-256 as hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe(root: Path, path: Path) -> dict:
    """A file's entry in an index or manifest: its path relative to `root`, its size and its SHA-256."""
    return {"file": path.relative_to(root).as_posix(), "bytes": path.stat().st_size, "sha256": sha256(path)}


def fsync(file: IO) -> None:
    """Flush an open file's data to the disk."""
    os.fsync(file.fileno())


def fsync_file(path: Path) -> None:
    """Flush one file's data to the disk."""
    with open(path, "rb") as file:
        fsync(file)


def fsync_directory(path: Path) -> None:
    """Make a rename in `path` survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_directory(path: Path) -> None:
    """Make a directory, and those above it that are missing, so that a power cut leaves it there."""
    if not path.is_dir():
        make_directory(path.parent)
        path.mkdir(exist_ok=True)
        fsync_directory(path.parent)


def from_run(run: Path, path: str | None, file: str = "") -> str | None:
    """A path of a run's configuration that is not there (with `file`) from here: from the nearest directory above the run."""
    if path is None or Path(path).exists():
        return path
    places = (parent / path for parent in run.resolve().parents)
    return next((str(place) for place in places if (place / file).exists()), path)


@contextlib.contextmanager
def named_errors(path: Path) -> Iterator[None]:
    """Within, an OSError is raised as the one line that names `path`."""
    try:
        yield
    except OSError as error:
        raise disk_error(error, path) from error


class DiskError(RunError):
    """What the disk refused. `problem` is that without what to do for a command that ends by it."""

    problem = ""


def disk_error(error: OSError, path: Path) -> DiskError:
    """The error for an OSError while writing `path`."""
    problem, remedy = f"{path}: cannot write: {error.strerror or error}", ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        problem = f"{path}: no space left on the disk"
        remedy = "; free some or choose another directory, then run again"
    elif error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        remedy = "; make its directory writable, or copy that to where it is"
    refused = DiskError(problem + remedy)
    refused.problem = problem
    return refused


def problem_of(error: Exception) -> str:
    """An error's one line for a run that goes on: without the remedy of a command that ends."""
    return error.problem if isinstance(error, DiskError) else str(error)
