"""Where the runs were going: the forecast from the first part of each run, beside what then happened, and its laws."""

import html

import numpy as np

from emergence_train.analysis.runs import load
from emergence_train.analysis.temporal.analyze import LABELS, Analysis
from emergence_train.errors import InputError
from emergence_train.report.parts import grid, table
from emergence_train.report.runs import Run
from emergence_train.report.svg import Chart, Series, ramp_colours, short

FRACTION = 0.4  # of the planned tokens, observed
SPLITS = {None: "training loss, every step", "iid": "iid, every checkpoint"}
POINTS = 150  # drawn of a curve
FEWEST = 3  # checkpoints that must bound a number of the law for it to be drawn
CHECKPOINTS = 12  # drawn of the residuals


def sections(runs: list[Run]) -> list[tuple[str, str, str]]:
    """(anchor, title, body)."""
    charts, laws, unbounded, residuals, scored, notes = [], [], [], [], [], []
    for run in runs:
        try:
            found = {one.split: one for one in load(run.directory) if one.split in SPLITS}
            analyses = [Analysis(found[split], FRACTION) for split in SPLITS if split in found]
        except InputError as error:
            notes.append(f"<p>{html.escape(run.name)}: no forecast. {html.escape(str(error))}</p>")
            continue
        charts += [_fan(run, analysis) for analysis in analyses]
        scored += [(run, analysis) for analysis in analyses]
        for analysis in analyses:
            if analysis.positions is not None:
                found_here, missing = _trajectories(run, analysis)
                laws += found_here
                unbounded += [f"{html.escape(run.name)}: {name}" for name in missing]
                residuals.append(_residuals(run, analysis))
    share = f"{FRACTION:.0%}"
    text = (
        f"<p>Fitted to the first {share} of each run's tokens and to nothing after them; the planned learning rate is "
        "known, the later losses are not. The bands are its 50, 80 and 95% intervals. Points are what was measured: "
        "grey where the fit saw it, orange where it was held back.</p>"
    )
    found = [("outlook", "Forecast and outcome", text + "".join(notes) + grid(charts) + _table(scored))]
    if laws:
        text = (
            f"<p>The three numbers of the position law at every checkpoint (iid, points with 95% intervals), and the laws "
            f"of them in tokens that were fitted to the first {share}: grey points were seen by the fit, orange ones not. "
            "a0 and a1 follow a logarithmic, hyperbolic or constant law, whichever predicted best within the observed "
            "part; a2 follows the learning-rate schedule.</p>"
        )
        if unbounded:
            text += (
                f"<p>Bounded by the data at fewer than {FEWEST} checkpoints, and not drawn: {'; '.join(unbounded)}.</p>"
            )
        found.append(("laws", "The law's numbers and their forecast", text + grid(laws)))
        text = (
            "<p>Measured loss minus the position law fitted at the same checkpoint, by position. Where lines leave the "
            "grey band (95% of the sampling noise at the last checkpoint) together, the law's form is at fault, not the "
            "noise.</p>"
        )
        found.append(("residuals", "What the position law misses", text + grid(residuals)))
    return found


def _trajectories(run: Run, analysis: Analysis) -> tuple[list[Chart], list[str]]:
    """a0, a1 and a2 along training with the law of each, and the names of those that the data hardly ever bound."""
    rows, seen, tokens = analysis.parameter_rows(), analysis.seen, analysis.series.tokens
    charts, missing = [], []
    for name, unit in (("a0", "nats"), ("a1", "1 / position"), ("a2", "nats")):
        low, value, high = (rows[f"{name}{end}"].to_numpy(float) for end in ("_low", "", "_high"))
        bounded = np.isfinite(low) & np.isfinite(high)
        if bounded.sum() < FEWEST:
            missing.append(name)
            continue
        series = []
        if f"{name}_law" in rows:
            law, reach = rows[f"{name}_law"].to_numpy(float), 1.96 * rows[f"{name}_law_sd"].to_numpy(float)
            series.append(Series(tokens, law, f"law of {name}", 0))
            series.append(
                Series(
                    tokens[~seen],
                    law[~seen],
                    "95%",
                    0,
                    line=False,
                    low=(law - reach)[~seen],
                    high=(law + reach)[~seen],
                    quiet=True,
                )
            )
        for part, label, colour in ((seen, "seen by the fit", 7), (~seen, "held back", 1)):
            keep = bounded & part
            series.append(Series(tokens[keep], value[keep], label, colour, line=False, points=True))
            bars = zip(tokens[keep], low[keep], high[keep])
            series += [Series(np.full(2, x), np.array(ends), "", colour, quiet=True) for x, *ends in bars]
        inside = np.quantile(value[bounded], [0.02, 0.98])
        margin = 0.25 * np.ptp(inside) + 1e-6
        left_out = int((~bounded).sum())
        notes = [f"{left_out} checkpoints whose curve does not bound {name} are left out."] if left_out else []
        if f"{name}_law" not in rows:
            notes.append("Too few checkpoints bound it: no law is fitted, and the forecast holds a1.")
        charts.append(
            Chart(
                f"{run.name}: {name}",
                "tokens",
                f"{name} ({unit})",
                series,
                x_log=True,
                note=" ".join(notes),
                y_range=(inside[0] - margin, inside[1] + margin),
            )
        )
    return charts, missing


def _residuals(run: Run, analysis: Analysis) -> Chart:
    rows = analysis.residual_rows()
    steps = np.sort(rows["step"].unique())
    chosen = steps[np.unique(np.linspace(0, len(steps) - 1, CHECKPOINTS).astype(int))]
    tokens = dict(zip(analysis.series.step.astype(int), analysis.series.tokens))
    last = rows[rows["step"] == steps[-1]]
    middle = np.sqrt(last["position_low"] * last["position_high"]).to_numpy(float)
    noise = 1.96 * last["stderr"].to_numpy(float)
    series = [Series(middle, np.zeros(len(middle)), "noise", 7, low=-noise, high=noise, quiet=True)]
    low, high = np.log(max(tokens[chosen[0]], 1)), np.log(tokens[chosen[-1]])
    shares = [(np.log(max(tokens[step], 1)) - low) / max(high - low, 1e-9) for step in chosen]
    for step, colour in zip(chosen, ramp_colours(np.array(shares))):
        here = rows[rows["step"] == step]
        series.append(Series(middle, here["residual"].to_numpy(float), f"{short(tokens[step])} tokens", colour))
    return Chart(
        f"{run.name}, iid",
        "position",
        "loss - law (nats)",
        series,
        x_log=True,
        ramp=("tokens", short(tokens[chosen[0]]), short(tokens[chosen[-1]])),
    )


def _fan(run: Run, analysis: Analysis) -> Chart:
    level, tokens = analysis.level, analysis.tokens
    observed = analysis.series.tokens[analysis.seen]
    early, late = (slice(None, None, max(1, len(x) // POINTS)) for x in (observed, tokens))
    series = []
    for percent in (95, 80, 50):
        low, high = level.interval(percent)
        series.append(
            Series(
                tokens[late],
                level.mean[late],
                f"{percent}% band",
                0,
                line=False,
                low=low[late],
                high=high[late],
                quiet=True,
            )
        )
    series.append(
        Series(tokens[late], level.mean[late], f"forecast ({LABELS.get(analysis.selected, analysis.selected)})", 0)
    )
    series.append(Series(observed[early], analysis.y[early], "seen by the fit", 7, line=False, points=True))
    if analysis.held:
        series.append(Series(tokens[late], analysis.actual[late], "held back", 1, line=False, points=True))
    inside = analysis.coverage()
    note = f"{inside['95']:.0%} of the held-back points lie in the 95% band." if inside else ""
    start = float(np.quantile(analysis.y, 0.9))  # the untrained model's losses would flatten everything else
    shown = np.concatenate([analysis.y[analysis.y <= start], analysis.actual, level.mean, *level.interval(95)])
    span = (float(shown.min()) - 0.05, float(shown.max()) + 0.05)
    return Chart(
        f"{run.name}, {SPLITS[analysis.series.split]}", "tokens", "loss (nats)", series, y_range=span, note=note
    )


def _table(analyses: list[tuple[Run, Analysis]]) -> str:
    """Mean squared error on the held-back rows: a law a row, a run and split a column."""
    columns = [(run, one, {score.name: score for score in one.models()}) for run, one in analyses if one.held]
    if not columns:
        return ""
    head = ["law"] + [
        f"{html.escape(run.name)}<br>{html.escape(one.series.split or 'training')}, "
        f"{next(iter(laws.values())).heldout_points} rows"
        for run, one, laws in columns
    ]
    rows = []
    for law in dict.fromkeys(name for *_, laws in columns for name in laws):
        cells = [html.escape(law)]
        for _, one, laws in columns:
            row = laws.get(law)
            mark, best = "selected" if law == one.selected else "", min(found.mse for found in laws.values())
            text = "–" if row is None else f"{row.mse:.2e}"
            text = f"<b>{text}</b>" if row is not None and row.mse == best else text
            below = "" if row is None or row.r2 is None else f"{row.r2:.2f}"
            cells.append(f'{text}<br><span class="soft">{below} {mark}</span>')
        rows.append(cells)
    return (
        "<h3>Error on what was held back: MSE (nats²), R² below it</h3><p>The law marked selected was chosen before, from the "
        "observed part alone; the least error is bold.</p>" + table(head, rows, "Errors on what was held back")
    )
