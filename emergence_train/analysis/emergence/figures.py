"""Static figures of the emergence analysis, as PNG and SVG: small multiples against loss and compute, what size adds at
equal loss, and when runs gain abilities."""

import math
import re
from pathlib import Path

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.ticker import EngFormatter, NullLocator

from emergence_train.analysis.emergence.analyze import Finding
from emergence_train.analysis.emergence.mirage import continuous
from emergence_train.analysis.emergence.verdict import ORDER
from emergence_train.analysis.figures import MODEL, plt, save, styled

PANELS = 12  # of the first family's page (the one with most rows)
FEWER = 8  # of other pages
FAMILIES = 4  # drawn, one page each; the tables have the rest
COLUMNS = 4
POINTS = 250  # drawn in a panel
LINES = 30  # of the size figure and the timeline
SUFFIXES, DPI = (".png", ".svg"), 130  # small multiples of scatter plots: many and large


def draw(findings: list[Finding], result: dict, out: Path) -> list[str]:
    """Write the figures into `out`; returns the file names."""
    names: list[str] = []
    with styled():
        rows: dict[str, int] = {}
        for one in findings:
            rows[one.task.family] = rows.get(one.task.family, 0) + len(one.task.frame)
        families = sorted(rows, key=lambda name: (-rows[name], name))
        for place, family in enumerate(families[:FAMILIES]):
            chosen = _main([one for one in findings if one.task.family == family])
            stem = re.sub(r"[^A-Za-z0-9._-]+", "-", family)[:40]
            stem = f"-{stem}" if stem and len(families) > 1 else ""
            part = chosen[: PANELS if place == 0 else FEWER]
            names += save(_multiples(part, "loss", family), out, f"performance-loss{stem}", SUFFIXES, DPI)
            if place == 0:
                names += save(
                    _multiples(chosen[:FEWER], "compute", family), out, f"performance-compute{stem}", SUFFIXES, DPI
                )
        sized = [one for one in findings if one.size.value is not None and one.task.best == 1.0]
        if sized:
            names += save(_sizes(sized[:LINES]), out, "size-effect", SUFFIXES, DPI)
        if result["abilities"]:
            names += save(_timeline(result["abilities"]), out, "abilities", SUFFIXES, DPI)
    return names


def _main(findings: list[Finding]) -> list[Finding]:
    """One metric of each task (accuracy before the continuous ones), the telling verdicts first."""
    first: dict[str, Finding] = {}
    for one in sorted(findings, key=lambda f: (continuous(f.task.metric), f.task.metric)):
        first.setdefault(one.task.task, one)
    return sorted(first.values(), key=lambda one: (ORDER.index(one.verdict.name), one.task.task))


def _multiples(findings: list[Finding], against: str, family: str):
    columns = min(COLUMNS, len(findings))
    rows = math.ceil(len(findings) / columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(3.0 * columns + 1.0, 2.5 * rows + 0.5), squeeze=False, layout="none"
    )
    width, height = figure.get_size_inches()
    figure.subplots_adjust(0.55 / width, 0.6 / height, 1 - 1.3 / width, 1 - 0.85 / height, 0.28, 0.5)
    params = np.concatenate([one.task.frame["params"] for one in findings])
    norm = LogNorm(max(params.min(), 1) * 0.8, max(params.max(), 2) * 1.25)
    colours = plt.colormaps["viridis_r"]
    for axis, one in zip(axes.flat, findings):
        _panel(axis, one, against, norm, colours)
    for axis in axes.flat[len(findings) :]:
        axis.set_visible(False)
    label = (
        "loss (nats per token), falling" if against == "loss" else "training compute, 6 x parameters x tokens (FLOP)"
    )
    figure.supxlabel(label, fontsize=9)
    title = f"Performance against {against}" + (f": {family}" if family else "")
    figure.suptitle(title, fontsize=11)
    bar = figure.colorbar(
        plt.cm.ScalarMappable(norm, colours),
        cax=figure.add_axes((1 - 0.95 / width, 0.2, 0.15 / width, 0.6)),
        label="parameters",
    )
    bar.ax.yaxis.set_major_formatter(EngFormatter(sep=""))
    bar.ax.yaxis.set_minor_formatter(plt.NullFormatter())
    return figure


def _panel(axis, one: Finding, against: str, norm, colours) -> None:
    task, verdict = one.task, one.verdict
    frame = task.frame
    if len(frame) > POINTS:
        frame = frame.sample(POINTS, random_state=0)
    x = frame["loss"] if against == "loss" else 6.0 * frame["params"] * frame["tokens"].clip(lower=1)
    axis.scatter(x, frame["value"], c=frame["params"], norm=norm, cmap=colours, s=9, linewidths=0, alpha=0.85, zorder=3)
    if against == "loss":
        axis.invert_xaxis()
        if verdict.posterior is not None:
            curve = one.curve()
            axis.fill_between(curve["loss"], curve["low95"], curve["high95"], color=MODEL, alpha=0.2, linewidth=0)
            axis.plot(curve["loss"], curve["value"], color=MODEL, linewidth=1.2)
        if verdict.eta is not None:
            middle, low, high = (task.loss_at(value) for value in verdict.eta)
            axis.axvspan(low, high, color="#777777", alpha=0.25, linewidth=0)
            axis.axvline(middle, color="#444444", linewidth=0.9)
            axis.annotate(
                f"η = {middle:.2f}",
                (middle, 0.97),
                xycoords=("data", "axes fraction"),
                fontsize=7,
                xytext=(-3, 0),
                textcoords="offset points",
                ha="right",
                va="top",
            )
    else:
        axis.set_xscale("log")
        axis.xaxis.set_minor_locator(NullLocator())
    if np.isfinite(task.chance):
        axis.axhline(task.sign * task.chance, color="#999999", linewidth=0.8, linestyle="--")
    axis.set_title(f"{task.task[:30]}\n{verdict.name}, P = {verdict.probability:.2f}", fontsize=8)
    axis.set_ylabel(task.metric[:22], fontsize=7)
    axis.tick_params(labelsize=7)


def _sizes(findings: list[Finding]):
    """Change of performance for ten times the parameters at the same loss, with its 95% interval."""
    figure, axis = plt.subplots(figsize=(6.4, 1.2 + 0.24 * len(findings)))
    place = np.arange(len(findings))[::-1]
    for at, one in zip(place, findings):
        size = one.size
        colour = MODEL if size.details["matters"] else "#1b6ca8"
        axis.plot([size.low95, size.high95], [at, at], color=colour, linewidth=1.4)
        axis.plot(size.value, at, "o", color=colour, markersize=4)
    smallest = findings[0].task.smallest
    axis.axvspan(-smallest, smallest, color="#999999", alpha=0.15, linewidth=0)
    axis.axvline(0, color="#555555", linewidth=0.8)
    labels = [f"{one.task.family} {one.task.task}, {one.task.metric}"[-48:].strip() for one in findings]
    axis.set_yticks(place, labels, fontsize=7)
    axis.set_ylim(-0.7, len(findings) - 0.3)
    axis.grid(axis="y", visible=False)
    axis.set(
        xlabel="change for ten times the parameters at the same loss (grey: too small to name)",
        title="Does size matter once loss is known?",
    )
    return figure


def _timeline(abilities: list[dict]):
    """Tokens at which each run gains each ability."""
    first: dict[tuple, dict] = {}
    for one in sorted(abilities, key=lambda one: continuous(one["metric"])):
        first.setdefault((one["family"], one["task"]), one)
    lines = [(one, run) for one in first.values() for run in one["runs"] if run["tokens"]["value"] is not None]
    lines = sorted(lines, key=lambda pair: pair[1]["status"] == "reached")[:LINES]  # what is still to come comes first
    figure, axis = plt.subplots(figsize=(6.8, 1.2 + 0.24 * max(len(lines), 1)))
    place = np.arange(len(lines))[::-1]
    for at, (_, run) in zip(place, lines):
        tokens = run["tokens"]
        reached = run["status"] == "reached"
        colour = "#1b6ca8" if reached else MODEL
        high = tokens["high95"] if tokens["high95"] is not None else run["until_tokens"]
        axis.plot([tokens["low95"], high], [at, at], color=colour, linewidth=1.4)
        if tokens["high95"] is None:
            axis.plot(high, at, ">", color=colour, markersize=4)
        axis.plot(tokens["value"], at, "o", color=colour, markersize=4, markerfacecolor=colour if reached else "white")
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    axis.xaxis.set_minor_formatter(plt.NullFormatter())
    axis.set_yticks(place, [f"{run['run']}: {one['task']}"[:48] for one, run in lines], fontsize=7)
    axis.set_ylim(-0.7, max(len(lines), 1) - 0.3)
    axis.grid(axis="y", visible=False)
    axis.set(
        xlabel="tokens trained when the loss reaches η (filled: it has; open: forecast; bars: 95%)",
        title="When runs gain abilities",
    )
    return figure
