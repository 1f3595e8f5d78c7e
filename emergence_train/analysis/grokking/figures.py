"""Figures of a sweep: phase diagram, critical share against size, time against share, curves of one run."""

import numpy as np
import pandas as pd

from emergence_train.analysis.figures import FORECAST, HELD_OUT, Figure, Marker, Trace
from emergence_train.analysis.grokking.result import GrokkingResult, Outcome, RunResult

OUTCOMES: dict[Outcome, tuple[int, Marker]] = {  # place in the palette, marker
    "comprehension": (2, "circle"),
    "grokking": (0, "triangle"),
    "memorisation": (1, "square"),
    "confusion": (7, "cross"),
    "diverged": (5, "cross"),
    "unclear": (6, "down"),
}
UP: Marker = "triangle"
DOWN: Marker = "down"
OPEN = 0.15  # of the range of shares: how far beyond it an open end is drawn
BESIDE = 1.06  # factor between the places of two weight decays of one size
APART = 0.028  # between seeds of one place, of the axis' width in the logarithm


def phase_diagrams(result: GrokkingResult) -> tuple[Figure, ...]:
    """Outcomes by size and share, a figure for each weight decay; by weight decay and share where there is one size."""
    sizes = {run.params for run in result.runs}
    decays = sorted({run.weight_decay for run in result.runs})
    if len(sizes) == 1 and len(decays) > 1:
        return (_phase(result.runs, "weight_decay", "weight decay", "Outcomes by weight decay"),)
    named = len(decays) > 1
    return tuple(
        _phase(
            tuple(run for run in result.runs if run.weight_decay == decay),
            "params",
            "parameters",
            "Outcomes by size" + (f", weight decay {decay:g}" if named else ""),
        )
        for decay in decays
    )


def _phase(runs: tuple[RunResult, ...], axis: str, label: str, title: str) -> Figure:
    """Seeds of one place stand side by side."""
    values = np.array([getattr(run, axis) for run in runs], dtype=float)
    log = bool((values > 0).all())
    seeds = sorted({run.seed for run in runs})
    offset = np.array([seeds.index(run.seed) - (len(seeds) - 1) / 2 for run in runs])
    low, high = (np.log(values.min()), np.log(values.max())) if log else (values.min(), values.max())
    shift = offset * APART * max(high - low, 0.5 if log else 0.1)
    places = values * np.exp(shift) if log else values + shift
    shares = np.array([run.fraction for run in runs])
    traces = []
    for outcome, (colour, marker) in OUTCOMES.items():
        chosen = np.array([run.outcome == outcome for run in runs])
        if chosen.any():
            text = f"{outcome} ({chosen.sum()})"
            traces.append(Trace(places[chosen], shares[chosen], text, colour, line=False, points=True, marker=marker))
    note = "Seeds side by side. Comprehension, grokking: 90% of held-out questions less or more than 1,000 updates after train"
    span = max(float(np.ptp(shares)), 0.1)
    room = (shares.min() - 0.06 * span, shares.max() + 0.24 * span)  # for the legend
    label_y = "share of questions trained on"
    return Figure(title, label, label_y, tuple(traces), x_log=log, y_range=room, note=note)


def critical_share(result: GrokkingResult) -> Figure:
    """Critical share against size with its interval, a trace for each weight decay that has any run.

    An end that the sweep does not bound is drawn to the edge and ends in an arrow; without a value there is no point."""
    shares = np.array([run.fraction for run in result.runs])
    room = OPEN * max(float(np.ptp(shares)), 0.1)
    bottom, top = max(float(shares.min()) - room, 0.0), min(float(shares.max()) + room, 1.0)
    traces = []
    decays = sorted({row.weight_decay for row in result.critical_fraction})
    for number, decay in enumerate(decays):
        rows = [row for row in result.critical_fraction if row.weight_decay == decay and row.runs]
        columns = [[getattr(row, name) for row in rows] for name in ("params", "value", "low95", "high95")]
        x, value, low, high = np.array(columns, dtype=float)
        x = x * BESIDE ** (number - (len(decays) - 1) / 2)
        traces.append(Trace(x, value, f"weight decay {decay:g}", number, line=False, points=True))
        ends = np.where(np.isnan(low), bottom, low), np.where(np.isnan(high), top, high)
        traces.append(Trace(x, ends[0], "", number, line=False, low=ends[0], high=ends[1], bars=True))
        for open_end, place, marker in ((np.isnan(low), bottom, DOWN), (np.isnan(high), top, UP)):
            y = np.full(int(open_end.sum()), place)
            traces.append(Trace(x[open_end], y, "", number, line=False, points=True, marker=marker))
    title = "Critical share: half of the seeds generalise within the budget"
    note = "95% intervals; an arrow: not bounded by the shares that were tried"
    edge = 0.25 * room  # for the arrows
    span = (bottom - edge, top + edge)
    return Figure(title, "parameters", "share of the questions", tuple(traces), x_log=True, y_range=span, note=note)


def times(result: GrokkingResult) -> Figure:
    """Updates until each run generalised against its share, a colour for each size; medians joined."""
    traces = []
    names = list(dict.fromkeys((row.model, row.weight_decay) for row in result.times))
    for number, (model, decay) in enumerate(names):
        runs = [
            run for run in result.runs if (run.model, run.weight_decay) == (model, decay) and run.heldout_90 is not None
        ]
        if not runs:
            continue
        shares = np.array([run.fraction for run in runs])
        updates = np.array([run.heldout_90 for run in runs], dtype=float)
        traces.append(Trace(shares, updates, "", number, line=False, points=True))
        rows = [row for row in result.times if (row.model, row.weight_decay) == (model, decay) and row.median]
        medians = np.array([row.median for row in rows], dtype=float)
        label = model + (f", decay {decay:g}" if len({d for _, d in names}) > 1 else "")
        traces.append(Trace(np.array([row.fraction for row in rows]), medians, label, number, points=True))
    return Figure(
        "Time to generalise",
        "share of questions trained on",
        "updates until 90% held out",
        tuple(traces),
        y_log=True,
        note="Lines: medians over seeds, runs that did not generalise counted as later",
    )


def shown_run(result: GrokkingResult) -> RunResult:
    """The run whose delay is longest; without any, the first."""
    return max(result.runs, key=lambda run: -1 if run.delay is None else run.delay)


def run_curves(run: RunResult, curves: pd.DataFrame) -> tuple[Figure, ...]:
    """Accuracy, loss and norm of one run by update."""
    rows = curves[(curves["run"] == run.run) & (curves["update"] > 0)]
    x = rows["update"].to_numpy(float)
    figures = []
    for name, label in (("accuracy", "accuracy"), ("loss", "loss (nats a question)")):
        sides = (("train", "trained on", FORECAST), ("heldout", "held out", HELD_OUT))
        traces = tuple(Trace(x, rows[f"{side}_{name}"].to_numpy(float), text, colour) for side, text, colour in sides)
        figures.append(
            Figure(f"{run.run}: {name}", "updates", label, traces, x_log=True, y_log=name == "loss", note=run.outcome)
        )
    norm = Trace(x, rows["norm"].to_numpy(float), "norm", 3)
    figures.append(Figure(f"{run.run}: norm", "updates", "norm of all parameters", (norm,), x_log=True))
    return tuple(figures)
