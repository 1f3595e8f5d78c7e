"""What the operations of each rank's main thread take: limits for a hang, and ranks that the others wait for.

Times are of the host. On a GPU the host runs ahead, so a slow device shows only in what its host waits for.
"""

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

LEAST_SECONDS = 600.0  # a file system that stalls, or a compiler that is at it again, is no hang
FACTOR = 20.0  # of the longest so far
ENOUGH = 8  # times that an operation must have been done before its limit is learned

# The operations of a step up to where the ranks meet again, in their order.
STEP = ("writing rows", "loading samples", "forward", "backward", "optimizer step")
LAST = "reducing the loss"  # of a step: all ranks come out of it together
SHARE = 0.2  # of a step's time that a rank is behind the median, to be called slow
LEAST_BEHIND = 0.005  # seconds a step, likewise
STEPS = 20  # that a comparison must have


class Times(NamedTuple):
    """Of one operation so far."""

    done: int = 0  # times
    seconds: float = 0.0
    longest: float = 0.0


class Operations:
    """The operations of this rank: `begin` is called by the main thread, the rest by any."""

    def __init__(self) -> None:
        self.begun, self.operation, self.step, self.since = 0, "starting", 0, time.monotonic()
        self.times: dict[str, Times] = {}

    def begin(self, operation: str, step: int) -> None:
        now = time.monotonic()
        done, seconds, longest = self.times.get(self.operation, Times())
        took = now - self.since
        self.times[self.operation] = Times(done + 1, seconds + took, max(longest, took))
        self.begun, self.operation, self.step, self.since = self.begun + 1, operation, step, now

    def sign(self) -> dict:
        """For the heartbeat: how many operations have begun, which is the last, of which step, and for how long."""
        return {
            "ops": self.begun,
            "op": self.operation,
            "step": self.step,
            "for": time.monotonic() - self.since,
        }


def hang_limit(times: list | tuple | None, most: float) -> float:
    """Seconds after which an operation counts as hanging: FACTOR times its longest so far, at least LEAST_SECONDS, at most
    `most`, which also holds until it has been done ENOUGH times.

    Args: `times`: the operation's Times.
    """
    done, _, longest = times or Times()
    return most if done < ENOUGH else min(most, max(LEAST_SECONDS, FACTOR * longest))


@dataclass(frozen=True)
class Straggler:
    """A rank that the others waited for."""

    rank: int
    operation: str  # in which it was behind most
    seconds: float  # a step, behind the median of the ranks
    share: float  # of the step's time


def stragglers(before: Mapping[int, Mapping], after: Mapping[int, Mapping]) -> list[Straggler]:
    """The ranks that were late, from every rank's times {operation: Times} at two moments.

    The ranks begin a step together, and wait for each other in whatever has a collective. So what counts is when a rank gets
    to the end of each operation of the step: the first end at which some are behind the median by SHARE of a step is where the
    others had not begun to wait for them, and whoever is later afterwards may have waited himself. Ranks that meet within an
    operation (ZeRO-3 gathers weights in the forward pass) end it together: a rank slow in there is not seen.
    """
    steps = {rank: _of(after[rank], LAST).done - _of(before[rank], LAST).done for rank in after}
    if len(after) < 2 or min(steps.values()) < STEPS:
        return []
    means = {
        rank: [_seconds(before[rank], after[rank], name) / steps[rank] for name in (*STEP, LAST)] for rank in after
    }
    step = statistics.median(map(sum, means.values()))
    took = {rank: parts[:-1] for rank, parts in means.items()}
    usual = [statistics.median_low(parts) for parts in zip(*took.values())]
    ends = {rank: [sum(parts[: k + 1]) for k in range(len(STEP))] for rank, parts in took.items()}
    for k, median in enumerate(statistics.median_low(end) for end in zip(*ends.values())):
        late = {
            rank: end[k] - median for rank, end in ends.items() if end[k] - median > max(SHARE * step, LEAST_BEHIND)
        }
        if late:
            break
    else:
        return []
    slow = []
    for rank, behind in sorted(late.items()):
        worst = max(range(k + 1), key=lambda part: took[rank][part] - usual[part])
        slow.append(Straggler(rank, STEP[worst], behind, behind / step))
    return slow


def _of(times: Mapping, operation: str) -> Times:
    return Times(*times.get(operation, Times()))


def _seconds(before: Mapping, after: Mapping, operation: str) -> float:
    return _of(after, operation).seconds - _of(before, operation).seconds
