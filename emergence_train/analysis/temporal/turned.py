"""A loss that has turned: it rises, and neither a spike nor the learning rate explains it.

Mostly a held-out loss of a text that is trained on many times over, once the model learns its lines by heart. No law here
rises, so the rise itself is continued as a straight line, for as long as it has lasted. The interval reaches up to twice the line
and down to the laws', as a rise may be taken back. Seven public logs of this kind are at hand, all of one text (Shakespeare's
plays by characters): noticed after 50 to 75% of the run, their ends are within the interval in 95% of looks. Of 240 other public
logs, each seen to 10, 15, ... 100%, none is taken to have turned. On both the limits were set.
"""

from dataclasses import dataclass

import numpy as np

from emergence_train.analysis.planned_schedule import PlannedSchedule
from emergence_train.analysis.temporal.spikes import noise_of, without_spikes

GROUPS = 40  # of rows at most
RISING = 6  # groups from the lowest on, at least
HALFWAY = 0.15  # share of the rise that half of it has, at least: a spike at the end has its rise in the last rows
LASTS = 0.1  # share of the observed steps since the lowest group, at least
CLEAR, LEAST = 4.0, 0.02  # deviations, and nats, that the last groups are above the lowest
BEFORE = 0.3  # of the lowest group's steps, from which on the groups before it show how far they are off their own line
LAST = 3  # groups that a level is the median of
ORDERED = 0.8  # share of pairs of the groups since the lowest that rise from the earlier to the later one, at least
SAME_RATE = 0.02  # of the peak: where the rate rises by more, it may be its doing
SPREAD = 0.5  # standard deviation, in rises ahead
WIDENS = 4.0  # times as long as the rise has lasted, until when the spread grows; the mean until once as long


@dataclass(frozen=True)
class Turn:
    """The loss was lowest about step `lowest` and is `rise` nats above that at the last rows: `level` nats at step `step`."""

    lowest: float
    rise: float
    step: float
    level: float
    slope: float  # nats a step, of the later half of the rise
    sd: float  # of the level, nats
    rate_known: bool

    def ahead(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation (nats, both (m,)) at steps `x` (m,) of the rise continued."""
        lasted, ahead = self.step - self.lowest, x - self.step
        spread = SPREAD * self.slope * np.minimum(ahead, WIDENS * lasted)
        return self.level + self.slope * np.minimum(ahead, lasted), np.hypot(self.sd, spread)

    @property
    def note(self) -> str:
        why = (
            "which the learning rate does not explain"
            if self.rate_known
            else "unless by a learning rate that is not known"
        )
        return (
            f"the loss rises, by {self.rise:.2f} nats since about step {self.lowest:.0f}, {why}: of held-out text, overfitting "
            "(stop there, train on more text or regularise); of training text, divergence or harder data. No law here rises: a "
            "forecast continues the rise for as long as it has lasted, and its low bound is the laws'"
        )


def find_turn(x: np.ndarray, y: np.ndarray, plan: PlannedSchedule | None) -> Turn | None:
    """The turn of losses `y` (n,), nats, at steps `x` (n,) ascending; None: they have not turned."""
    noise = noise_of(y)
    each = -(-len(y) // GROUPS)
    if each > 1:  # of few rows a rise is as steep as a spike
        y = without_spikes(y, noise, np.zeros(len(y)))
    steps, levels = (values[len(values) % each :].reshape(-1, each).mean(1) for values in (x, y))
    lowest = int(np.argmin(levels))
    since = levels[lowest:]
    if len(since) < RISING or steps[-1] - steps[lowest] < LASTS * steps[-1]:
        return None
    sd = max(noise_of(levels), noise / float(np.sqrt(each)), 1e-4)
    if each > 1:  # few rows bend more than they share
        sd = max(sd, _off_line(steps[: lowest + 1], levels[: lowest + 1]))
    middle = (len(since) - LAST) // 2
    base, half, now = (float(np.median(since[k:][:LAST])) for k in (0, middle, -LAST))
    rise = now - base
    if (
        rise < max(LEAST, CLEAR * sd)
        or half - base < HALFWAY * rise
        or _ordered(since) < ORDERED
        or _rate_rises(plan, steps[lowest], x[-1])
    ):
        return None
    later = slice(-max(RISING, len(since) // 2 + 1), None)
    slope, level = np.polyfit(steps[later] - steps[-1], levels[later], 1)
    return Turn(
        float(steps[lowest]), rise, float(steps[-1]), float(level), float(max(slope, 0.0)), sd, plan is not None
    )


def _off_line(x: np.ndarray, y: np.ndarray) -> float:
    """How far losses (n,) before the lowest are off a line in log steps: neighbours that share their noise, as those of a running
    mean, are near one another."""
    near = x >= max(BEFORE * x[-1], 1e-9)
    if near.sum() < 4:
        return 0.0
    at, level = np.log(x[near]), y[near]
    off = np.abs(level - np.polyval(np.polyfit(at, level, 1), at))
    return float(np.median(off)) / 0.6745


def _ordered(y: np.ndarray) -> float:
    """Share of the pairs of (n,) whose later one is higher."""
    first, second = np.triu_indices(len(y), 1)
    return float(np.mean(y[second] > y[first]))


def _rate_rises(plan: PlannedSchedule | None, first: float, last: float) -> bool:
    """Whether the rate rises between two steps, or shortly before."""
    if plan is None:
        return False
    share = plan.past.share(np.linspace((1 - LASTS) * first, last, 100))
    return bool((share - np.minimum.accumulate(share)).max() > SAME_RATE)
