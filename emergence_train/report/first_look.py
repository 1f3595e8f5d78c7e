"""The first look at runs: loss against position at every checkpoint with the position law, loss against tokens, speed."""

import html
import re

import numpy as np
import pandas as pd

from emergence_train.analysis.figures import Figure, Trace
from emergence_train.analysis.temporal.figures import EVERY_STEP, by_position, has_curve, last_checkpoints
from emergence_train.formatting import short
from emergence_train.report.collect import SPLIT_ORDER, Run
from emergence_train.report.parts import count, folded, grid, smoothed, table

MOST_PANELS = 18  # runs that have a panel of their own in a section
MANY = 8  # runs from which on a figure of all shows less of each
LAW = ("a0", "a1", "a2")
UNKNOWN = "not identified"
FEWEST = 3  # points of a figure of the law's numbers
FLAT = 6.0  # a spike that is so many times as high as the rest of the losses would leave them flat: it is cut


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
    fits = [run.last(run.fits, "iid") for run in runs]
    known = [name for name in LAW if any(_estimate(fit, name) not in ("–", UNKNOWN) for fit in fits)]
    head = ["run", "parameters (non-embedding)", "tokens", "iid loss", "ood loss", *known, "tokens/s"]
    rows = []
    for run, fit in zip(runs, fits):
        iid, ood = run.last(run.means, "iid"), run.last(run.means, "ood")
        speed = run.curve["tokens_per_second"].median()
        rows.append(
            [
                html.escape(run.name),
                f"{run.params:,}",
                f"{run.tokens:,}",
                _loss(iid),
                _loss(ood),
                *(_estimate(fit, name) for name in known),
                f"{speed:,.0f}" if np.isfinite(speed) else "–",
            ]
        )
    return (
        f"<p>{_splits(runs)} Losses are in nats per token; position 1 is the first predicted token, which sees one token of "
        "context.</p><p>The position law of arXiv 2404.17785, loss at position i = a0 / (1 + a1 i) + a2, is fitted at each "
        "checkpoint: a0 is what context is worth, a1 how soon it is had, a2 the loss with unlimited context. "
        f"Brackets are 95% profile intervals.{_unknown(known)}</p>" + table(head, rows, "Runs")
    )


def _unknown(known: list[str]) -> str:
    """Which numbers of the law have no column, and why."""
    missing = [name for name in LAW if name not in known]
    return f" The curves identify {' and '.join(missing)} of no run at its last checkpoint." if missing else ""


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
        return UNKNOWN
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
        curves = max(40 // len(runs), (8 if len(runs) > MANY else 12) if first else 6)
        return folded([_position_figure(run, split, curves) for run in lowest(there)], "runs") + _left_out(there)
    lines = [(run.name, number, run.positions[split], None) for number, run in enumerate(runs) if run in there]
    return grid([last_checkpoints(f"Last checkpoint of each run, {split}", lines, bands=False)])


def lowest(runs: list[Run]) -> list[Run]:
    """The runs that are drawn one by one, in their order: all, or of too many those with the lowest loss on iid."""
    if len(runs) <= MOST_PANELS:
        return runs
    losses = [float(run.iid()["loss"].iloc[-1]) if len(run.iid()) else np.inf for run in runs]
    return [runs[number] for number in sorted(np.argsort(losses, kind="stable")[:MOST_PANELS])]


def _left_out(runs: list[Run]) -> str:
    """Says of which runs there is no panel."""
    if len(runs) <= MOST_PANELS:
        return ""
    return (
        f"<p>Of {len(runs)} runs, those {MOST_PANELS} with the lowest loss on iid; a page of fewer runs has each.</p>"
    )


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
    figures, sparse = [], []
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
            band = {"low": low, "high": high} if len(runs) <= MANY else {}
            traces.append(Trace(tokens, value, run.name, number, points=True, run=run.name, **band))
        if sum(len(trace.x) for trace in traces) < FEWEST:
            sparse.append(name)
            continue
        note = f"Without {count(left_out, 'checkpoint')} whose curve does not bound {name}." if left_out else ""
        figures.append(Figure(title, "tokens", name, tuple(traces), x_log=True, y_log=name != "a2", note=note))
    drawn = grid(figures)
    unknown = f" Fewer than {FEWEST} checkpoints bound {' and '.join(sparse)}: not drawn." if sparse else ""
    return f"<p>On iid, with 95% profile intervals as bands.{unknown}</p>{drawn}" if drawn else ""


def _by_tokens(runs: list[Run]) -> str:
    training, bins = [], 120 if len(runs) <= MANY else 60
    for number, run in enumerate(runs):
        curve = smoothed(run.curve, bins)
        if curve.empty:  # an imported run: it was trained elsewhere
            continue
        tokens, loss, low, high = (curve[name].to_numpy() for name in ("tokens", "loss", "low", "high"))
        band = {"low": low, "high": high} if len(runs) <= MANY else {}
        training.append(Trace(tokens, loss, run.name, number, run=run.name, **band))
    y_range, cut = _without_spikes(training)
    note = "Mean of steps in bins equal in log tokens"
    note += "; the band holds every step of a bin." if len(runs) <= MANY else "."
    note += f" Spikes up to {short(cut)} are cut; log y shows them." if cut else ""
    reduced = f"means of at most {bins} bins; {EVERY_STEP}"
    figures = [
        Figure(
            "Training",
            "tokens",
            "loss (nats)",
            tuple(training),
            x_log=True,
            y_range=y_range,
            note=note,
            reduced=reduced,
        )
    ]
    for split in ("iid", "ood"):
        marks = tuple(
            Trace(rows["tokens"].to_numpy(), rows["loss"].to_numpy(), run.name, number, points=True, run=run.name)
            for number, run in enumerate(runs)
            for rows in [run.means[run.means["split"] == split]]
            if len(rows)
        )
        figures.append(Figure(f"Validation, {split}", "tokens", "loss (nats)", marks, x_log=True))
    return grid(figures)


def _without_spikes(traces: list[Trace]) -> tuple[tuple[float, float] | None, float]:
    """Limits of y that leave the losses readable beside a spike, and how high it goes; (None, 0) where there is none."""
    if not traces:
        return None, 0.0
    tops = np.concatenate([trace.y if trace.high is None else trace.high for trace in traces])
    lows = np.concatenate([trace.y if trace.low is None else trace.low for trace in traces])
    tops, lows = tops[np.isfinite(tops)], lows[np.isfinite(lows)]
    if not len(tops) or not len(lows):
        return None, 0.0
    low, usual, most = float(lows.min()), float(np.quantile(tops, 0.95)), float(tops.max())
    if most - low < FLAT * (usual - low):
        return None, 0.0
    room = 0.04 * (usual - low)
    return (low - room, usual + 10 * room), most


def _speed(runs: list[Run]) -> str:
    traces = []
    for number, run in enumerate(runs):
        rows = run.curve.dropna(subset=["tokens_per_second"])[["tokens", "tokens_per_second"]]
        if rows.empty:
            continue
        parts = rows.groupby(np.arange(len(rows)) * 60 // max(len(rows), 1))
        tokens = parts["tokens"].median().to_numpy()
        low, middle, high = (parts["tokens_per_second"].quantile(q).to_numpy() for q in (0.1, 0.5, 0.9))
        band = {"low": low, "high": high} if len(runs) <= MANY else {}
        traces.append(Trace(tokens, middle, run.name, number, run=run.name, **band))
    about = "Training alone, without validation and saving. Median of neighbouring steps"
    about = f"<p>{about}{'; the band holds 80% of them' if len(runs) <= MANY else ''}.</p>"
    reduced = f"medians of at most 60 groups of steps; {EVERY_STEP}"
    drawn = grid([Figure("Speed", "tokens", "tokens/s", tuple(traces), y_log=True, reduced=reduced)])
    return about + drawn if drawn else ""
