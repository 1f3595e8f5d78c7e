"""Draw the documentation's three pictures from what `make quickstart` has left in runs/: python docs/pictures.py

They are the quickstart's own tables, in one size and without what only its figures need (names, residuals, other laws).
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.colors import LogNorm
from matplotlib.ticker import EngFormatter, NullFormatter

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from emergence_train.analysis.figures import MODEL, plt, save, styled  # noqa: E402
from emergence_train.recorder.tables import POSITIONS, mean_loss, read  # noqa: E402

RUNS = HERE.parent / "runs"
REPORT = RUNS / "quickstart-report"
RUN = "quickstart-0.9m"
SIZE = (4.6, 3.1)
BINS = 16  # of positions, evenly spread on a logarithmic axis


def loss_by_position():
    """Mean loss at each position of the iid set, a line a checkpoint, coloured by tokens trained."""
    table = read(POSITIONS, RUNS / RUN)
    table = table[(table["split"] == "iid") & (table["tokens"] >= 30_000)]
    edges = np.unique(np.geomspace(1, table["position"].max() + 1, BINS + 1).astype(int))
    table["bin"] = np.searchsorted(edges, table["position"], side="right")
    sums = table.groupby(["tokens", "bin"])[["count", "loss_sum"]].sum()
    loss = (sums["loss_sum"] / sums["count"]).unstack()
    place = table.groupby("bin")["position"].agg(lambda position: np.exp(np.log(position).mean()))
    figure, axis = plt.subplots(figsize=SIZE)
    norm, colours = LogNorm(loss.index.min(), loss.index.max()), plt.colormaps["viridis_r"]
    for tokens, row in loss.iterrows():
        axis.plot(place, row, color=colours(norm(tokens)), linewidth=1.2)
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    axis.set(xlabel="token position", ylabel="loss (nats per token)", title="Loss against position")
    bar = figure.colorbar(plt.cm.ScalarMappable(norm, colours), ax=axis, label="tokens trained")
    bar.ax.yaxis.set_major_formatter(EngFormatter(sep=""))
    bar.ax.yaxis.set_minor_formatter(NullFormatter())
    return figure


def forecast():
    """The loss forecast from the first 40% of the run, and what then happened."""
    measured = mean_loss(read(POSITIONS, RUNS / RUN))
    measured = measured[(measured["split"] == "iid") & (measured["tokens"] >= 30_000)]
    table = pd.read_csv(REPORT / "temporal" / "forecast.csv")
    table = table[table["run"] == RUN]
    seen = measured[measured["tokens"] < table["tokens"].min()]
    figure, axis = plt.subplots(figsize=SIZE)
    for level, alpha in ((95, 0.15), (80, 0.22), (50, 0.3)):
        low, high = table[f"low{level}"], table[f"high{level}"]
        axis.fill_between(table["tokens"], low, high, color=MODEL, alpha=alpha, linewidth=0)
    axis.plot(table["tokens"], table["loss"], color=MODEL, linewidth=1.4, label="forecast, 50, 80 and 95%")
    axis.plot(seen["tokens"], seen["loss"], "o-", color="#1b6ca8", markersize=3, linewidth=1.2, label="seen by the fit")
    axis.plot(table["tokens"], table["actual"], "o", color="#222222", markersize=3.5, label="what then happened")
    axis.axvline(seen["tokens"].max(), color="#999999", linewidth=0.8)
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    axis.set(xlabel="tokens trained", ylabel="loss (nats per token)", title="Forecast from 40% of the run")
    axis.legend(fontsize=8, frameon=False)
    return figure


def performance_by_loss():
    """Accuracy on one task against the loss, a point a checkpoint, coloured by parameters."""
    points, curve = (pd.read_csv(REPORT / "emergence" / f"{name}.csv") for name in ("points", "curves"))
    points, curve = (table[(table["task"] == "continuation") & (table["metric"] == "acc")] for table in (points, curve))
    figure, axis = plt.subplots(figsize=SIZE)
    axis.fill_between(curve["loss"], curve["low95"], curve["high95"], color=MODEL, alpha=0.2, linewidth=0)
    axis.plot(curve["loss"], curve["value"], color=MODEL, linewidth=1.4, label="one curve for all sizes, 95%")
    for params, colour in zip(sorted(points["params"].unique()), ("#5ec962", "#21918c", "#440154")):
        size = points[points["params"] == params]
        axis.plot(size["loss"], size["value"], "o", color=colour, markersize=4, label=f"{params / 1e6:.2f}M parameters")
    axis.axhline(0.25, color="#999999", linewidth=0.8, linestyle="--", label="chance")
    axis.invert_xaxis()
    axis.set(xlabel="loss (nats per token), falling", ylabel="accuracy", title="Performance against loss")
    axis.legend(fontsize=7, frameon=False)
    return figure


if __name__ == "__main__":
    for make in (loss_by_position, forecast, performance_by_loss):
        with styled():
            (name,) = save(make(), HERE / "images", make.__name__.replace("_", "-"), (".svg",))
        print(f"docs/images/{name}: {(HERE / 'images' / name).stat().st_size:,} bytes")
