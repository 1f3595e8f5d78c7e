"""Charts as inline SVG: axes, lines, points and bands, light and dark, with the data beside them for page.js.

Drawn here rather than by a charting library because a report must be one file of well under a megabyte that needs no
network, follows the reader's colour scheme, and can be walked through with the keyboard.
"""

import html
import json
import math
from dataclasses import dataclass, field

import numpy as np

WIDTH, HEIGHT = 480, 340
LEFT, RIGHT, TOP, BOTTOM = 66, 14, 14, 48
COLOURS = 8  # categorical colours in page.css, --c0 to --c7


@dataclass
class Series:
    """A line, points or both. `colour` is a number (categorical) or a (light, dark) pair of hex colours.

    `low` and `high` draw a band around the line. `quiet` keeps the series out of the legend and the read-out.
    """

    x: np.ndarray
    y: np.ndarray
    label: str
    colour: int | tuple[str, str] = 0
    line: bool = True
    points: bool = False
    dashed: bool = False
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    quiet: bool = False


@dataclass
class Chart:
    """Axis labels carry units. A log axis leaves out what is not positive. `ramp` (label, first, last) is the legend of
    a colour ramp and replaces the list of series."""

    title: str
    x_label: str
    y_label: str
    series: list[Series]
    x_log: bool = False
    y_log: bool = False
    y_range: tuple[float, float] | None = None
    ramp: tuple[str, str, str] | None = None
    note: str = ""
    x_falling: bool = False  # large values on the left
    table: list[list[str]] = field(default_factory=list)

    def html(self) -> str:
        """The figure: caption, SVG, legend, and the numbers as a table to open."""
        drawn = [_finite(series, self.x_log, self.y_log) for series in self.series]
        drawn = [series for series in drawn if len(series.x)]
        if not drawn:
            return f"<figure><figcaption>{html.escape(self.title)}</figcaption><p>No data.</p></figure>"
        ends = (WIDTH - RIGHT, LEFT) if self.x_falling else (LEFT, WIDTH - RIGHT)
        x_axis = _Axis([s.x for s in drawn], self.x_log, ends)
        ys = [v for s in drawn for v in (s.y, s.low, s.high) if v is not None]
        y_axis = _Axis(ys, self.y_log, (HEIGHT - BOTTOM, TOP), self.y_range)
        marks = "".join(_draw(series, x_axis, y_axis) for series in drawn)
        read_out = [
            {
                "label": s.label,
                "x": [short(v) for v in s.x],
                "y": [short(v) for v in s.y],
                "px": [round(x_axis.at(v), 1) for v in s.x],
                "py": [round(y_axis.at(v), 1) for v in s.y],
            }
            for s in drawn
            if not s.quiet
        ]
        data = json.dumps({"x": self.x_label, "y": self.y_label, "series": read_out}).replace("</", "<\\/")
        name = html.escape(self.title)
        return (
            f'<figure class="chart"><figcaption>{name}</figcaption>'
            f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" tabindex="0" aria-label="{name}. '
            f'{html.escape(self.y_label)} against {html.escape(self.x_label)}. Arrow keys read the values.">'
            f"{x_axis.horizontal(self.x_label)}{y_axis.vertical(self.y_label)}"
            f'<g clip-path="url(#plot)">{marks}</g><circle class="cursor" r="5"/></svg>'
            f'<output class="read-out" aria-live="polite"></output>'
            f"{_legend(drawn, self.ramp)}"
            + (f'<p class="note">{html.escape(self.note)}</p>' if self.note else "")
            + f'<script type="application/json">{data}</script></figure>'
        )


def ramp_colours(shares: np.ndarray) -> list[tuple[str, str]]:
    """(light, dark) colours for shares in [0, 1]: viridis without the end that would vanish in the background."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    viridis = colormaps["viridis"]
    return [(to_hex(viridis(0.9 * s)), to_hex(viridis(0.2 + 0.8 * s))) for s in shares]


CLIP = (
    f'<svg width="0" height="0" aria-hidden="true"><defs><clipPath id="plot"><rect x="{LEFT}" y="{TOP - 4}" '
    f'width="{WIDTH - LEFT - RIGHT + 4}" height="{HEIGHT - TOP - BOTTOM + 8}"/></clipPath></defs></svg>'
)


class _Axis:
    """Values to pixels, and the ticks between."""

    def __init__(self, values: list[np.ndarray], log: bool, pixels: tuple[float, float], span=None) -> None:
        together = np.concatenate([np.asarray(v, float) for v in values])
        low, high = span or (float(together.min()), float(together.max()))
        self.log, self.pixels = log, pixels
        if log:
            if high <= low:
                low, high = low / 2, high * 2
        else:
            room = (high - low) * 0.04 or abs(high) * 0.1 or 1.0
            low, high = (low, high) if span else (low - room, high + room)
        self.low, self.high = low, high

    def at(self, value: float) -> float:
        f = math.log if self.log else float
        share = (f(value) - f(self.low)) / (f(self.high) - f(self.low))
        return self.pixels[0] + share * (self.pixels[1] - self.pixels[0])

    def ticks(self) -> list[float]:
        if self.log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            for steps in ((1,), (1, 3), (1, 2, 5), tuple(range(1, 10))):
                found = [
                    s * 10.0**d for d in decades for s in steps if self.low * 0.999 <= s * 10.0**d <= self.high * 1.001
                ]
                if len(found) >= 3:
                    return found
            if len(found) >= 2:
                return found
        step = (self.high - self.low) / 5
        power = 10 ** math.floor(math.log10(step))
        step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= step)
        first = math.ceil(self.low / step)
        return [k * step for k in range(first, math.floor(self.high / step + 1e-9) + 1)]

    def horizontal(self, label: str) -> str:
        bottom = HEIGHT - BOTTOM
        out = f'<path class="axis" d="M{LEFT} {bottom}H{WIDTH - RIGHT}"/>'
        for tick in self.ticks():
            x = self.at(tick)
            out += f'<path class="grid" d="M{x:.1f} {TOP}V{bottom}"/><text x="{x:.1f}" y="{bottom + 18}" '
            out += f'text-anchor="middle">{short(tick)}</text>'
        middle = (LEFT + WIDTH - RIGHT) / 2
        return out + _label(f'x="{middle}" y="{HEIGHT - 8}"', label)

    def vertical(self, label: str) -> str:
        out = ""
        for tick in self.ticks():
            y = self.at(tick)
            out += f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/><text x="{LEFT - 7}" y="{y + 4.5:.1f}" '
            out += f'text-anchor="end">{short(tick)}</text>'
        middle = (TOP + HEIGHT - BOTTOM) / 2
        return out + _label(f'transform="translate(14 {middle}) rotate(-90)"', label)


def _label(place: str, text: str) -> str:
    return f'<text class="label" {place} text-anchor="middle">{html.escape(text)}</text>'


def _finite(series: Series, x_log: bool, y_log: bool) -> Series:
    x, y = np.asarray(series.x, float), np.asarray(series.y, float)
    keep = np.isfinite(x) & np.isfinite(y)
    if x_log:
        keep &= x > 0
    bands = []
    for band in (series.low, series.high):
        if band is not None:
            keep &= np.isfinite(np.asarray(band, float))
    if y_log:
        keep &= y > 0
        for band in (series.low,):
            if band is not None:
                keep &= np.asarray(band, float) > 0
    bands = [None if band is None else np.asarray(band, float)[keep] for band in (series.low, series.high)]
    return Series(
        x[keep], y[keep], series.label, series.colour, series.line, series.points, series.dashed, *bands, series.quiet
    )


def _style(colour: int | tuple[str, str]) -> str:
    if isinstance(colour, tuple):
        return f'style="--l:{colour[0]};--d:{colour[1]}"'
    return f'style="--l:var(--c{colour % COLOURS});--d:var(--c{colour % COLOURS})"'


def _draw(series: Series, x_axis: _Axis, y_axis: _Axis) -> str:
    at = [(x_axis.at(x), y_axis.at(y)) for x, y in zip(series.x, series.y)]
    style = _style(series.colour)
    out = ""
    if series.low is not None:
        above = [f"{x_axis.at(x):.1f} {y_axis.at(y):.1f}" for x, y in zip(series.x, series.high)]
        below = [f"{x_axis.at(x):.1f} {y_axis.at(y):.1f}" for x, y in zip(series.x, series.low)]
        out += f'<path class="band" {style} d="M{"L".join(above + below[::-1])}Z"/>'
    if series.line and len(at) > 1:
        kind = "line dashed" if series.dashed else "line"
        out += f'<path class="{kind}" {style} d="M{"L".join(f"{x:.1f} {y:.1f}" for x, y in at)}"/>'
    if series.points or (series.line and len(at) == 1):
        out += "".join(
            f'<circle class="point" {style} cx="{x:.1f}" cy="{y:.1f}" r="{3 if len(at) < 60 else 1.5}"/>' for x, y in at
        )
    return out


def _legend(drawn: list[Series], ramp: tuple[str, str, str] | None) -> str:
    items = ""
    if ramp:
        label, first, last = ramp
        cells = "".join(f"<i {_style(c)}></i>" for c in ramp_colours(np.linspace(0, 1, 16)))
        items = f'<span class="ramp">{html.escape(label)}: {first} <b>{cells}</b> {last}</span>'
    shown = set()
    for series in drawn:
        if series.quiet or series.label in shown or (ramp and isinstance(series.colour, tuple)):
            continue
        shown.add(series.label)
        kind = "dashed" if series.dashed else ("dots" if series.points and not series.line else "")
        items += f'<span><i class="key {kind}" {_style(series.colour)}></i>{html.escape(series.label)}</span>'
    return f'<div class="legend">{items}</div>'


def short(value: float) -> str:
    """A number as a person writes it on an axis: 0.5, 12, 30k, 2.5M, 400B."""
    value = float(value)
    for size, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{suffix}"
    return f"{value:.4g}"
