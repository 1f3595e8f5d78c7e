"""The first look at runs: loss against position at every checkpoint with the position law, loss against tokens, speed."""

import html
import re

import numpy as np
import pandas as pd

from emergence_train.analysis.position_matrix import position_bins
from emergence_train.analysis.temporal.position_law import position_curve
from emergence_train.report.parts import grid, table
from emergence_train.report.runs import Run
from emergence_train.report.svg import Chart, Series, ramp_colours, short

BINS = 40  # of position, equal in the logarithm


def sections(runs: list[Run]) -> list[tuple[str, str, str]]:
    """(anchor, title, body) of each section."""
    return [
        ("summary", "Runs", _summary(runs)),
        ("position", "Loss against position, as training goes on", _by_position(runs)),
        ("sizes", "Sizes side by side", _by_size(runs)),
        ("law", "The position law along training", _law(runs)),
        ("tokens", "Loss against tokens", _by_tokens(runs)),
        ("speed", "Throughput", _speed(runs)),
    ]


def _summary(runs: list[Run]) -> str:
    head = ["run", "parameters (non-embedding)", "tokens", "iid loss", "ood loss", "a0", "a1", "a2", "tokens/s"]
    rows = []
    for run in runs:
        iid, ood, fit = run.last(run.means, "iid"), run.last(run.means, "ood"), run.last(run.fits, "iid")
        speed = run.curve["tokens_per_second"].median() if "tokens_per_second" in run.curve else np.nan
        rows.append(
            [
                html.escape(run.name),
                f"{run.params:,}",
                f"{run.tokens:,}",
                _loss(iid),
                _loss(ood),
                *(_estimate(fit, name) for name in ("a0", "a1", "a2")),
                f"{speed:,.0f}",
            ]
        )
    return (
        "<p>Each checkpoint is scored on held-out text of the training mixture (iid) and on books that are not in it "
        "(ood). Losses are in nats per token; position 1 is the first predicted token, which sees one token of context."
        "</p><p>The position law of arXiv 2404.17785, loss at position i = a0 / (1 + a1 i) + a2, is fitted at each "
        "checkpoint: a0 is what context is worth, a1 how soon it is had, a2 the loss with unlimited context. "
        "Brackets are 95% profile intervals.</p>" + table(head, rows, "Runs")
    )


def _loss(row: pd.Series | None) -> str:
    return "–" if row is None else f"{row['loss']:.3f}"


def _estimate(fit: pd.Series | None, name: str) -> str:
    """A number of the law with its interval, where the data bound it on both sides."""
    if fit is None:
        return "–"
    if not np.isfinite([fit[f"{name}_low"], fit[f"{name}_high"]]).all():
        return f'<span title="{html.escape(str(fit["status"]))}">not identified</span>'
    return f"{fit[name]:.3g} [{fit[f'{name}_low']:.3g}, {fit[f'{name}_high']:.3g}]"


def _has_curve(fit: pd.Series | None) -> bool:
    """Whether the fitted curve means something; it also does where only the ratio a0/a1 is known."""
    return fit is not None and (fit["status"] == "ok" or "only a0/a1" in str(fit["status"]))


def _law_note(fit: pd.Series) -> str:
    if fit["status"] == "ok":
        return ", ".join(f"{name} = {_estimate(fit, name)}" for name in ("a0", "a1", "a2"))
    if _has_curve(fit):
        return (
            f"The curve falls as 1/position from the start: a0/a1 = {fit['a0'] / fit['a1']:.3g}, "
            f"a2 = {_estimate(fit, 'a2')}; "
            "a0 and a1 apart are not identified."
        )
    return f"Position law of the last checkpoint: {fit['status']}."


def binned(rows: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean position, mean loss and its standard error in bins equal in log position, of one checkpoint's split."""
    position = rows["position"].to_numpy(float)
    order = np.argsort(position)
    position = position[order]
    count, total, squares = (rows[c].to_numpy(float)[order] for c in ("count", "loss_sum", "loss_sq_sum"))
    bin_of = position_bins(position, BINS)
    n, s, q, p = (np.bincount(bin_of, v) for v in (count, total, squares, count * position))
    mean = s / n
    return p / n, mean, np.sqrt(np.maximum(q / n - mean**2, 0) / n)


def _by_position(runs: list[Run]) -> str:
    splits = [s for s in runs[0].splits() if all(s in run.splits() for run in runs)]
    options = "".join(
        f'<label><input type="radio" name="split" value="{html.escape(s)}"{" checked" if s == splits[0] else ""}> '
        f"{html.escape(s)}</label>"
        for s in splits
    )
    parts = "".join(
        f'<div class="grid" data-of="split" data-is="{html.escape(split)}">'
        + "".join(_position_chart(run, split).html() for run in runs)
        + "</div>"
        for split in splits
    )
    return (
        "<p>Later tokens of a sequence are easier, since more of it has been read. Each line is a checkpoint; the dashed "
        "line is the law fitted to the last one. A model that uses no context has a flat line.</p>"
        f'<fieldset data-choice="split"><legend>split</legend>{options}</fieldset>{parts}'
    )


def _position_chart(run: Run, split: str) -> Chart:
    rows = run.positions[run.positions["split"] == split]
    tokens = np.sort(rows["tokens"].unique())
    low, high = np.log(max(tokens[0], 1)), np.log(tokens[-1])
    shares = (np.log(np.maximum(tokens, 1)) - low) / max(high - low, 1e-9)
    series = []
    for count, colour in zip(tokens, ramp_colours(shares)):
        x, y, _ = binned(rows[rows["tokens"] == count])
        series.append(Series(x, y, f"{short(count)} tokens", colour))
    fit = run.last(run.fits, split)
    if _has_curve(fit):
        x = np.geomspace(1, rows["position"].max(), 60)
        series.append(
            Series(
                x, position_curve(fit["a0"], fit["a1"], fit["a2"], x), "position law, last checkpoint", 1, dashed=True
            )
        )
    note = "" if fit is None else re.sub("<.*?>", "", _law_note(fit))
    return Chart(
        f"{run.name}, {split}",
        "position",
        "loss (nats)",
        series,
        x_log=True,
        ramp=("tokens", short(tokens[0]), short(tokens[-1])),
        note=note,
    )


def _by_size(runs: list[Run]) -> str:
    charts = []
    for split in ("iid", "ood"):
        series = []
        for number, run in enumerate(runs):
            rows = run.positions[
                (run.positions["split"] == split) & (run.positions["step"] == run.positions["step"].max())
            ]
            if not len(rows):
                continue
            x, y, error = binned(rows)
            label = f"{run.name} ({short(run.params)})"
            series.append(
                Series(x, y, label, number, points=True, line=False, low=y - 1.96 * error, high=y + 1.96 * error)
            )
            fit = run.last(run.fits, split)
            if _has_curve(fit):
                x = np.geomspace(1, rows["position"].max(), 60)
                series.append(Series(x, position_curve(fit["a0"], fit["a1"], fit["a2"], x), label, number, quiet=True))
        charts.append(Chart(f"Last checkpoint, {split}", "position", "loss (nats)", series, x_log=True))
    return (
        "<p>Points are the last checkpoint of each run with their 95% bands (tokens taken as independent, so a little "
        "too narrow); lines are the fitted law.</p>" + grid(charts)
    )


def _law(runs: list[Run]) -> str:
    meaning = {
        "a0": "a0: what context is worth (nats)",
        "a1": "a1: how soon it is had (1 / position)",
        "a2": "a2: loss with unlimited context (nats)",
    }
    charts = []
    for name, title in meaning.items():
        series, left_out = [], 0
        for number, run in enumerate(runs):
            rows = run.fits[run.fits["split"] == "iid"]
            bounded = np.isfinite(rows[f"{name}_low"]) & np.isfinite(rows[f"{name}_high"])
            left_out += int((~bounded).sum())
            rows = rows[bounded]
            series.append(
                Series(
                    rows["tokens"].to_numpy(float),
                    rows[name].to_numpy(float),
                    run.name,
                    number,
                    points=True,
                    low=rows[f"{name}_low"].to_numpy(float),
                    high=rows[f"{name}_high"].to_numpy(float),
                )
            )
        note = f"{left_out} checkpoints whose curve does not bound {name} are left out." if left_out else ""
        charts.append(Chart(title, "tokens", name, series, x_log=True, y_log=name != "a2", note=note))
    return "<p>On iid, with 95% profile intervals as bands.</p>" + grid(charts)


def _by_tokens(runs: list[Run]) -> str:
    charts = []
    series = []
    for number, run in enumerate(runs):
        curve = _smoothed(run.curve)
        series.append(Series(curve["tokens"].to_numpy(), curve["loss"].to_numpy(), f"{run.name}, train", number))
    for split in ("iid", "ood"):
        marks = [
            Series(rows["tokens"].to_numpy(), rows["loss"].to_numpy(), run.name, number, points=True)
            for number, run in enumerate(runs)
            for rows in [run.means[run.means["split"] == split]]
            if len(rows)
        ]
        charts.append(Chart(f"Validation, {split}", "tokens", "loss (nats)", marks, x_log=True))
    charts.insert(
        0,
        Chart(
            "Training", "tokens", "loss (nats)", series, x_log=True, note="Mean of steps in bins equal in log tokens."
        ),
    )
    return grid(charts)


def _smoothed(curve: pd.DataFrame, bins: int = 120) -> pd.DataFrame:
    curve = curve.dropna(subset=["loss"])
    cut = np.unique(np.geomspace(1, len(curve), bins).astype(int))
    group = np.searchsorted(cut, np.arange(1, len(curve) + 1))
    return curve[["tokens", "loss"]].astype(float).groupby(group).mean()


def _speed(runs: list[Run]) -> str:
    series = []
    for number, run in enumerate(runs):
        if "tokens_per_second" not in run.curve:
            continue
        rows = run.curve.dropna(subset=["tokens_per_second"])
        group = np.arange(len(rows)) * 60 // max(len(rows), 1)
        parts = rows[["tokens", "tokens_per_second"]].astype(float).groupby(group)
        middle = parts.median()
        series.append(
            Series(
                middle["tokens"].to_numpy(),
                middle["tokens_per_second"].to_numpy(),
                run.name,
                number,
                low=parts.quantile(0.1)["tokens_per_second"].to_numpy(),
                high=parts.quantile(0.9)["tokens_per_second"].to_numpy(),
            )
        )
    return (
        "<p>Training alone: validation and saving are not counted. Median of neighbouring steps; the band holds 80% of them.</p>"
        + grid([Chart("Speed", "tokens", "tokens/s", series, y_log=True)])
    )
