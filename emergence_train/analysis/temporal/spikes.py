"""What of a loss curve are spikes, which come back to its level, and an end that has not come back.

Both are looked for beside what the planned rate does to the loss, with the drop of other runs: after a restart that warms up
again the loss dips with the rate, and only what is twice as large is a spike.
"""

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import median_filter

from emergence_train.analysis.planned_schedule import INTRINSIC, PlannedSchedule
from emergence_train.analysis.temporal import priors

# a row so many sds of noise, and nats, from the median of so many rows is a spike
NEAR, SPIKE, LEAST_SPIKE = 15, 5.0, 0.02
MOST, BEFORE, FEWEST = 14, 8, 5  # rows of an end at most, and rows before it: more of an end are a level of their own
ROWS = 600  # groups of rows at most
LEAST_RISE = 0.05  # nats of an end: validation losses wander by less
NOISE_ROWS = 40  # before an end, from which its noise is taken
EFFECT = INTRINSIC[2]  # fast^0.75, the kernel of most weight on public curves
LEAST_APART = 15  # rows; of fewer the noise is taken as independent from row to row
CORRELATED = 1.25  # times the noise of neighbours that rows further apart have, where it is correlated
MOST_MEDIANS = 5.0
MOST_SHARED = 0.5  # correlation of rows that far apart
DECIMALS = 3  # losses rounded to more have noise above their rounding


@dataclass(frozen=True)
class UnreturnedEnd:
    """The last `rows`, from `step` on, are at `level` and so `rise` above the rows before them; nats."""

    rows: int
    step: float
    level: float
    rise: float

    @property
    def note(self) -> str:
        rows = "row, step" if self.rows == 1 else f"{self.rows} rows, from step"
        return (
            f"the last {rows} {self.step:.0f}, at {self.level:.2f} nats, {self.rise:.2f} above the rows before and not back: "
            "left out of the law and interval, which hold if this is a spike; not after other data, a broken restart, divergence"
        )


def rate_effect(x: np.ndarray, plan: PlannedSchedule | None) -> np.ndarray:
    """(n,) nats at steps `x` that the planned rate adds, where it rises again; else 0: a fall alone makes no spike."""
    if plan is None or not plan.rises_again:
        return np.zeros(len(x))
    drop, _ = priors.SHIPPED.decay("mixed", EFFECT.name, plan)
    return -drop * plan.interpolated_decays(x, EFFECT)[0]


def noise_of(y: np.ndarray) -> float:
    """Standard deviation of losses (n,) about their curve, nats; of second differences, so that its slope does not count.
    At least that of their rounding."""
    if len(y) < 4:
        return 0.0
    return max(float(np.median(np.abs(np.diff(y, 2))) / 0.6745 / np.sqrt(6)), rounding_of(y))


def shared_noise(rest: np.ndarray, alone: float, rounding: float) -> tuple[float, float]:
    """The noise of rows that may share it with their neighbours, as a running mean's do, and its correlation from row to row.

    `rest` (n,) losses less a smooth curve and what the rate does to them; `alone` and `rounding` noise_of and rounding_of the
    losses. Neighbours that share their noise differ little. Third differences of rows far apart, which a curve does not enter
    either, are then clearly larger than those of neighbours; autoregressive noise that has both is taken, within what `rest` has.
    """
    apart = len(rest) // 10
    most = float(np.median(np.abs(rest - np.median(rest)))) / 0.6745
    if apart < LEAST_APART or most <= CORRELATED * alone:
        return alone, 0.0
    near, far = max(_third_differences(rest, 1), 20 * rounding**2), _third_differences(rest, apart)
    if near == 0 or far <= CORRELATED**2 * near:
        return alone, 0.0
    grid = np.linspace(0, MOST_SHARED ** (1 / apart), 400)  # of more shared noise too little is seen
    shared = _seen(grid**apart) / np.maximum(_seen(grid), 1e-12)
    correlation = float(np.interp(far / near, shared, grid))
    return min(alone / float(np.sqrt((1 - correlation) * (3 - correlation) / 3)), CORRELATED * most), correlation


def _third_differences(y: np.ndarray, apart: int) -> float:
    """Mean square of third differences of (n,), of rows so far apart, none counted beyond MOST_MEDIANS of their median."""
    third = np.abs(y[3 * apart :] - 3 * y[2 * apart : -apart] + 3 * y[apart : -2 * apart] - y[: -3 * apart])
    return float(np.mean(np.minimum(third, MOST_MEDIANS * np.median(third)) ** 2))


def _seen(correlation: np.ndarray) -> np.ndarray:
    """Share of the noise's variance in third differences of rows of such a correlation, as autoregressive noise has it."""
    return 1 - 1.5 * correlation + 0.6 * correlation**2 - 0.1 * correlation**3


def rounding_of(y: np.ndarray) -> float:
    """Standard deviation, nats, by which losses (n,) are off where all are written with DECIMALS decimals at most; else 0."""
    for decimals in range(DECIMALS + 1):
        if np.all(np.abs(np.round(y, decimals) - y) <= 1e-6 * np.abs(y)):
            return float(10.0**-decimals / np.sqrt(12))
    return 0.0


def without_spikes(y: np.ndarray, noise: float, effect: np.ndarray) -> np.ndarray:
    """Losses (n,) with those far from the median of their neighbours set to it; a curve that falls is left as it is, and so is
    its end. `effect` (n,) of rate_effect."""
    if len(y) < NEAR:
        return y
    level = y - effect
    far = max(SPIKE * noise, LEAST_SPIKE) + np.abs(effect - median_filter(effect, NEAR, mode="nearest"))
    for _ in range(2):  # spikes near one another lift the first median
        usual = median_filter(level, NEAR, mode="nearest")
        level = np.where(np.abs(level - usual) > far, usual, level)
    return np.where(level == y - effect, y, level + effect)


def unreturned_end(x: np.ndarray, y: np.ndarray, effect: np.ndarray) -> UnreturnedEnd | None:
    """The end of losses `y` (n,) at steps `x` (n,) that lies above all before it by more than their noise and range; None: there
    is none. A spike or a new level: which, later rows tell. Of many rows also groups are looked at, by their lowest row."""
    most = group_size(len(y))
    for each in sorted({most} | {2**k for k in range(most.bit_length())}):
        whole = slice(len(y) % each, None)
        lowest, at = y[whole].reshape(-1, each).min(1), effect[whole][::each]
        groups, rise = _raised_groups(lowest, at)
        if groups:
            rows = groups * each
            halfway = float(np.median(y[-rows:])) - rise / 2
            beside = y[-rows - each + 1 : -rows]  # of the group that is raised in part
            rows += int(np.cumprod(beside[::-1] > halfway).sum())
            return UnreturnedEnd(rows, float(x[-rows]), float(np.median(y[-rows:])), rise)
    return None


def _raised_groups(y: np.ndarray, effect: np.ndarray) -> tuple[int, float]:
    """How many at the end of `y` (n,) lie above all before them, and by how much; nats."""
    level = y - effect
    for rows in range(min(MOST, len(y) - FEWEST), 0, -1):
        tail = slice(max(len(y) - rows - NOISE_ROWS, 0), len(y) - rows)
        if level[-rows:].min() <= level[tail].min() + LEAST_RISE:
            continue  # as of nearly all curves: the median below is no lower
        noise = noise_of(y[tail])
        before = without_spikes(level[tail], noise, np.zeros(len(level[tail])))[-BEFORE:]
        usual = float(np.median(before))
        far = max(SPIKE * noise, LEAST_RISE, float(np.ptp(before))) + float(np.ptp(effect[-rows - BEFORE :]))
        if level[-rows:].min() > usual + far:
            return rows, float(np.median(y[-rows:])) - float(np.median(y[tail][-BEFORE:]))
    return 0, 0.0


def group_size(rows: int) -> int:
    """Rows of a group, of which there are ROWS at most."""
    return -(-rows // ROWS)


def returned_part(
    x: np.ndarray, y: np.ndarray, plan: PlannedSchedule | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, UnreturnedEnd | None]:
    """Steps, losses and rate_effect (each (k,)) without an unreturned end, and that end."""
    effect = rate_effect(x, plan)
    end = unreturned_end(x, y, effect)
    k = len(x) - (end.rows if end is not None else 0)
    return x[:k], y[:k], effect[:k], end
