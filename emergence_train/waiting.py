"""Lines to standard error while a long loop goes on: how far it is, and how long the rest takes. For the command line."""

import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

from emergence_train.errors import tell
from emergence_train.formatting import duration

FIRST, NEXT = 5.0, 15.0  # seconds until the first line of a loop, and from line to line
wanted = False  # set by the command line: a caller from Python has its own way of waiting
T = TypeVar("T")


def along(items: Sequence[T], what: str) -> Iterator[T]:
    """The items, with a line now and then: `what: 12 of 64, 40 s left`."""
    began = time.monotonic()
    due = began + FIRST
    for done, item in enumerate(items):
        now = time.monotonic()
        if wanted and done and now >= due:
            left = (now - began) / done * (len(items) - done)
            tell(f"{what}: {done} of {len(items)}, {duration(left)} left")
            due = now + NEXT
        yield item
