"""Where the runs were going: the forecast from the first part of each run, beside what then happened."""

import html

import numpy as np

from emergence_train.analysis.runs import load
from emergence_train.analysis.temporal import LABELS, Analysis
from emergence_train.errors import InputError
from emergence_train.report.runs import Run
from emergence_train.report.svg import Chart, Series

FRACTION = 0.4  # of the planned tokens, observed
SPLIT = "iid"


def sections(runs: list[Run]) -> list[tuple[str, str, str]]:
    """(anchor, title, body)."""
    charts, tables, notes = [], [], []
    for run in runs:
        try:
            series = next(one for one in load(run.directory) if one.split == SPLIT)
            analysis = Analysis(series, FRACTION)
        except (InputError, StopIteration) as error:
            notes.append(f"<p>{html.escape(run.name)}: no forecast. {html.escape(str(error))}</p>")
            continue
        charts.append(_fan(run, analysis))
        tables.append(_table(run, analysis))
    share = f"{FRACTION:.0%}"
    text = (
        f"<p>Fitted to the first {share} of each run's tokens and to nothing after them; the planned learning rate is "
        "known, the later losses are not. Bands hold 50, 80 and 95% of the forecast. Points are what was measured: "
        "filled where it was seen by the fit, in the other colour where it was held back.</p>"
    )
    body = text + "".join(notes) + '<div class="grid">' + "".join(c.html() for c in charts) + "</div>" + "".join(tables)
    return [("outlook", "Forecast and outcome", body)]


def _fan(run: Run, analysis: Analysis) -> Chart:
    level, tokens = analysis.level, analysis.tokens
    observed = analysis.series.tokens[analysis.seen]
    series = []
    for percent in (95, 80, 50):
        low, high = level.interval(percent)
        series.append(Series(tokens, level.mean, f"{percent}% band", 0, line=False, low=low, high=high, quiet=True))
    series.append(Series(tokens, level.mean, f"forecast ({LABELS.get(analysis.selected, analysis.selected)})", 0))
    series.append(Series(observed, analysis.y, "seen by the fit", 7, line=False, points=True))
    if analysis.held:
        series.append(Series(tokens, analysis.actual, "held back", 1, line=False, points=True))
    inside = analysis.coverage()
    note = f"{inside['95']:.0%} of the held-back points lie in the 95% band." if inside else ""
    start = float(np.quantile(analysis.y, 0.9))  # the untrained model's losses would flatten everything else
    shown = np.concatenate([analysis.y[analysis.y <= start], analysis.actual, level.mean, *level.interval(95)])
    span = (float(shown.min()) - 0.05, float(shown.max()) + 0.05)
    return Chart(f"{run.name}, {SPLIT}", "tokens", "loss (nats)", series, y_range=span, note=note)


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
    return (
        f'<h3>{html.escape(run.name)}: error on {count} held-back checkpoints</h3><div class="scroll" tabindex="0" '
        f'role="region" aria-label="Errors of {html.escape(run.name)}"><table><thead><tr><th>law</th><th>MSE (nats²)</th>'
        f"<th>R²</th></tr></thead><tbody>{body}</tbody></table></div>"
    )
