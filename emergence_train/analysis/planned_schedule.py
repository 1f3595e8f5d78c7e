"""The learning rate of a whole run, past and planned, as the features that schedule-aware laws are linear in.

A plan is the rate at every step of the run. Its features:

clock(x)          S1(x), the rate summed over steps in units of the peak: "steps at peak rate" (arXiv 2408.11029)
decay(x, kernel)  sum over steps k <= x of (e[k-1]^p - e[k]^p) G(k, x), e = rate / peak: how much of the rate's fall has
                  taken effect at x. G = 1 is an immediate effect; the kernels below say how fast it comes.

Warm-up does not count as a (negative) decay; later rises, as in restarts, do. Where the batch changes along the run, the
decay is that of the rate over the batch, or over its root (Smith et al., arXiv 1711.00489; Malladi et al., arXiv 2205.10287).
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from emergence_train.errors import InputError
from emergence_train.recorder.table_files import clear_rounding

BLOCK = 2048  # steps at which the decay is computed at once: a row of all falls for each
GRID = 600  # points at which a plan is stored; a cooldown of a tenth of the run still has sixty
PIECES = 60  # of a run, over which a batch that changes is read off its tokens
BY_BATCH = (1.0, 0.5)  # powers of the batch by which the rate may be divided, where it changes


@dataclass(frozen=True)
class Kernel:
    """G(age in steps, age in steps at peak rate, rate / peak at the fall, peak rate): the share of the effect there."""

    name: str
    power: float  # the effect is linear in (rate / peak)^power
    effect: Callable[[np.ndarray, np.ndarray, np.ndarray, float], np.ndarray]


def _intrinsic(power: float) -> list[Kernel]:
    # Age is in steps at peak rate ("intrinsic time"): once the rate is near 0, the effect is constant.
    # Reconstructed: the forms and their constants were chosen on public curves (docs/notebook/, form of the loss).
    return [
        Kernel(f"fast^{power:g}", power, lambda age, work, rate, peak: -np.expm1(-work / 100)),
        Kernel(f"slow^{power:g}", power, lambda age, work, rate, peak: 1 - (1 + work / 10) ** -0.5),
    ]


INTRINSIC = [kernel for power in (0.5, 0.75, 1.0) for kernel in _intrinsic(power)]
# The annealing law (arXiv 2408.11029): momentum 0.999 a step. Its area S2 is 1000 times this sum.
MOMENTUM = Kernel("momentum", 1.0, lambda age, work, rate, peak: 1 - 0.999**age)
# The multi-power law (arXiv 2503.12811): G(x) = 1 - (1 + C x)^-beta with x = rate^-gamma * summed rate. C, beta, gamma
# are held at round numbers near its authors' published fits of 25M to 400M parameters; free, they are not identified.
MULTI_POWER = Kernel(
    "multi-power", 1.0, lambda age, work, rate, peak: 1 - (1 + 2.0 * (rate * peak) ** -0.64 * work * peak) ** -0.6
)
# The rate itself, without any delay: the cosine part of a2 in arXiv 2404.17785 as reconstructed.
AT_ONCE = Kernel("at-once", 1.0, lambda age, work, rate, peak: np.ones_like(work))


class PlannedSchedule:
    """The learning rate over a run: `x` in steps (ascending, any spacing) and `rate` at each, both (K,).

    Between points the rate is linear; before the first one it rises linearly from 0 unless that is step 0 or 1 (a log
    that starts after its warm-up); after the last it stays. `step_tokens` is what one step trains on, 0 where unknown.
    Rates are held as shares of `peak`, the highest where none is given. Raises InputError for a rate that is never positive or
    is not finite.
    """

    def __init__(self, x: np.ndarray, rate: np.ndarray, step_tokens: float = 0.0, peak: float | None = None) -> None:
        x, rate = np.asarray(x, float), clear_rounding(np.asarray(rate, float))
        if len(x) == 0 or not np.all(np.isfinite(rate)) or np.any(rate < 0) or rate.max() <= 0:
            raise InputError("learning rate: must be finite, not negative and somewhere above 0; correct the column lr")
        self.peak = float(rate.max()) if peak is None else peak
        self.rows = x, rate / self.peak  # as given: steps, and rates as shares of the peak
        self.tokens = float(x[-1]) * step_tokens  # of the whole run, 0 where unknown
        self._past: PlannedSchedule | None = None
        e = rate / self.peak
        if x[0] > 1:
            x, e = np.r_[0.0, x], np.r_[0.0, e]
        elif x[0] > 0:
            x, e = np.r_[0.0, x], np.r_[e[0], e]
        self.warmup_end = self._end_of_warmup(x, e)
        early = np.geomspace(max(x[-1] / 1e4, 1e-9), max(x[-1], 1e-9), 120)
        self.x = np.unique(np.r_[np.linspace(0, x[-1], GRID), early, self.warmup_end])
        self.e = np.interp(self.x, x, e)
        self._clock = np.r_[0.0, np.cumsum((self.e[1:] + self.e[:-1]) / 2 * np.diff(self.x))]
        self._middle = (self.x[1:] + self.x[:-1]) / 2
        self.by_batch: tuple[float, ...] = (0.0,)  # powers of the batch to be tried
        self._set_batch(np.ones_like(self.x))

    def _set_batch(self, batch: np.ndarray) -> None:
        """`batch` (K,) at each point, as a share of the run's mean."""
        self._batch = batch
        self._own_decays: dict[tuple[str, float], np.ndarray] = {}
        rises = (np.diff(self.e / batch) > 1e-3) & (self.x[1:] > self.warmup_end)  # by more than a log's rounding
        self.rises_again = bool(rises.any())

    def with_batches(self, x: np.ndarray, tokens: np.ndarray) -> "PlannedSchedule":
        """The same rates for a run whose batch changes: `tokens` (n,) trained at steps `x` (n,), both growing. Before the first
        of them the batch is the first one's, after the last the last one's; shares are of their mean."""
        span = x[-1] - x[0]
        at = np.unique(np.minimum(np.searchsorted(x, x[0] + span * np.arange(PIECES + 1) / PIECES), len(x) - 1))
        batch = np.diff(tokens[at]) / np.diff(x[at]) * (span / (tokens[-1] - tokens[0]))
        other = copy.copy(self)
        other.by_batch = BY_BATCH
        other._past = self._past and self._past.with_batches(x, tokens)
        other._set_batch(batch[np.clip(np.searchsorted(x[at], self.x, side="left") - 1, 0, len(batch) - 1)])
        return other

    def with_peak(self, peak: float) -> "PlannedSchedule":
        """The same course with another peak rate."""
        other = copy.copy(self)
        other.peak, other._own_decays = peak, {}
        other._past = self._past and self._past.with_peak(peak)
        return other

    @property
    def past(self) -> "PlannedSchedule":
        """The rates that the observed rows had, as shares of the same peak: the planned ones unless with_past says others."""
        return self._past or self

    def with_past(self, logged: "PlannedSchedule", until: float) -> "PlannedSchedule":
        """The same plan for a run whose rates up to step `until` were the logged ones where there are any."""
        other = copy.copy(self)
        other._past = self._joined(logged, until, until)
        return other

    def behind(self, logged: "PlannedSchedule", until: float) -> "PlannedSchedule":
        """The logged rates up to step `until`, and this plan from there."""
        return self._joined(logged, until, self.x[-1])

    def _joined(self, logged: "PlannedSchedule", until: float, end: float) -> "PlannedSchedule":
        """The logged rates up to step `until` where there are any, the planned ones elsewhere, to step `end`."""
        steps, share = logged.rows
        planned = (self.x <= end) & ((self.x < steps[0]) | (self.x > min(until, steps[-1])))
        rows = steps <= until
        x = np.r_[self.x[planned], steps[rows]]
        rate = np.r_[self.peak * self.e[planned], logged.peak * share[rows]]
        order = np.argsort(x)
        return PlannedSchedule(x[order], rate[order], self.tokens / self.x[-1], self.peak)

    @staticmethod
    def _end_of_warmup(x: np.ndarray, e: np.ndarray) -> float:
        """Where the rate first stops rising (0 when it starts at the top)."""
        rising = np.diff(e) > 1e-9
        if not rising[:2].any():
            return 0.0
        first = int(np.argmax(rising))
        stop = np.flatnonzero(~rising[first:])
        return float(x[first + stop[0]] if len(stop) else x[-1])

    def share(self, x: np.ndarray) -> np.ndarray:
        """Learning rate at steps `x` as a share of the peak."""
        return np.interp(x, self.x, self.e)

    def share_over_batch(self, x: np.ndarray) -> np.ndarray:
        """The same of the learning rate over the batch, as a share of the mean one."""
        return np.interp(x, self.x, self.e / self._batch)

    def mean_share_after(self, x: float) -> float:
        """Mean learning rate from step `x` to the plan's end, as a share of the peak; beyond the end the last rate."""
        end = self.x[-1]
        if x >= end:
            return float(self.e[-1])
        before, after = self.clock(np.array([x, end]))
        return float((after - before) / (end - x))

    def clock(self, x: np.ndarray) -> np.ndarray:
        """Summed rate up to `x` in steps at peak rate; beyond the plan the last rate continues."""
        x = np.asarray(x, float)
        return np.interp(x, self.x, self._clock) + np.maximum(x - self.x[-1], 0) * self.e[-1]

    def interpolated_decays(self, x: np.ndarray, *kernels: Kernel) -> list[np.ndarray]:
        """(n,) for each kernel and power of by_batch: decay() at the plan's own points, computed once, read off at steps `x`."""
        keys = [(kernel, power) for kernel in kernels for power in self.by_batch]
        for kernel, power in keys:
            if (kernel.name, power) not in self._own_decays:
                self._own_decays[kernel.name, power] = self.decay(self.x, kernel, power)
        return [np.interp(x, self.x, self._own_decays[kernel.name, power]) for kernel, power in keys]

    def decay(self, x: np.ndarray, kernel: Kernel, by_batch: float | None = None) -> np.ndarray:
        """How much of the fall of the rate, over that power of the batch (the first of by_batch), has taken effect at `x`: 0
        before any decay, 1 long after a decay to 0 from the peak at the mean batch."""
        x = np.asarray(x, float)
        over = self._batch ** (self.by_batch[0] if by_batch is None else by_batch)
        fall = -np.diff((np.maximum(self.e, 0) / over) ** kernel.power)
        moving = (np.abs(fall) > 1e-12) & (self.x[1:] > self.warmup_end)
        fall, at = fall[moving], self._middle[moving]
        if not len(fall):
            return np.zeros_like(x)
        if len(x) > BLOCK:
            return np.concatenate([self.decay(x[k : k + BLOCK], kernel, by_batch) for k in range(0, len(x), BLOCK)])
        age = x[:, None] - at
        work = np.maximum(self.clock(x)[:, None] - np.interp(at, self.x, self._clock), 0)
        rate = np.maximum(np.interp(at, self.x, self.e), 1e-4)
        return np.where(age >= 0, kernel.effect(np.maximum(age, 0), work, rate, self.peak), 0) @ fall
