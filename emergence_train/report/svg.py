"""Figures as inline SVG: axes, lines, points and bands, light and dark, for print and for readers without JavaScript.

Drawn here rather than by a charting library because a report must be one file of about a megabyte that needs no network and
follows the reader's colour scheme. page.js draws the same again from the data beside it, to zoom and to switch axes.
"""

import html
import math
from collections.abc import Iterable
from dataclasses import dataclass

from emergence_train.analysis.figures import PALETTE, Figure, Marker, Trace, ramp_colours, ticks
from emergence_train.formatting import short

WIDTH, HEIGHT = 480, 340
LEFT, RIGHT, TOP, BOTTOM = 66, 14, 14, 48
CHARACTER, ROW = 7.4, 24  # width of a character in an axis' names, height of a name's row
FINE = 10  # coordinates of marks are whole numbers of this part of a pixel: relative ones are short to write
MANY = 60  # points of a trace from which on they are drawn small
SHAPES: dict[Marker, str] = {  # of radius 1, round the middle
    "square": "M-1-1h2v2h-2z",
    "triangle": "M0-1.2 1.15 0.9h-2.3z",
    "down": "M0 1.2 1.15-0.9h-2.3z",
    "right": "M1.2 0-0.9 1.15v-2.3z",
    "cross": "M-1.2-0.6-0.6-1.2 0-0.6 0.6-1.2 1.2-0.6 0.6 0 1.2 0.6 0.6 1.2 0 0.6-0.6 1.2-1.2 0.6-0.6 0z",
}
CLIP = (
    f'<svg width="0" height="0" aria-hidden="true"><defs><clipPath id="plot"><rect x="0" y="{TOP - 4}" '
    f'width="{WIDTH}" height="{HEIGHT - TOP - BOTTOM + 8}"/></clipPath></defs></svg>'
)


def palette_css() -> str:
    """The palette as CSS variables --c0, --c1, ... that follow the colour scheme."""
    light, dark = (";".join(f"--c{n}:{pair[k]}" for n, pair in enumerate(PALETTE)) for k in (0, 1))
    return f":root{{{light}}}@media screen and (prefers-color-scheme: dark){{:root{{{dark}}}}}"


def figure_svg(figure: Figure, drawn: list[Trace]) -> str:
    """The SVG of a figure with the traces `drawn`, those that it can draw."""
    left = max(LEFT, 14 + CHARACTER * max(map(len, figure.y_names), default=0))
    bottom = TOP + ROW * len(figure.y_names) if figure.y_names else HEIGHT - BOTTOM
    x_limits, y_limits = figure.limits()
    ends = (WIDTH - RIGHT, left) if figure.x_falling else (left, WIDTH - RIGHT)
    x_axis = Axis(*x_limits, figure.x_log, ends)
    y_axis = Axis(*y_limits, figure.y_log, (bottom, TOP))
    marks = "".join(_draw(trace, x_axis, y_axis) for trace in drawn)
    clip = "" if figure.y_names else ' clip-path="url(#plot)"'
    label = html.escape(f"{figure.title}. {figure.y_label or 'rows'} against {figure.x_label}.")
    return (
        f'<svg viewBox="0 0 {WIDTH} {bottom + BOTTOM}" role="img" aria-label="{label}">'
        f"{_horizontal(x_axis, left, bottom, figure.x_label)}{_vertical(y_axis, left, figure)}"
        f'<g{clip}><g transform="scale({1 / FINE:g})">{marks}</g></g></svg>'
    )


@dataclass(frozen=True)
class Axis:
    """Values from `low` to `high` as pixels from `pixels[0]` to `pixels[1]`."""

    low: float
    high: float
    log: bool
    pixels: tuple[float, float]

    def at(self, value: float) -> float:
        """The pixel of a value."""
        f = math.log if self.log else float
        share = (f(value) - f(self.low)) / (f(self.high) - f(self.low))
        return self.pixels[0] + share * (self.pixels[1] - self.pixels[0])


def style(trace: Trace) -> str:
    """The attribute with a trace's colours on light (--l) and dark (--d)."""
    if trace.shade is not None:
        light, dark = ramp_colours(trace.shade)
        return f'style="--l:{light};--d:{dark}"'
    colour = f"var(--c{trace.colour % len(PALETTE)})"
    return f'style="--l:{colour};--d:{colour}"'


def shape(marker: Marker, x: float, y: float, radius: float, colours: str) -> str:
    """A point that is no circle."""
    return f'<path class="point" {colours} transform="translate({x:g} {y:g}) scale({radius:g})" d="{SHAPES[marker]}"/>'


def _horizontal(axis: Axis, left: float, bottom: float, label: str) -> str:
    out = f'<path class="axis" d="M{left:.0f} {bottom}H{WIDTH - RIGHT}"/>'
    for tick in ticks(axis.low, axis.high, axis.log):
        x = axis.at(tick)
        out += f'<path class="grid" d="M{x:.1f} {TOP}V{bottom}"/><text x="{x:.1f}" y="{bottom + 18}" '
        out += f'text-anchor="middle">{short(tick)}</text>'
    middle = (left + WIDTH - RIGHT) / 2
    return out + _label(f'x="{middle:.0f}" y="{bottom + BOTTOM - 8}"', label)


def _vertical(axis: Axis, left: float, figure: Figure) -> str:
    places: list[tuple[float, str]] = list(enumerate(figure.y_names))
    if not places:
        places = [(tick, short(tick)) for tick in ticks(axis.low, axis.high, axis.log)]
    out = ""
    for value, text in places:
        y = axis.at(value)
        out += f'<path class="grid" d="M{left:.0f} {y:.1f}H{WIDTH - RIGHT}"/>'
        out += f'<text x="{left - 7:.0f}" y="{y + 4.5:.1f}" text-anchor="end">{html.escape(text)}</text>'
    middle = (axis.pixels[0] + axis.pixels[1]) / 2
    return out + _label(f'transform="translate(14 {middle}) rotate(-90)"', figure.y_label) if figure.y_label else out


def _label(place: str, text: str) -> str:
    return f'<text class="label" {place} text-anchor="middle">{html.escape(text)}</text>'


def _draw(trace: Trace, x_axis: Axis, y_axis: Axis) -> str:
    x = [_fine(x_axis.at(value)) for value in trace.x]
    at = [(left, _fine(y_axis.at(value))) for left, value in zip(x, trace.y)]
    colours, out = style(trace), ""
    if trace.low is not None and trace.high is not None:
        low, high = ([_fine(y_axis.at(value)) for value in end] for end in (trace.low, trace.high))
        if trace.bars:
            out += f'<path class="bars" {colours} d="{"".join(f"M{a} {b}V{c}" for a, b, c in zip(x, low, high))}"/>'
        else:
            out += f'<path class="band" {colours} d="{path([*zip(x, high), *reversed([*zip(x, low)])])}z"/>'
    if trace.line and len(at) > 1:
        out += f'<path class="{_line_class(trace)}" {colours} d="{path(at)}"/>'
    if trace.points or (trace.line and len(at) == 1):
        out += _points(trace, at, colours)
    return out


def _line_class(trace: Trace) -> str:
    """On a ramp the newest line is the thickest."""
    if trace.shade is not None:
        return "line newest" if trace.shade >= 1 else "line older"
    return "line dashed" if trace.dashed else "line"


def _points(trace: Trace, at: list[tuple[int, int]], colours: str) -> str:
    """Circles are the round ends of lines of no length, one path for all of a trace."""
    small = len(at) >= MANY
    if trace.marker != "circle":
        return "".join(shape(trace.marker, x, y, (1.5 if small else 3) * FINE, colours) for x, y in at)
    return f'<path class="dots{" small" if small else ""}" {colours} d="{path(at, "h0m")}"/>'


def path(points: Iterable[tuple[int, int]], step: str = "l") -> str:
    """A path through whole coordinates, each after the first relative to the one before; `step` leads to the next."""
    (x, y), *rest = points
    out = f"M{x} {y}"
    for here, there in rest:
        down = there - y
        out += f"{step}{here - x}{'' if down < 0 else ' '}{down}"
        x, y = here, there
    return out + ("h0" if step != "l" else "")


def _fine(pixel: float) -> int:
    return round(min(max(pixel, -WIDTH), 2 * WIDTH) * FINE)
