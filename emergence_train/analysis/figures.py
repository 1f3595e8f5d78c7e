"""Descriptions of figures, independent of the renderer: drawing.py draws files, report/svg.py HTML."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

# Categorical colours on a light and on a dark background
PALETTE = (
    ("#1f6fb4", "#6db3f2"),
    ("#c2541b", "#f2935c"),
    ("#2c8a4b", "#6fcf8e"),
    ("#8b4fb0", "#c79be8"),
    ("#a5761a", "#e0b458"),
    ("#b8336a", "#f07aa6"),
    ("#3a8f9b", "#74cbd6"),
    ("#6b6f76", "#aab1ba"),
)
# The colour map of that name at equal distances
VIRIDIS = (
    "#440154",
    "#48186a",
    "#472d7b",
    "#424086",
    "#3b528b",
    "#33638d",
    "#2c728e",
    "#26828e",
    "#21918c",
    "#1fa088",
    "#28ae80",
    "#3fbc73",
    "#5ec962",
    "#84d44b",
    "#addc30",
    "#d8e219",
    "#fde725",
)
FORECAST, HELD_OUT, OBSERVED = 0, 1, 7  # their places in the palette
INTERVALS = "50, 80 and 95% intervals"
Marker = Literal["circle", "square", "triangle", "down", "right", "cross"]


@dataclass(frozen=True)
class Trace:
    """A line, points or both through `x`, `y` (n,), with a band or `bars` from `low` to `high`.

    `colour` is a place in the palette; with `shade` in [0, 1] it is that place on the figure's ramp instead. A trace
    without a label is in no legend. `run` names the run that it is of, where a figure compares several.
    """

    x: np.ndarray
    y: np.ndarray
    label: str = ""
    colour: int = 0
    shade: float | None = None
    line: bool = True
    points: bool = False
    dashed: bool = False
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    bars: bool = False  # one from low to high at each x, instead of a band
    marker: Marker = "circle"  # of the points
    run: str = ""


@dataclass(frozen=True)
class Ramp:
    """The meaning of shades: a quantity from `low` (shade 0) to `high` (shade 1), equal in its logarithm."""

    label: str
    low: float
    high: float

    def shades(self, values: np.ndarray) -> np.ndarray:
        """(n,) shades of `values` (n,); values below 1 count as 1."""
        low, high = np.log(max(self.low, 1)), np.log(max(self.high, 1))
        return np.clip((np.log(np.maximum(values, 1)) - low) / max(high - low, 1e-9), 0, 1)


def fitted(name: str, most: int) -> str:
    """A name without its middle where it has more than `most` characters: how it begins and ends tells names apart."""
    end = most // 2
    return name if len(name) <= most else f"{name[: most - 1 - end]}…{name[-end:]}"


@dataclass(frozen=True)
class Figure:
    """Axes and traces. Axis labels have units. A log axis omits values that are not positive."""

    title: str
    x_label: str
    y_label: str
    traces: tuple[Trace, ...]
    x_log: bool = False
    y_log: bool = False
    x_falling: bool = False  # large values on the left
    y_range: tuple[float, float] | None = None
    y_names: tuple[str, ...] = ()  # names of y = 0, 1, ... from the top; no numbers then
    ramp: Ramp | None = None
    note: str = ""
    reduced: str = ""  # what of the rows is drawn, and where all are; "": all of them

    def drawable(self) -> list[Trace]:
        """The traces without points that are not finite, or not positive on a log axis; without empty traces."""
        traces = [_drawable(trace, self.x_log, self.y_log) for trace in self.traces]
        return [trace for trace in traces if len(trace.x)]

    def limits(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """((x low, x high), (y low, y high)) of the axes."""
        traces = self.drawable()
        ys = [v for trace in traces for v in (trace.y, trace.low, trace.high) if v is not None]
        span = (len(self.y_names) - 0.5, -0.5) if self.y_names else self.y_range
        return _limits([trace.x for trace in traces], self.x_log), span or _limits(ys, self.y_log)


def _drawable(trace: Trace, x_log: bool, y_log: bool) -> Trace:
    x, y = np.asarray(trace.x, float), np.asarray(trace.y, float)
    keep = np.isfinite(x) & np.isfinite(y)
    if x_log:
        keep &= x > 0
    if y_log:
        keep &= y > 0
    low, high = (None if end is None else np.asarray(end, float) for end in (trace.low, trace.high))
    for end in (low, high):
        if end is not None:
            keep &= np.isfinite(end)
    if y_log and low is not None:
        keep &= low > 0
    low, high = (None if end is None else end[keep] for end in (low, high))
    return replace(trace, x=x[keep], y=y[keep], low=low, high=high)


def _limits(values: Sequence[np.ndarray], log: bool) -> tuple[float, float]:
    """Smallest and largest value with a margin, never equal."""
    together = np.concatenate(values)
    low, high = float(together.min()), float(together.max())
    if log:
        room = (high / low) ** 0.02 if high > low else 2.0
        return low / room, high * room
    room = (high - low) * 0.04 or abs(high) * 0.1 or 1.0
    return low - room, high + room


def ticks(low: float, high: float, log: bool) -> list[float]:
    """A few round numbers between `low` and `high`."""
    if log:
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        inside: list[float] = []
        for steps in ((1,), (1, 3), (1, 2, 5), tuple(range(1, 10))):
            inside = [s * 10.0**d for d in decades for s in steps if low * 0.999 <= s * 10.0**d <= high * 1.001]
            if len(inside) >= 3:
                return inside
        if len(inside) >= 2:
            return inside
    step = (high - low) / 5
    power = 10 ** math.floor(math.log10(step))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= step)
    first = math.ceil(low / step)
    return [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]


def ramp_colours(shade: float) -> tuple[str, str]:
    """Colours on a (light, dark) background of a shade in [0, 1]: viridis, with the end farthest from the background for 1,
    the newest, without the end that is too close to it: a contrast of 3 at least."""
    return _viridis(0.57 * (1 - shade)), _viridis(0.38 + 0.62 * shade)


def _viridis(share: float) -> str:
    place = min(max(share, 0.0), 1.0) * (len(VIRIDIS) - 1)
    below = min(int(place), len(VIRIDIS) - 2)
    ends = [[int(colour[k : k + 2], 16) for k in (1, 3, 5)] for colour in VIRIDIS[below : below + 2]]
    mixed = [round(a + (place - below) * (b - a)) for a, b in zip(*ends)]
    return "#" + "".join(f"{part:02x}" for part in mixed)


def even(count: int, most: int) -> np.ndarray:
    """At most `most` evenly spaced indices of 0 ... count - 1; more points only enlarge the file."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(int))


def envelope(values: np.ndarray, most: int) -> np.ndarray:
    """At most `most` numbers of 0 ... n - 1, both ends among them, to draw `values` (n,) as points: half evenly spaced, as dense
    as the values lie, half the lowest and highest of each of equal runs of rows. A spike of one row in a million is drawn."""
    count = len(values)
    if count <= most:
        return np.arange(count)
    begins = np.linspace(0, count, max(most // 4, 1), endpoint=False).astype(int)
    ends = np.r_[begins[1:], count]
    peaks = [begin + pick(values[begin:end]) for begin, end in zip(begins, ends) for pick in (np.argmin, np.argmax)]
    return np.unique([*even(count, most - len(peaks)), *peaks])


def interval(
    low: float | None,
    value: float | None,
    high: float | None,
    place: int,
    label: str = "",
    colour: int = 0,
    dashed: bool = False,
) -> tuple[Trace, Trace]:
    """A horizontal line from `low` to `high` with a point at `value`, on the row `place` of a figure with y_names."""
    line, point = np.array([low, high], float), np.array([value], float)  # None becomes NaN, which is not drawn
    return (
        Trace(line, line * 0 + place, "", colour, dashed=dashed),
        Trace(point, point * 0 + place, label, colour, line=False, points=True),
    )
