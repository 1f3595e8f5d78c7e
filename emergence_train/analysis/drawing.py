"""Figures by matplotlib: as files (PNG, SVG, on request PDF) for slides, issue threads and papers, or on axes of the caller's.

Files are drawn without pyplot, so that the backend of a notebook stays as it is.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.figure import Figure as MatplotlibFigure
from matplotlib.ticker import NullLocator

from emergence_train.analysis.figures import PALETTE, Figure, Ramp, Trace, ramp_colours, ticks
from emergence_train.files import atomic_path
from emergence_train.formatting import short

STYLE: Any = {
    "figure.constrained_layout.use": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "font.size": 9,
    "pdf.fonttype": 42,  # TrueType: journals do not accept the default
    "svg.fonttype": "none",  # text stays text: searchable, and small files
    "svg.hashsalt": "emergence-train",  # the same figure gives the same file
}
# No date in a file: the same figure gives the same file.
METADATA = {".png": None, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
# A PDF embeds its font: more than half the time of all three.
DEFAULT, WITH_PDF = (".png", ".svg"), (".png", ".svg", ".pdf")
SHADES = 64  # steps of a colour bar
MARKERS = {"circle": "o", "square": "s", "triangle": "^", "down": "v", "right": ">", "cross": "X"}


def save(
    panels: Sequence[Figure],
    out: Path,
    stem: str,
    *,
    columns: int = 1,
    title: str = "",
    size: tuple[float, float] | None = None,
    suffixes: tuple[str, ...] = DEFAULT,
    dpi: int = 150,
) -> list[str]:
    """Draw `panels`, `columns` side by side, into files of `out`, one for each suffix; returns the file names.

    `size` (width, height) in inches; None: as the panels need.
    """
    with rc_context(STYLE):
        drawn = _drawn(panels, columns, title)
        if size is not None:
            drawn.set_size_inches(size)
        if (layout := drawn.get_layout_engine()) is not None:
            layout.execute(drawn)
        # Laid out once, not again for every file: nor does savefig then draw each once more to lay it out, a fourth of the time.
        with rc_context({"figure.constrained_layout.use": False}):
            drawn.set_layout_engine(None)
            for suffix in suffixes:
                with atomic_path(out / f"{stem}{suffix}") as temporary:
                    drawn.savefig(temporary, format=suffix[1:], dpi=dpi, metadata=METADATA[suffix])
    return [f"{stem}{suffix}" for suffix in suffixes]


def _drawn(panels: Sequence[Figure], columns: int, title: str) -> MatplotlibFigure:
    rows = math.ceil(len(panels) / columns)
    names = max(len(panel.y_names) for panel in panels)
    height = 1.2 + 0.24 * names if names else {1: 4.0}.get(rows * columns, 2.4 * rows)
    drawn = MatplotlibFigure(figsize=(max(6.4, 3.2 * columns), height))
    FigureCanvasAgg(drawn)
    axes = drawn.subplots(rows, columns, squeeze=False)
    small = columns > 1
    for axis, panel in zip(axes.flat, panels):
        draw(panel, axis, small=small)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    if title:
        drawn.suptitle(title, fontsize=11)
    ramps = [panel.ramp for panel in panels if panel.ramp is not None]
    if ramps:
        _colour_bar(drawn, axes, ramps[0])
    return drawn


def draw(panel: Figure, axis: Axes, *, small: bool = False) -> None:
    """Draw a figure on axes; its ramp gets no colour bar. `small`: in small type, for one of several."""
    shown: set[str] = set()
    for trace in panel.drawable():
        _trace(axis, trace, trace.label if trace.label not in shown and not _on_ramp(trace) else None)
        shown.add(trace.label)
    x_limits, y_limits = panel.limits()
    for log, limits, set_scale, set_limits, set_ticks, ruler in (
        (panel.x_log, x_limits, axis.set_xscale, axis.set_xlim, axis.set_xticks, axis.xaxis),
        (panel.y_log, y_limits, axis.set_yscale, axis.set_ylim, axis.set_yticks, axis.yaxis),
    ):
        set_scale("log" if log else "linear")
        set_limits(*limits)
        if not (panel.y_names and ruler is axis.yaxis):
            places = ticks(min(limits), max(limits), log)
            set_ticks(places, [short(place) for place in places])
        ruler.set_minor_locator(NullLocator())  # of a log axis they take a fourth of the drawing
    if panel.x_falling:
        axis.invert_xaxis()
    if panel.y_names:
        axis.set_yticks(range(len(panel.y_names)), panel.y_names, fontsize=7)
        axis.grid(axis="y", visible=False)
    size = 7 if small else 9
    title = panel.title[:40] + (f"\n{panel.note.split(';')[0]}" if panel.note else "") if small else panel.title
    axis.set_title(title, fontsize=8 if small else 10)
    axis.set_xlabel(panel.x_label, fontsize=size)
    axis.set_ylabel(panel.y_label, fontsize=size)
    axis.tick_params(labelsize=size - 1)
    handles, labels = axis.get_legend_handles_labels()
    if handles and panel.y_names:  # lines fill the whole axes
        axis.figure.legend(handles, labels, fontsize=7, frameon=False, loc="outside lower center", ncols=len(labels))
    elif handles:
        axis.legend(handles, labels, fontsize=6 if small else 7, frameon=False, ncols=1 if len(labels) < 5 else 2)


def _on_ramp(trace: Trace) -> bool:
    return trace.shade is not None


def _trace(axis: Axes, trace: Trace, label: str | None) -> None:
    colour = PALETTE[trace.colour % len(PALETTE)][0]
    if trace.shade is not None:
        colour = ramp_colours(trace.shade)[0]
    visible = trace.points or trace.line
    if trace.low is None or trace.high is None:
        pass
    elif trace.bars:
        ends = np.column_stack([trace.low, trace.high, np.full(len(trace.x), np.nan)])  # one path with gaps
        axis.plot(np.repeat(trace.x, 3), ends.ravel(), color=colour, linewidth=0.6, alpha=0.7)
    else:
        alone = label if not visible else None
        axis.fill_between(trace.x, trace.low, trace.high, color=colour, alpha=0.18, linewidth=0, label=alone)
    if trace.line and len(trace.x) > 1:
        style = "--" if trace.dashed else "-"
        axis.plot(trace.x, trace.y, style, color=colour, linewidth=1.1 if trace.dashed else 1.4, label=label)
        label = None
    if trace.points or (trace.line and len(trace.x) == 1):
        size = 4 if len(trace.x) < 60 else 2
        mark = MARKERS[trace.marker]
        axis.plot(trace.x, trace.y, mark, color=colour, markersize=size, markeredgewidth=0, label=label)


def _colour_bar(drawn: MatplotlibFigure, axes: Any, ramp: Ramp) -> None:
    colours = ListedColormap([ramp_colours(k / (SHADES - 1))[0] for k in range(SHADES)])
    low = max(ramp.low, 1)
    high = max(ramp.high, low * 1.01)
    norm = LogNorm(low, high)
    bar = drawn.colorbar(ScalarMappable(norm, colours), ax=axes.ravel().tolist(), label=ramp.label, aspect=30)
    places = [place for place in ticks(low, high, log=True) if low <= place <= high]
    bar.set_ticks(places, labels=[short(place) for place in places])
    bar.ax.yaxis.set_minor_locator(NullLocator())
