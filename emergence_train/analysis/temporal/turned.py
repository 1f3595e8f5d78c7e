"""A loss that has turned: it rises, and neither a spike nor the learning rate explains it.

Mostly a held-out loss of a text that is trained on many times over, once the model learns its lines by heart. No law here
rises, so the rise itself is continued, as a straight line in steps; the interval reaches from a rise that stops to one of twice
that. The public logs of this kind at hand (seven, all of one text, Shakespeare's plays by characters) rose by 0.4 to 1.6 times
the line, median 0.9. Of 240 other public logs, each seen to 10, 15, ... 100%, two training losses are taken to have turned, at a
point each: of a run that diverges, and of one whose text gets harder for a while.
"""

from dataclasses import dataclass

import numpy as np

from emergence_train.analysis.planned_schedule import PlannedSchedule
from emergence_train.analysis.temporal.spikes import noise_of, without_spikes

GROUPS = 40  # of rows at most
FEWEST, RISING = 6, 4  # groups in all, and from the lowest on, at least
LASTS = 0.1  # share of the observed steps since the lowest group, at least
CLEAR, LEAST = 4.0, 0.02  # deviations of a group, and nats, that the last groups are above the lowest
LAST = 3  # groups that the level now is the median of
ORDERED = 0.8  # share of pairs of the groups since the lowest that rise from the earlier to the later one, at least
SAME_RATE = 0.02  # of the peak: where the rate rises by more, it may be its doing
SPREAD = 0.5  # standard deviation, in rises ahead


@dataclass(frozen=True)
class Turn:
    """The loss was lowest about step `lowest` and is `rise` nats above that at the last rows: `level` nats at step `step`."""

    lowest: float
    rise: float
    step: float
    level: float
    slope: float  # nats a step, of the later half of the rise
    sd: float  # of the level, nats

    def ahead(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation (nats, both (m,)) at steps `x` (m,) of the rise continued."""
        more = self.slope * (x - self.step)
        return self.level + more, np.hypot(self.sd, SPREAD * more)

    @property
    def note(self) -> str:
        return (
            f"the loss rises, by {self.rise:.2f} nats since about step {self.lowest:.0f}, which the learning rate does not "
            "explain: of held-out text, overfitting (stop there, train on more text or regularise); of training text, divergence "
            "or harder data. No law here rises: the forecast continues the rise as a straight line"
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
    if len(levels) < FEWEST or len(since) < RISING or steps[-1] - steps[lowest] < LASTS * steps[-1]:
        return None
    sd = max(noise_of(levels), noise / float(np.sqrt(each)), 1e-4)
    rise = float(np.median(since[-LAST:]) - since[0])
    if rise < max(LEAST, CLEAR * sd) or _ordered(since) < ORDERED or _rate_rises(plan, steps[lowest], x[-1]):
        return None
    later = slice(-max(RISING, len(since) // 2 + 1), None)
    slope, level = np.polyfit(steps[later] - steps[-1], levels[later], 1)
    return Turn(float(steps[lowest]), rise, float(steps[-1]), float(level), float(max(slope, 0.0)), sd)


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
