"""Anomalies: losses and gradients that are not finite, loss spikes, diverged replicas.

Every decision follows from numbers that are already reduced over all ranks, so all ranks decide alike without communication.
"""

import hashlib
import json
import math
import statistics
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from emergence_train import files
from emergence_train.config import Faults
from emergence_train.errors import InputError
from emergence_train.input_files import read_text
from emergence_train.parallel.ranks import all_gather_objects

WINDOW = 64  # losses in the window that a spike is compared with
LEAST = 16  # losses needed before anything is a spike
FLOOR = 0.01  # lower bound of the standard deviation, as a share of the median


@dataclass(frozen=True)
class Event:
    """An anomaly of a step and the action taken: log, skip, rewind or stop."""

    kind: str  # not_finite or spike
    action: str
    reason: str


class AnomalyDetector:
    """Checks each step's loss and gradient norm; its state is the window of losses, restored by `restart`."""

    def __init__(self, faults: Faults, recent: list[float]) -> None:
        self.faults = faults
        self.restart(recent)

    def restart(self, recent: list[float]) -> None:
        """Reset the state to the losses of the steps before the next one."""
        self.window = deque(recent, WINDOW)
        self.skips_in_a_row = 0

    def spike(self, loss: float) -> str | None:
        """Reason why a finite loss is a spike, more than spike_deviations above the median of the last 64; or None.

        The deviation is 1.4826 x the median absolute deviation, which one outlier in the window does not move.
        """
        if len(self.window) < LEAST or not math.isfinite(loss):
            return None
        middle = statistics.median(self.window)
        spread = 1.4826 * statistics.median(abs(value - middle) for value in self.window)
        limit = middle + self.faults.spike_deviations * max(spread, FLOOR * abs(middle))
        if loss <= limit:
            return None
        return f"loss {loss:.4g}, the last {len(self.window)} have median {middle:.4g}; the limit is {limit:.4g}"

    def __call__(self, loss: float, grad_norm: float | None, applied: bool) -> Event | None:
        """The event of a step, or None. `applied` False: the update was skipped."""
        event = self._event(loss, grad_norm, applied)
        self.skips_in_a_row = 0 if applied else self.skips_in_a_row + 1
        if event is None or event.action == "log":
            self.window.append(loss)  # the median decides whether a spike is a new level
        if event is not None and self.skips_in_a_row >= self.faults.give_up_after:
            return Event(event.kind, "stop", f"{event.reason}; {self.skips_in_a_row} steps in a row were skipped")
        return event

    def _event(self, loss: float, grad_norm: float | None, applied: bool) -> Event | None:
        if self.faults.spike == "skip" and not applied and (reason := self.spike(loss)):
            return Event("spike", "skip", reason)  # its gradient was set to NaN on purpose
        what = "loss" if not math.isfinite(loss) else "gradient"
        bad = what == "loss" or (grad_norm is not None and not math.isfinite(grad_norm))
        reason = None if bad else self.spike(loss)
        if reason is not None:
            return Event("spike", self.faults.spike, reason)
        if not bad and applied:
            return None
        action = self.faults.not_finite
        if action == "skip" and applied:
            action = "stop"  # the update was applied: the weights may be damaged
        return Event("not_finite", action, f"{what} not finite")


class SkippedBatches:
    """Which samples a step trains on: those in order, without what a rewind went back over. rewinds.json of the run remembers.

    The batch of a step is the (step - 1)-th of those not skipped, and samples are counted without those that the run's parent
    (training.branch) had skipped before it began: still a pure function, of the run's directory.
    """

    def __init__(self, run: Path, inherited: Sequence[Sequence[int]] = ()) -> None:
        """`inherited`: (first, last) sample of what the parent had skipped."""
        self.path = run / "rewinds.json"
        self.inherited = _disjoint(inherited)
        self.rewinds: list[dict] = []
        if self.path.is_file():
            try:
                self.rewinds = json.loads(read_text(self.path))["rewinds"]
                [(int(r["step"]), int(r["first_batch"]), int(r["last_batch"])) for r in self.rewinds]
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise InputError(
                    f"{self.path}: cannot be read ({error}); restore it: it lists the batches that this run has skipped"
                ) from None
        self._ranges()

    def batch(self, step: int) -> int:
        """The batch, from 0, that `step` trains on."""
        return _nth_outside(self.ranges, step - 1)

    def sample(self, number: int, place: int, batch: int) -> int:
        """The global number of the sample at `place` of batch `number` (of `batch` samples); no rewind changes it."""
        return _nth_outside(self.inherited, number * batch + place)

    def samples_before(self, step: int, batch: int) -> list[tuple[int, int]]:
        """(first, last) sample of all that was skipped on the way to the state of `step`: what a branch from it inherits."""
        # Those that came before the state was saved: a rewind to an earlier step takes the state of this one with it.
        known = max((n for n, r in enumerate(self.rewinds, 1) if r["step"] < step), default=0)
        own = [(r["first_batch"] * batch, (r["last_batch"] + 1) * batch - 1) for r in self.rewinds[:known]]
        mapped = [(_nth_outside(self.inherited, first), _nth_outside(self.inherited, last)) for first, last in own]
        return _disjoint([*self.inherited, *mapped])

    def add(self, back_to: int, failed: int, reason: str) -> None:
        """Skip what the steps after `back_to`, up to the one that failed, trained on."""
        first, last = self.batch(back_to + 1), self.batch(failed)
        rewind = {"step": back_to, "failed_step": failed, "first_batch": first, "last_batch": last, "reason": reason}
        self.rewinds.append(rewind)
        self._ranges()

    def save(self) -> None:
        """Write it down; rank 0 does."""
        files.write_json(self.path, {"rewinds": self.rewinds})

    def _ranges(self) -> None:
        self.ranges = _disjoint([(r["first_batch"], r["last_batch"]) for r in self.rewinds])


def _disjoint(ranges: Iterable[Sequence[int]]) -> list[tuple[int, int]]:
    """The (first, last) ranges as disjoint ones in order; one rewind may go back over another."""
    joined: list[tuple[int, int]] = []
    for first, last in sorted((first, last) for first, last in ranges):
        if joined and first <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(last, joined[-1][1]))
        else:
            joined.append((first, last))
    return joined


def _nth_outside(ranges: list[tuple[int, int]], number: int) -> int:
    """The `number`-th of the whole numbers from 0 that lie in none of the disjoint, ordered ranges."""
    for first, last in ranges:
        if number < first:
            break
        number += last - first + 1
    return number


def diverged_replicas(model: torch.nn.Module) -> list[int]:
    """Ranks whose copy of the model differs in any bit from that of the majority.

    Under ZeRO-3 only the parameters that every rank holds in full (norms and other small weights) are compared.
    """
    digest = hashlib.sha256()
    for parameter in model.parameters():
        if parameter.numel():
            digest.update(parameter.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    digests = all_gather_objects(digest.hexdigest())
    usual = max(digests, key=digests.count)
    return [rank for rank, digest in enumerate(digests) if digest != usual]
