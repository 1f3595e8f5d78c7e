"""Figures as inline SVG: axes, lines, points and bands, light and dark, with the data beside them for page.js.

Drawn here rather than by a charting library because a report must be one file of well under a megabyte that needs no
network, follows the reader's colour scheme, and can be walked through with the keyboard.
"""

import html
import json
import math
from dataclasses import dataclass

import numpy as np

from emergence_train.analysis.figures import PALETTE, Figure, Marker, Ramp, Trace, ramp_colours, short, ticks

WIDTH, HEIGHT = 480, 340
LEFT, RIGHT, TOP, BOTTOM = 66, 14, 14, 48
CHARACTER, ROW = 7.4, 24  # width of a character in an axis' names, height of a name's row
SHAPES: dict[Marker, str] = {  # of radius 1, round the middle
    "square": "M-1-1h2v2h-2z",
    "triangle": "M0-1.2 1.15 0.9h-2.3z",
    "cross": "M-1.2-0.6-0.6-1.2 0-0.6 0.6-1.2 1.2-0.6 0.6 0 1.2 0.6 0.6 1.2 0 0.6-0.6 1.2-1.2 0.6-0.6 0z",
}
CLIP = (
    f'<svg width="0" height="0" aria-hidden="true"><defs><clipPath id="plot"><rect x="0" y="{TOP - 4}" '
    f'width="{WIDTH}" height="{HEIGHT - TOP - BOTTOM + 8}"/></clipPath></defs></svg>'
)


def palette_css() -> str:
    """The palette as CSS variables --c0, --c1, ... that follow the colour scheme."""
    light, dark = (";".join(f"--c{n}:{pair[k]}" for n, pair in enumerate(PALETTE)) for k in (0, 1))
    return f":root{{{light}}}@media (prefers-color-scheme: dark){{:root{{{dark}}}}}"


def figure_html(figure: Figure) -> str:
    """The figure with caption, SVG, legend, note, and the numbers that page.js reads out."""
    drawn = figure.drawable()
    name = html.escape(figure.title)
    if not drawn:
        return f"<figure><figcaption>{name}</figcaption><p>No data.</p></figure>"
    left = max(LEFT, 14 + CHARACTER * max(map(len, figure.y_names), default=0))
    bottom = TOP + ROW * len(figure.y_names) if figure.y_names else HEIGHT - BOTTOM
    x_limits, y_limits = figure.limits()
    ends = (WIDTH - RIGHT, left) if figure.x_falling else (left, WIDTH - RIGHT)
    x_axis = Axis(*x_limits, figure.x_log, ends)
    y_axis = Axis(*y_limits, figure.y_log, (bottom, TOP))
    marks = "".join(_draw(trace, x_axis, y_axis) for trace in drawn)
    read_out = [
        {
            "label": trace.label,
            "x": [short(v) for v in trace.x],
            "y": [figure.y_names[round(v)] if figure.y_names else short(v) for v in trace.y],
            "px": [round(x_axis.at(v), 1) for v in trace.x],
            "py": [round(y_axis.at(v), 1) for v in trace.y],
        }
        for trace in drawn
        if trace.label and (trace.line or trace.points)
    ]
    data = {"x": figure.x_label, "y": figure.y_label, "series": read_out}
    clip = "" if figure.y_names else ' clip-path="url(#plot)"'
    # A script ends at "</script", and "<!--<script" would open another: no name can spell either.
    text = json.dumps(data, ensure_ascii=False).replace("<", "\\u003c")
    return (
        f'<figure class="chart"><figcaption>{name}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {bottom + BOTTOM}" role="img" tabindex="0" aria-label="{name}. '
        f'{html.escape(figure.y_label)} against {html.escape(figure.x_label)}. Arrow keys read the values.">'
        f"{_horizontal(x_axis, left, bottom, figure.x_label)}{_vertical(y_axis, left, figure)}"
        f'<g{clip}>{marks}</g><circle class="cursor" r="5"/></svg>'
        f'<output class="read-out" aria-live="polite"></output>'
        f"{_legend(drawn, figure.ramp)}"
        + (f'<p class="note">{html.escape(figure.note)}</p>' if figure.note else "")
        + f'<script type="application/json">{text}</script></figure>'
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


def _style(trace: Trace) -> str:
    if trace.shade is not None:
        light, dark = ramp_colours(trace.shade)
        return f'style="--l:{light};--d:{dark}"'
    colour = f"var(--c{trace.colour % len(PALETTE)})"
    return f'style="--l:{colour};--d:{colour}"'


def _draw(trace: Trace, x_axis: Axis, y_axis: Axis) -> str:
    at = [(x_axis.at(x), y_axis.at(y)) for x, y in zip(trace.x, trace.y)]
    style = _style(trace)
    out = ""
    if trace.low is not None and trace.high is not None:
        low, high = ([y_axis.at(y) for y in end] for end in (trace.low, trace.high))
        if trace.bars:
            lines = "".join(f"M{x:.1f} {a:.1f}V{b:.1f}" for (x, _), a, b in zip(at, low, high))
            out += f'<path class="bars" {style} d="{lines}"/>'
        else:
            above, below = ([f"{x:.1f} {y:.1f}" for (x, _), y in zip(at, end)] for end in (high, low))
            out += f'<path class="band" {style} d="M{"L".join(above + below[::-1])}Z"/>'
    if trace.line and len(at) > 1:
        kind = "line dashed" if trace.dashed else "line"
        out += f'<path class="{kind}" {style} d="M{"L".join(f"{x:.1f} {y:.1f}" for x, y in at)}"/>'
    if trace.points or (trace.line and len(at) == 1):
        radius = 3 if len(at) < 60 else 1.5
        out += "".join(_point(trace.marker, x, y, radius, style) for x, y in at)
    return out


def _point(marker: Marker, x: float, y: float, radius: float, style: str) -> str:
    if marker == "circle":
        return f'<circle class="point" {style} cx="{x:.1f}" cy="{y:.1f}" r="{radius}"/>'
    return f'<path class="point" {style} transform="translate({x:.1f} {y:.1f}) scale({radius})" d="{SHAPES[marker]}"/>'


def _legend(drawn: list[Trace], ramp: Ramp | None) -> str:
    items = ""
    if ramp is not None:
        shades = [Trace(np.empty(0), np.empty(0), shade=k / 15) for k in range(16)]
        cells = "".join(f"<i {_style(shade)}></i>" for shade in shades)
        items = (
            f'<span class="ramp">{html.escape(ramp.label)}: {short(ramp.low)} <b>{cells}</b> {short(ramp.high)}</span>'
        )
    shown = {""}
    for trace in drawn:
        if trace.label in shown or trace.shade is not None:
            continue
        shown.add(trace.label)
        kind = "dashed" if trace.dashed else "dots" if trace.points and not trace.line else ""
        kind = kind if trace.line or trace.points else "area"
        if kind == "dots" and trace.marker != "circle":
            mark = _point(trace.marker, 6, 6, 4, _style(trace))
            shape = f'<svg class="mark" viewBox="0 0 12 12" aria-hidden="true">{mark}</svg>'
            items += f"<span>{shape}{html.escape(trace.label)}</span>"
            continue
        items += f'<span><i class="key {kind}" {_style(trace)}></i>{html.escape(trace.label)}</span>'
    return f'<div class="legend">{items}</div>'
