"""The first look at runs: loss against position at every checkpoint with the position law, loss against tokens, speed."""

import html
import re

import numpy as np
import pandas as pd

from emergence_train.analysis.figures import Figure, Trace
from emergence_train.analysis.temporal.figures import by_position, has_curve, last_checkpoints
from emergence_train.report.collect import SPLIT_ORDER, Run
from emergence_train.report.parts import grid, smoothed, table

MANY = 8  # runs from which on a figure of all shows less of each


def sections(runs: list[Run]) -> list[tuple[str, str, str]]:
    """(anchor, title, body) of each section."""
    parts = [
        ("summary", "Runs", _summary(runs)),
        ("position", "Loss against position during training", _by_position(runs)),
        ("sizes", "Runs side by side", _by_size(runs)),
        ("law", "The position law along training", _law(runs)),
        ("tokens", "Loss against tokens", _by_tokens(runs)),
        ("speed", "Throughput", _speed(runs)),
    ]
    return [part for part in parts if part[2]]


def _summary(runs: list[Run]) -> str:
    runs = [run for run in runs if len(run.means)]
    if not runs:
        return ""
    head = ["run", "parameters (non-embedding)", "tokens", "iid loss", "ood loss", "a0", "a1", "a2", "tokens/s"]
    rows = []
    for run in runs:
        iid, ood, fit = run.last(run.means, "iid"), run.last(run.means, "ood"), run.last(run.fits, "iid")
        speed = run.curve["tokens_per_second"].median()
        rows.append(
            [
                html.escape(run.name),
                f"{run.params:,}",
                f"{run.tokens:,}",
                _loss(iid),
                _loss(ood),
                *(_estimate(fit, name) for name in ("a0", "a1", "a2")),
                f"{speed:,.0f}" if np.isfinite(speed) else "–",
            ]
        )
    return (
        f"<p>{_splits(runs)} Losses are in nats per token; position 1 is the first predicted token, which sees one token of "
        "context.</p><p>The position law of arXiv 2404.17785, loss at position i = a0 / (1 + a1 i) + a2, is fitted at each "
        "checkpoint: a0 is what context is worth, a1 how soon it is had, a2 the loss with unlimited context. "
        "Brackets are 95% profile intervals.</p>" + table(head, rows, "Runs")
    )


def _splits(runs: list[Run]) -> str:
    """What was scored at each checkpoint, as far as the runs' files say."""
    ood = {name for run in runs for name in run.ood}
    named = f": {html.escape(', '.join(sorted(ood)))}" if ood else ""
    scored = {split for run in runs for split in run.positions}
    parts = ["held-out text of the training domains (iid)"] if "iid" in scored else []
    parts += [f"text from outside it (ood{named})"] if "ood" in scored else []
    return f"Each checkpoint is scored on {' and '.join(parts)}." if parts else ""


def _loss(row: pd.Series | None) -> str:
    return "–" if row is None else f"{row['loss']:.3f}"


def _estimate(fit: pd.Series | None, name: str) -> str:
    """A number of the law with its interval, where the data bound it on both sides."""
    if fit is None:
        return "–"
    if not np.isfinite([fit[f"{name}_low"], fit[f"{name}_high"]]).all():
        return f'<span title="{html.escape(str(fit["status"]))}">not identified</span>'
    return f"{fit[name]:.3g} [{fit[f'{name}_low']:.3g}, {fit[f'{name}_high']:.3g}]"


def _law_note(fit: pd.Series) -> str:
    if fit["status"] == "ok":
        return ", ".join(f"{name} = {_estimate(fit, name)}" for name in ("a0", "a1", "a2"))
    if has_curve(fit):
        return (
            f"The curve falls as 1/position from the start: a0/a1 = {fit['a0'] / fit['a1']:.3g}, "
            f"a2 = {_estimate(fit, 'a2')}; "
            "a0 and a1 apart are not identified."
        )
    return f"Position law of the last checkpoint: {fit['status']}."


def _by_position(runs: list[Run]) -> str:
    splits = list(dict.fromkeys(split for run in runs for split in run.splits()))
    splits.sort(key=lambda split: (SPLIT_ORDER.get(split, len(SPLIT_ORDER)), split))
    if not splits:
        return ""
    options = "".join(
        f'<label><input type="radio" name="split" value="{html.escape(s)}"{" checked" if s == splits[0] else ""}> '
        f"{html.escape(s)}</label>"
        for s in splits
    )
    parts = "".join(
        f'<div data-of="split" data-is="{html.escape(split)}">{_of_split(runs, split, number == 0)}</div>'
        for number, split in enumerate(splits)
    )
    return (
        "<p>Later tokens of a sequence are easier, since more of it has been read. Each line is a checkpoint; the dashed "
        "line is the law fitted to the last one. A model that uses no context has a flat line.</p>"
        f'<fieldset data-choice="split"><legend>split</legend>{options}</fieldset>{parts}'
    )


def _of_split(runs: list[Run], split: str, first: bool) -> str:
    """A figure a run with lines for its checkpoints. Of many runs only for the first split: the page must stay small enough to be
    sent around, and of the other splits one figure shows the last checkpoint of each."""
    there = [run for run in runs if split in run.positions]
    if first or len(runs) <= MANY:
        curves = max(40 // len(runs), 12 if first else 6)
        return grid(_position_figure(run, split, curves) for run in there)
    lines = [(run.name, number, run.positions[split], None) for number, run in enumerate(runs) if run in there]
    return grid([last_checkpoints(f"Last checkpoint of each run, {split}", lines, bands=False)])


def _position_figure(run: Run, split: str, curves: int) -> Figure:
    fit = run.last(run.fits, split)
    note = "" if fit is None else re.sub("<.*?>", "", _law_note(fit))
    return by_position(f"{run.name}, {split}", run.positions[split], fit=fit, note=note, curves=curves)


def _by_size(runs: list[Run]) -> str:
    if len(runs) < 2:
        return ""
    figures = []
    for split in ("iid", "ood"):
        lines = [
            (run.name, number, run.positions[split], run.last(run.fits, split))
            for number, run in enumerate(runs)
            if split in run.positions
        ]
        figures.append(last_checkpoints(f"Last checkpoint, {split}", lines, bands=len(runs) <= MANY))
    bands = " with their 95% bands (tokens taken as independent, so a little too narrow)" if len(runs) <= MANY else ""
    about = f"<p>Points are the last checkpoint of each run{bands}; lines are the fitted law.</p>"
    return about + drawn if (drawn := grid(figures)) else ""


def _law(runs: list[Run]) -> str:
    meaning = {
        "a0": "a0: what context is worth (nats)",
        "a1": "a1: how soon it is had (1 / position)",
        "a2": "a2: loss with unlimited context (nats)",
    }
    figures = []
    for name, title in meaning.items():
        traces, left_out = [], 0
        for number, run in enumerate(runs):
            rows = run.fits[run.fits["split"] == "iid"]
            if rows.empty:
                continue
            bounded = np.isfinite(rows[[f"{name}_low", f"{name}_high"]].to_numpy(float)).all(1)
            left_out += int((~bounded).sum())
            tokens, value, low, high = (
                rows.loc[bounded, column].to_numpy(float) for column in ("tokens", name, f"{name}_low", f"{name}_high")
            )
            traces.append(Trace(tokens, value, run.name, number, points=True, low=low, high=high, run=run.name))
        note = f"{left_out} checkpoints whose curve does not bound {name} are left out." if left_out else ""
        figures.append(Figure(title, "tokens", name, tuple(traces), x_log=True, y_log=name != "a2", note=note))
    drawn = grid(figures)
    return f"<p>On iid, with 95% profile intervals as bands.</p>{drawn}" if drawn else ""


def _by_tokens(runs: list[Run]) -> str:
    training = []
    for number, run in enumerate(runs):
        curve = smoothed(run.curve)
        if curve.empty:  # an imported run: it was trained elsewhere
            continue
        tokens, loss, low, high = (curve[name].to_numpy() for name in ("tokens", "loss", "low", "high"))
        training.append(Trace(tokens, loss, run.name, number, low=low, high=high, run=run.name))
    note = "Mean of steps in bins equal in log tokens; the band holds every step of a bin."
    figures = [Figure("Training", "tokens", "loss (nats)", tuple(training), x_log=True, note=note)]
    for split in ("iid", "ood"):
        marks = tuple(
            Trace(rows["tokens"].to_numpy(), rows["loss"].to_numpy(), run.name, number, points=True, run=run.name)
            for number, run in enumerate(runs)
            for rows in [run.means[run.means["split"] == split]]
            if len(rows)
        )
        figures.append(Figure(f"Validation, {split}", "tokens", "loss (nats)", marks, x_log=True))
    return grid(figures)


def _speed(runs: list[Run]) -> str:
    traces = []
    for number, run in enumerate(runs):
        rows = run.curve.dropna(subset=["tokens_per_second"])[["tokens", "tokens_per_second"]]
        if rows.empty:
            continue
        parts = rows.groupby(np.arange(len(rows)) * 60 // max(len(rows), 1))
        tokens = parts["tokens"].median().to_numpy()
        low, middle, high = (parts["tokens_per_second"].quantile(q).to_numpy() for q in (0.1, 0.5, 0.9))
        traces.append(Trace(tokens, middle, run.name, number, low=low, high=high, run=run.name))
    about = "<p>Training alone, without validation and saving. Median of neighbouring steps; the band holds 80% of them.</p>"
    drawn = grid([Figure("Speed", "tokens", "tokens/s", tuple(traces), y_log=True)])
    return about + drawn if drawn else ""
