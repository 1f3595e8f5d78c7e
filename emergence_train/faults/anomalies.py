"""Anomalies: losses and gradients that are not finite, loss spikes, diverged replicas.

Every decision follows from numbers that are already reduced over all ranks, so all ranks decide alike without communication.
"""

import hashlib
import json
import math
import statistics
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import torch

from emergence_train import files
from emergence_train.config import Faults
from emergence_train.errors import InputError
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
    """Batches that no step trains on, because a rewind skipped them; stored in the run's rewinds.json.

    The batch of a step is the (step - 1)-th of those not skipped: still a pure function, of the run's directory.
    """

    def __init__(self, run: Path) -> None:
        self.path = run / "rewinds.json"
        self.rewinds: list[dict] = []
        if self.path.is_file():
            try:
                self.rewinds = json.loads(self.path.read_text())["rewinds"]
                [(int(r["step"]), int(r["first_batch"]), int(r["last_batch"])) for r in self.rewinds]
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise InputError(
                    f"{self.path}: cannot be read ({error}); restore it: it lists the batches that this run has skipped"
                ) from None
        self._ranges()

    def batch(self, step: int) -> int:
        """Index of the batch, from 0, that `step` trains on."""
        number = step - 1
        for first, last in self.ranges:
            if number < first:
                break
            number += last - first + 1
        return number

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
        """The skipped batches as disjoint ranges in order; one rewind may cover another."""
        self.ranges: list[tuple[int, int]] = []
        for first, last in sorted((r["first_batch"], r["last_batch"]) for r in self.rewinds):
            if self.ranges and first <= self.ranges[-1][1] + 1:
                self.ranges[-1] = (self.ranges[-1][0], max(last, self.ranges[-1][1]))
            else:
                self.ranges.append((first, last))


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
