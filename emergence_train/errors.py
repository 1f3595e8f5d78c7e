"""The two errors a person sees as one line. Anything else that escapes is a bug and is reported as such."""


class InputError(Exception):
    """Wrong use or wrong input: what, where, and what to do about it. The command line exits with 2."""


class RunError(Exception):
    """Something failed while running (a full disk, a dead peer). The command line exits with 1."""
