"""Static figures of the temporal analysis, as PNG, SVG and PDF: for slides, issue threads and papers."""

import hashlib
import re
from pathlib import Path

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.ticker import EngFormatter

from emergence_train.analysis.figures import MODEL, plt, save, styled
from emergence_train.analysis.position_matrix import position_bins
from emergence_train.analysis.temporal.analyze import Analysis
from emergence_train.analysis.temporal.mean_law import CLASSICAL

OBSERVED, HELD = "#1b6ca8", "#222222"
CURVES = 40  # checkpoints drawn in the picture of loss against position


def draw(one: Analysis, out: Path) -> list[str]:
    """Write the figures of one run's split into `out`; returns the file names."""
    name = one.series.run + (f"-{one.series.split}" if one.series.split else "")
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", name)
    if len(stem) > 100 or stem != name:  # cut or mended: keep names of different runs apart
        stem = f"{stem[:90]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    pictures = {"forecast": _forecast}
    if one.positions is not None:
        pictures |= {"positions": _positions, "residuals": _residuals}
        if one.positions.identified:
            pictures["parameters"] = _parameters
    with styled():
        return [file for name, make in pictures.items() for file in save(make(one), out, f"{stem}-{name}")]


def _title(one: Analysis) -> str:
    return one.series.run[:60] + (f", {one.series.split}" if one.series.split else "")


def _axis(one: Analysis) -> tuple[np.ndarray, np.ndarray, str]:
    """Observed rows and forecast rows on the x axis, and its label."""
    if one.series.by_tokens:
        return one.series.tokens, one.tokens, "tokens trained"
    return one.series.step, one.future, "step"


def _thin(rows: np.ndarray, most: int = 1000) -> np.ndarray:
    """At most `most` evenly spread rows: a picture shows no more, and an SVG grows with every point."""
    return rows if len(rows) <= most else rows[np.unique(np.linspace(0, len(rows) - 1, most).astype(int))]


def _forecast(one: Analysis):
    figure, axis = plt.subplots()
    x, future, label = _axis(one)
    seen, held, ahead = _thin(np.flatnonzero(one.seen)), _thin(np.flatnonzero(~one.seen)), _thin(np.arange(len(future)))
    for level, alpha in ((95, 0.15), (80, 0.22), (50, 0.3)):
        low, high = (end[ahead] for end in one.level.interval(level))
        axis.fill_between(future[ahead], low, high, color=MODEL, alpha=alpha, linewidth=0, label=f"{level}% interval")
    axis.plot(x[seen], one.series.loss[seen], color=OBSERVED, linewidth=1.2, label="observed")
    if one.held:
        axis.plot(x[held], one.series.loss[held], color=HELD, linewidth=1.0, label="held out")
    axis.plot(future[ahead], one.level.mean[ahead], color=MODEL, linewidth=1.4, label="forecast")
    for name, style in zip(CLASSICAL, ("--", ":", "-.")):
        guess, _ = one.level.fits[name].predict(one.future[ahead])
        axis.plot(future[ahead], guess, style, color="#777777", linewidth=1, label=name)
    axis.axvline(x[one.seen][-1], color="#999999", linewidth=0.8)
    shown = np.r_[one.y[one.x >= 0.1 * one.x[-1]], one.actual, one.level.mean]
    margin = 0.08 * np.ptp(shown) + 1e-3
    axis.set_ylim(shown.min() - margin, shown.max() + margin)
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    axis.set(xlabel=label, ylabel="loss (nats per token)", title=f"Forecast: {_title(one)}")
    axis.legend(fontsize=7, frameon=False, ncols=2)
    return figure


def _positions(one: Analysis):
    figure, axis = plt.subplots()
    matrix = one.series.matrix
    x, _, label = _axis(one)
    bin_of = position_bins(matrix.position, 64)
    member = (bin_of[:, None] == np.arange(bin_of.max() + 1)).astype(float)
    middle = np.exp(np.log(matrix.position) @ member / member.sum(0))
    chosen = np.unique(np.linspace(0, len(x) - 1, CURVES).astype(int))
    norm = LogNorm(max(x[chosen].min(), 1), max(x.max(), 2))
    colours = plt.colormaps["viridis"]
    total = np.maximum(matrix.count @ member, 1)
    binned = (matrix.count * matrix.loss) @ member / total
    for row in chosen:
        axis.plot(middle, binned[row], color=colours(norm(x[row])), linewidth=0.9, alpha=0.9)
    end = one.positions.loss[-1] @ member / member.sum(0)
    axis.plot(middle, end, "--", color=MODEL, linewidth=1.5, label="forecast at the end")
    axis.set_xscale("log")
    axis.set(xlabel="token position", ylabel="loss (nats per token)", title=f"Loss against position: {_title(one)}")
    axis.legend(fontsize=8, frameon=False)
    figure.colorbar(plt.cm.ScalarMappable(norm, colours), ax=axis, label=label)
    return figure


def _parameters(one: Analysis):
    figure, axes = plt.subplots(3, 1, sharex=True, figsize=(6.4, 6.4))
    rows = one.parameter_rows()
    ok = rows["status"].eq("ok").to_numpy()
    x, _, label = _axis(one)
    for axis, name, unit in zip(axes, ("a0", "a1", "a2"), ("nats", "1 / position", "nats")):
        for keep, colour, text in ((ok & one.seen, OBSERVED, "fitted, observed"), (ok & ~one.seen, HELD, "held out")):
            if keep.any():
                value = rows[name].to_numpy()[keep]
                width = np.abs(rows[[f"{name}_low", f"{name}_high"]].to_numpy()[keep].T - value)
                axis.errorbar(x[keep], value, width, fmt=".", color=colour, markersize=3, linewidth=0.6, label=text)
        law, width = rows[f"{name}_law"].to_numpy(), 1.96 * rows[f"{name}_law_sd"].to_numpy()
        axis.plot(x, law, color=MODEL, linewidth=1.3, label="law")
        axis.fill_between(
            x[~one.seen], (law - width)[~one.seen], (law + width)[~one.seen], color=MODEL, alpha=0.15, linewidth=0
        )
        values = np.r_[rows[name].to_numpy()[ok], rows[f"{name}_law"].to_numpy()[one.seen]]
        if len(values):
            low, high = np.quantile(values, [0.02, 0.98])
            axis.set_ylim(low - 0.3 * (high - low) - 1e-6, high + 0.3 * (high - low) + 1e-6)
        axis.set_ylabel(f"{name} ({unit})")
        axis.axvline(x[one.seen][-1], color="#999999", linewidth=0.8)
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes[0].legend(fontsize=7, frameon=False, ncols=3)
    axes[0].set_title(f"The law's three numbers along training: {_title(one)}")
    axes[-1].set_xlabel(label)
    return figure


def _residuals(one: Analysis):
    figure, axis = plt.subplots()
    rows = one.residual_rows()
    groups = rows.groupby(["position_low", "position_high"], sort=True)
    middle = np.array([np.sqrt(low * high) for low, high in groups.groups])
    mean, spread = groups["residual"].mean().to_numpy(), groups["residual"].std().fillna(0).to_numpy()
    noise = groups["stderr"].mean().to_numpy()
    axis.fill_between(
        middle, -1.96 * noise, 1.96 * noise, color="#999999", alpha=0.25, linewidth=0, label="sampling noise, 95%"
    )
    axis.errorbar(
        middle,
        mean,
        spread,
        fmt="o-",
        color=OBSERVED,
        markersize=3,
        linewidth=1,
        capsize=2,
        label="mean and spread over checkpoints",
    )
    axis.axhline(0, color="#555555", linewidth=0.8)
    axis.set_xscale("log")
    axis.set(xlabel="token position", ylabel="loss - fitted law (nats)", title=f"Residuals by position: {_title(one)}")
    axis.legend(fontsize=8, frameon=False)
    return figure
