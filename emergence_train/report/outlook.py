"""Where the runs were going: the forecast from the first part of each run, beside what then happened."""

import html

import numpy as np

from emergence_train.analysis.runs import load
from emergence_train.analysis.temporal import LABELS, Analysis
from emergence_train.errors import InputError
from emergence_train.report.runs import Run
from emergence_train.report.svg import Chart, Series

FRACTION = 0.4  # of the planned tokens, observed
SPLITS = {None: "training loss, every step", "iid": "iid, every checkpoint"}
POINTS = 150  # drawn of a curve


def sections(runs: list[Run]) -> list[tuple[str, str, str]]:
    """(anchor, title, body)."""
    charts, tables, notes = [], [], []
    for run in runs:
        try:
            found = {one.split: one for one in load(run.directory) if one.split in SPLITS}
            analyses = [Analysis(found[split], FRACTION) for split in SPLITS if split in found]
        except InputError as error:
            notes.append(f"<p>{html.escape(run.name)}: no forecast. {html.escape(str(error))}</p>")
            continue
        charts += [_fan(run, analysis) for analysis in analyses]
        tables += [_table(run, analysis) for analysis in analyses]
    share = f"{FRACTION:.0%}"
    text = (
        f"<p>Fitted to the first {share} of each run's tokens and to nothing after them; the planned learning rate is "
        "known, the later losses are not. The bands are its 50, 80 and 95% intervals. Points are what was measured: "
        "grey where the fit saw it, orange where it was held back.</p>"
    )
    body = text + "".join(notes) + '<div class="grid">' + "".join(c.html() for c in charts) + "</div>" + "".join(tables)
    return [("outlook", "Forecast and outcome", body)]


def _fan(run: Run, analysis: Analysis) -> Chart:
    level, tokens = analysis.level, analysis.tokens
    observed = analysis.series.tokens[analysis.seen]
    early, late = (slice(None, None, max(1, len(x) // POINTS)) for x in (observed, tokens))
    series = []
    for percent in (95, 80, 50):
        low, high = level.interval(percent)
        series.append(Series(tokens[late], level.mean[late], f"{percent}% band", 0, line=False, low=low[late],
                             high=high[late], quiet=True))  # fmt: skip
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


def _table(run: Run, analysis: Analysis) -> str:
    if not analysis.held:
        return ""
    rows = sorted(analysis.models(), key=lambda row: row["mse"])
    body = ""
    for row in rows:
        chosen = " (selected before)" if row["name"] == analysis.selected else ""
        r2 = "–" if row["r2"] is None else f"{row['r2']:.3f}"
        body += f"<tr><td>{html.escape(row['name'])}{chosen}</td><td>{row['mse']:.2e}</td><td>{r2}</td></tr>"
    count = rows[0]["heldout_points"]
    title = f"{html.escape(run.name)}, {SPLITS[analysis.series.split]}: error on {count} held-back rows"
    return (
        f'<h3>{title}</h3><div class="scroll" tabindex="0" '
        f'role="region" aria-label="Errors of {html.escape(run.name)}"><table><thead><tr><th>law</th><th>MSE (nats²)</th>'
        f"<th>R²</th></tr></thead><tbody>{body}</tbody></table></div>"
    )
