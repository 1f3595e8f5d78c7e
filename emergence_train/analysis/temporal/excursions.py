"""Rises of the loss that it takes back: other data for a while, a slow recovery. Longer than the spikes that a median clears.

They are looked for beside a course through most rows, a curve in log steps and what the planned rate does to the loss: first
through a low quantile, which rows above it do not draw up, then through the rows that are not above the course before. A rise
that only ends a dip (data that are easier for a while), or that stays, is none. The limits were set on made curves, and on 90
public logs, each seen to 20, 40, 70 and 100%, so that none has one.
"""

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import median_filter

from emergence_train.analysis.planned_schedule import AT_ONCE, INTRINSIC, PlannedSchedule
from emergence_train.analysis.temporal.jumps import find_jump
from emergence_train.analysis.temporal.spikes import group_size, noise_of, returned_part, without_spikes

FIRST = 0.05  # share of the observed steps before which a course bends too much
QUANTILE = 0.3  # of the rows that lie below the first course
# Deviations of a normal distribution from QUANTILE / 3 to QUANTILE, and from there to the middle
APART, BELOW = 0.757, 0.524
ROUNDS, REWEIGHTED = 4, 50
NEAR = 7  # rows of a running median
CLEAR, LEAST = 5.0, 0.05  # deviations of the rows on the course, and nats, by which the highest row is above it
BESIDE, BEHIND = 8, 5  # rows on the course before and behind, at least
RETURNING = 0.25  # of the rise: an end that is no higher is on its way back
WAKE = 0.5  # of the way back from half the rise, by which it is above its course for longer than its noise shows
LEFT = 0.25  # of a rise that a course with a dip before it leaves, at most, where the rise is that dip's end
# Of a rise, and of the noise, that a course with another level leaves, at most, where the rise stays; slow returns leave more
LEVEL_LEFT, NOISE_LEFT = 0.1, 2.5
SAME_RATE = 0.02  # of the peak: where the rate rises by more before the loss does, it may be its doing


@dataclass(frozen=True)
class Excursion:
    """From step `first` to step `last` the loss was above its course, by `rise` nats at most."""

    first: float
    last: float
    rise: float

    def rows(self, x: np.ndarray) -> np.ndarray:
        """(n,) which of the rows at steps `x` are in it."""
        return (x >= self.first) & (x <= self.last)

    def note(self, x: np.ndarray) -> str:
        back = "comes back" if self.last < x[-1] else "is on its way back"
        return (
            f"the loss rises above its course by up to {self.rise:.2f} nats from step {self.first:.0f} to {self.last:.0f} and "
            f"{back}, which the learning rate does not explain (give --schedule if the log lacks restarts): these "
            f"{self.rows(x).sum()} rows are left out of the fit"
        )


def excursions(x: np.ndarray, y: np.ndarray, plan: PlannedSchedule) -> list[Excursion]:
    """Those of losses `y` (n,), nats, at steps `x` (n,) ascending, at the rates of `plan`."""
    logged = x, y
    x, y, effect, _ = returned_part(x, y, plan)
    keep = x >= max(FIRST * x[-1], 1.2 * plan.warmup_end, 1e-9)
    x, y, effect = x[keep], y[keep], effect[keep]
    if len(x) < 2 * (BESIDE + NEAR):
        return []
    each = group_size(len(x))
    y = without_spikes(y, noise_of(y), effect)
    rows = slice(len(y) % each, None)
    steps, levels = (values[rows].reshape(-1, each).mean(1) for values in (x, y))
    terms = _terms(steps, plan)
    ranges, above = _off_course(levels, terms)
    above, share, ends = _smooth(above), plan.share_over_batch(steps), x[rows].reshape(-1, each)
    jump = find_jump(*logged, plan) if ranges else None  # the one that a forecast looks for
    rises = []
    for first, last in (_with_wake(first, last, above) for first, last in ranges):
        if not _rises(first, last, levels, share):
            continue
        rise = Excursion(float(ends[first, 0]), float(ends[last - 1, -1]), float(above[first:last].max()))
        raised = np.arange(len(steps)) >= first + np.argmax(above[first:last] > rise.rise / 2)
        fall = find_jump(x[x < rise.first], y[x < rise.first], plan)
        ends_dip = (
            fall is not None
            and fall.size < -rise.rise / 2
            and _off_by((steps >= fall.step) & ~raised, levels, terms) < LEFT * rise.rise
        )
        stays = (  # the rate's terms bend a course to what looks like a return
            jump is not None
            and jump.size > 0
            and jump.lasts
            and steps[first - BESIDE] <= jump.step <= rise.last
            and _off_by(raised, levels, terms)
            < max(LEVEL_LEFT * min(rise.rise, jump.size), NOISE_LEFT * noise_of(levels))
        )
        if not (ends_dip or stays):
            rises.append(rise)
    return rises


def _smooth(y: np.ndarray) -> np.ndarray:
    return median_filter(y, NEAR, mode="nearest")


def _terms(x: np.ndarray, plan: PlannedSchedule) -> np.ndarray:
    """(n, k) functions of the steps that a course is made of."""
    return np.column_stack([np.ones(len(x)), np.log(x), x**-0.5, *plan.interpolated_decays(x, AT_ONCE, INTRINSIC[2])])


def _off_course(y: np.ndarray, terms: np.ndarray) -> tuple[list[tuple[int, int]], np.ndarray]:
    """First row, and the one behind the last, of what lies above the course of losses (n,), and how far each row does."""
    ranges: list[tuple[int, int]] = []
    out = np.zeros(len(y), bool)
    for _ in range(ROUNDS):
        above = y - terms @ (_course(terms, y, ~out) if ranges else _low_course(terms, y))
        ranges, before = _ranges(above, out), out
        out = np.zeros(len(y), bool)
        for first, last in ranges:
            out[first:last] = True
        if (out == before).all():
            break
    return ranges, above


def _course(terms: np.ndarray, y: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Coefficients (k,) by least squares."""
    root = np.sqrt(weight.astype(float))
    scale = np.abs(terms).max(0).clip(1e-12)
    return np.linalg.lstsq(terms / scale * root[:, None], y * root, rcond=1e-9)[0] / scale


def _low_course(terms: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Coefficients (k,) of the course below which QUANTILE of the rows lie, by reweighted least squares."""
    weight, least = np.ones(len(y)), max(noise_of(y), 1e-6) / 10
    for _ in range(REWEIGHTED):
        coef = _course(terms, y, weight)
        off = y - terms @ coef
        weight = np.where(off > 0, QUANTILE, 1 - QUANTILE) / np.maximum(np.abs(off), least)
    return coef


def _ranges(above: np.ndarray, out: np.ndarray) -> list[tuple[int, int]]:
    """What of rows (n,) that are so far `above` a course, fitted without those `out`, has left it and is back."""
    rest, noise = above[~out], max(noise_of(above), 1e-4)
    middle = float(np.median(rest))
    scatter = max(float(np.median(np.abs(rest - middle))) / 0.6745, noise)
    if not out.any():  # the lowest rows scatter as all on the course do, however many are above it
        low, lowest = np.quantile(rest, [QUANTILE, QUANTILE / 3])
        scatter = min(max(float(low - lowest) / APART, noise), scatter)
        middle = min(float(low) + BELOW * scatter, middle)
    smooth = _smooth(above) - middle
    high = smooth > max(CLEAR * scatter, LEAST)
    edges = np.flatnonzero(np.diff(np.r_[False, smooth > scatter, False].astype(int))).reshape(-1, 2)
    ranges = []
    for first, last in edges:
        if first < BESIDE or not high[first:last].any():
            continue
        if last <= len(above) - BEHIND:
            ranges.append((int(first), int(last)))
        elif smooth[-1] < RETURNING * smooth[first:].max():
            ranges.append((int(first), len(above)))
    return ranges


def _with_wake(first: int, last: int, above: np.ndarray) -> tuple[int, int]:
    """A range of rows (n,), smoothly `above` the course, with those that are still above it by less than the noise."""
    rise = above[first:last]
    wake = int(WAKE * (last - first - 1 - np.flatnonzero(rise > rise.max() / 2)[-1]))
    return first, last + wake if last + wake <= len(above) - BEHIND else len(above)


def _rises(first: int, last: int, y: np.ndarray, share: np.ndarray) -> bool:
    """Whether the loss itself rises, and the rate does not."""
    smooth = _smooth(y)
    top = first + int(np.argmax(smooth[first:last]))
    before = share[max(first - max(BESIDE, top - first), 0) : top + 1]  # the loss may follow a rate slowly
    raised = (before - np.minimum.accumulate(before)).max()
    return bool(smooth[top] - smooth[first - BESIDE : top + 1].min() > LEAST and raised <= SAME_RATE)


def _off_by(other: np.ndarray, y: np.ndarray, terms: np.ndarray) -> float:
    """How far losses `y` (n,) lie, smoothly, from a course through all of them that has `other` rows (n,) on another level."""
    both = np.column_stack([terms, other])
    return float(np.abs(_smooth(y - both @ _course(both, y, np.ones(len(y))))[BESIDE:]).max())
