"""A figure on the page: caption, SVG, legend, note, and the numbers that page.js draws, reads out, lists and saves."""

import html
import json
from typing import Any

import numpy as np

from emergence_train.analysis.figures import Figure, Ramp, Trace
from emergence_train.formatting import short
from emergence_train.report.svg import figure_svg, shape, style

DIGITS = 5  # of numbers that are not whole
WHOLE = 2**53


def figure_html(figure: Figure) -> str:
    """The figure; "" where it has nothing to draw."""
    drawn = figure.drawable()
    if not drawn:
        return ""
    note = f'<p class="note">{html.escape(figure.note)}</p>' if figure.note else ""
    return (
        f'<figure class="chart"><figcaption>{html.escape(figure.title)}</figcaption>'
        f'<div class="plot">{figure_svg(figure, drawn)}</div>{_legend(drawn, figure.ramp)}{note}'
        f"{as_script(chart_data(figure, drawn))}</figure>"
    )


def as_script(data: Any, name: str = "") -> str:
    """Data for page.js. A script ends at "</script", and "<!--<script" would open another: no name can spell either."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    return f'<script type="application/json"{f" id={name}" if name else ""}>{text}</script>'


def chart_data(figure: Figure, drawn: list[Trace]) -> dict:
    """What page.js draws: axes, and of each trace its numbers; equal x of several traces are stored once.

    Keys: t title, x and y the labels, xl and yl log axes, f falling x, xr and yr limits, n names of rows, xs the arrays of x;
    s the traces: l label, r run, x number of its array, y, lo, hi, c colour or h shade, k of "line points dashed bars" the
    first letters, m marker. d: what of the rows is drawn, and where all of them are.
    """
    x_limits, y_limits = figure.limits()
    arrays: dict[tuple[float, ...], int] = {}
    series = []
    for trace in drawn:
        number = arrays.setdefault(tuple(_numbers(trace.x)), len(arrays))
        kinds = (("l", trace.line), ("p", trace.points), ("d", trace.dashed), ("b", trace.bars))
        entry: dict[str, Any] = {"x": number, "k": "".join(letter for letter, given in kinds if given)}
        entry |= {"l": trace.label} if trace.label else {}
        entry |= {"r": trace.run} if trace.run else {}
        entry |= {"y": _numbers(trace.y)} if trace.line or trace.points else {}
        if trace.low is not None and trace.high is not None:
            entry |= {"lo": _numbers(trace.low), "hi": _numbers(trace.high)}
        entry |= {"c": trace.colour} if trace.shade is None else {"h": round(trace.shade, 3)}
        entry |= {"m": trace.marker} if trace.marker != "circle" else {}
        series.append(entry)
    data: dict[str, Any] = {"t": figure.title, "x": figure.x_label, "y": figure.y_label}
    data |= {"xr": _numbers(np.array(x_limits)), "yr": _numbers(np.array(y_limits))}
    flags = {"xl": figure.x_log, "yl": figure.y_log, "f": figure.x_falling}
    data |= {name: 1 for name, given in flags.items() if given}
    data |= {"n": list(figure.y_names)} if figure.y_names else {}
    data |= {"d": figure.reduced} if figure.reduced else {}
    return data | {"xs": [list(array) for array in arrays], "s": series}


def _numbers(values: np.ndarray) -> list[float]:
    """Whole numbers as they are, others to DIGITS digits."""
    return [
        int(value) if value == round(value) and abs(value) < WHOLE else float(f"{value:.{DIGITS}g}")
        for value in np.asarray(values, float).tolist()
    ]


def _legend(drawn: list[Trace], ramp: Ramp | None) -> str:
    items = ""
    if ramp is not None:
        shades = [Trace(np.empty(0), np.empty(0), shade=k / 15) for k in range(16)]
        cells = "".join(f"<i {style(shade)}></i>" for shade in shades)
        items = (
            f'<span class="ramp">{html.escape(ramp.label)}: {short(ramp.low)} <b>{cells}</b> {short(ramp.high)}</span>'
        )
    shown = {""}
    for trace in drawn:
        if trace.label in shown or trace.shade is not None:
            continue
        shown.add(trace.label)
        items += f'<span class="entry">{_key(trace)}{html.escape(trace.label)}</span>'
    return f'<div class="legend">{items}</div>' if items else ""


def _key(trace: Trace) -> str:
    """The sign of a trace in the legend."""
    kind = "dashed" if trace.dashed else "dots" if trace.points and not trace.line else ""
    kind = kind if trace.line or trace.points else "area"
    if kind == "dots" and trace.marker != "circle":
        return f'<svg class="mark" viewBox="0 0 12 12" aria-hidden="true">{shape(trace.marker, 6, 6, 4, style(trace))}</svg>'
    return f'<i class="key {kind}" {style(trace)}></i>'
