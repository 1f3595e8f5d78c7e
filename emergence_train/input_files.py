"""Files that a user names or a run holds, opened for reading: what would be read for ever is refused."""

import contextlib
import errno
import io
import os
import re
import stat
import time
from pathlib import Path
from typing import IO

from emergence_train.errors import InputError

DESCRIPTOR = re.compile(r"/dev/stdin|(?:/dev|/proc/self)/fd/(\d+)")
WRITER_SECONDS = 2.0  # that whoever writes to a pipe has to open it
POINTER, LONGEST_POINTER = b"version https://git-lfs", 1024  # what a clone without Git LFS holds, and its bytes
POINTER_SAYS = "is a pointer to the file, of git-lfs; run git lfs pull in its directory"


def regular(path: str | Path) -> str | Path:
    """The path, of a regular file. Raises OSError for what reads for ever or once: a device, a pipe; InputError for a pointer."""
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        kind = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
        raise OSError(kind, "is a directory" if stat.S_ISDIR(mode) else "is no regular file", str(path))
    if is_pointer(path):
        raise InputError(f"{path}: {POINTER_SAYS}")
    return path


def is_pointer(path: str | Path) -> bool:
    """Whether a regular file that can be read is a pointer of git-lfs to itself, as a clone without git-lfs has it."""
    with contextlib.suppress(OSError):
        if os.stat(path).st_size <= LONGEST_POINTER:
            with open(path, "rb") as file:
                return file.read(len(POINTER)) == POINTER
    return False


def open_read(path: str | Path) -> IO[bytes]:
    """Open a regular file, or the whole of what is written to a pipe or to a socket that is a descriptor of this process, as
    standard input may be. Raises OSError for another kind, and for a pipe to which nobody writes."""
    mode, descriptor = os.stat(path).st_mode, DESCRIPTOR.fullmatch(str(path))
    if stat.S_ISSOCK(mode) and descriptor:  # it cannot be opened
        return io.BytesIO(_until_closed(path, os.dup(int(descriptor[1] or 0))))
    if stat.S_ISFIFO(mode):  # without O_NONBLOCK the open waits for a writer
        return io.BytesIO(_until_closed(path, os.open(path, os.O_RDONLY | os.O_NONBLOCK)))
    return open(regular(path), "rb")


def read_text(path: str | Path, encoding: str = "utf-8", errors: str = "strict") -> str:
    """The text of `open_read`, its lines ended by a line feed."""
    with open_read(path) as file, io.TextIOWrapper(file, encoding, errors) as text:
        return text.read()


def _until_closed(path: str | Path, descriptor: int) -> bytes:
    import select  # Unix only, and the analyses run elsewhere too

    chunks: list[bytes] = []
    try:
        events = select.poll()
        events.register(descriptor, select.POLLIN)
        last, has_writer = time.monotonic() + WRITER_SECONDS, False
        while True:
            has_writer = bool(events.poll(100)) or has_writer  # also of one that has gone
            try:
                chunk = os.read(descriptor, 1 << 20)
            except BlockingIOError:  # of one that has written nothing yet
                has_writer = True
                continue
            chunks.append(chunk)
            if not chunk and has_writer:
                return b"".join(chunks)
            if not chunk and time.monotonic() > last:
                raise OSError(errno.ETIMEDOUT, "is a pipe to which nobody writes", str(path))
    finally:
        os.close(descriptor)
