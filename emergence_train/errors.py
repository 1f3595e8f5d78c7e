"""Errors that are reported as one line, each with its exit code. Any other exception is a bug, reported as such."""

import contextlib
import sys


def tell(text: str) -> None:
    """The one line, to standard error; where that cannot be written (a full disk, a reader that has gone) it is lost."""
    with contextlib.suppress(OSError):
        print(f"emergence-train: {text}", file=sys.stderr, flush=True)


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
    """Stopped on request (SIGTERM, SIGUSR1) with everything saved: the same command resumes.

    75 is EX_TEMPFAIL of sysexits.h, "try again later", for schedulers that requeue.
    """

    code = 75


class PeerLost(RunError):
    """Another process of the run was killed, stopped or hangs: run the same command to resume from the last checkpoint."""

    code = 76
