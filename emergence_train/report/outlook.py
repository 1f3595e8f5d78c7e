"""Where the runs were going: the forecast from the first part of each run, beside what then happened, and its laws."""

import html
import re

import numpy as np

from emergence_train.analysis.figures import FORECAST, HELD_OUT, Figure, Trace, interval
from emergence_train.analysis.temporal.figures import FEWEST, forecast, parameters, residuals
from emergence_train.analysis.temporal.tables import RunAnalysis
from emergence_train.errors import listed
from emergence_train.report.collect import FRACTION, SPLITS, Run
from emergence_train.report.first_look import MANY, lowest
from emergence_train.report.parts import folded, grid, table

LABELS = {None: "training loss, every step", "iid": "iid, every checkpoint"}
POINTS, FEWEST_POINTS = 150, 40  # drawn of a curve of few runs, and of many
LINES = 12  # checkpoints drawn of the residuals
FEW = 4  # runs
FEW_ENDS = 3  # runs from which on their ends are compared in a figure
WIDE = 6  # columns from which on the errors are turned: a run a row
SHOWN = 6  # names of runs in a sentence


def sections(runs: list[Run]) -> list[tuple[str, str, str]]:
    """(anchor, title, body)."""
    notes = _missing(runs)
    analyses = [(run, analysis) for run in runs for analysis in _by_split(run)]
    points = max(POINTS * FEW // max(len(runs), FEW), FEWEST_POINTS)
    drawn = {run.name for run in lowest(runs)}
    fans = [
        forecast(analysis, f"{run.name}, {LABELS[analysis.series.split]}", points=points)
        for run, analysis in analyses
        if run.name in drawn and (len(runs) <= MANY or analysis is _by_split(run)[-1])
    ]
    share = f"{FRACTION:.0%}"
    text = (
        f"<p>Fitted to {_observed(analyses, share)}; {_rates(analyses)} "
        "The bands are its 50, 80 and 95% intervals. Points are what was measured: grey where the fit saw it, orange "
        "where it was held out.</p>"
    )
    if not notes and not analyses:
        return []
    body = text + "".join(notes) + _ends(analyses) + folded(fans, "charts") + _notes(analyses) + _table(analyses)
    return [("outlook", "Forecast and outcome", body), *_laws(analyses, share, drawn)]


def _ends(analyses: list[tuple[Run, RunAnalysis]]) -> str:
    """The forecasts of the end of several runs in one figure, each beside what came; of a run that of iid, where there is one."""
    finals = {run.name: analysis.result.final for run, analysis in analyses}  # the last one of a run is of iid
    if len(finals) < FEW_ENDS:
        return ""
    traces: list[Trace] = []
    for place, final in enumerate(finals.values()):
        traces += interval(final.low95, final.loss, final.high95, place, "" if place else "forecast, 95%", FORECAST)
    came = [(final.actual, place) for place, final in enumerate(finals.values()) if final.actual is not None]
    if came:
        x, y = np.array(came, float).T
        traces.append(Trace(x, y, "what came", HELD_OUT, line=False, points=True, marker="triangle"))
    inside = sum(final.low95 <= final.actual <= final.high95 for final in finals.values() if final.actual is not None)
    note = f"{inside} of {len(came)} came out inside." if came else ""
    title = "The end of each run: forecast, and what came"
    return grid(
        [Figure(title, "loss at the end (nats per token)", "", tuple(traces), y_names=tuple(finals), note=note)]
    )


def _missing(runs: list[Run]) -> list[str]:
    """Which runs have no forecast, and of which split; those of one reason together."""
    names: dict[tuple[str, str], list[str]] = {}
    for run in runs:
        for why in run.no_forecast:
            reason = re.sub(f"^run {re.escape(repr(run.name))}(, |: )", "", why)
            of_split = re.match("split '(.+?)': ", reason)  # beside which another may have one
            lacks = f"no forecast of {of_split[1]}" if of_split else "no forecast"
            names.setdefault((lacks, reason[of_split.end() if of_split else 0 :]), []).append(run.name)
    return [f"<p>{html.escape(f'{listed(of, SHOWN)}: {lacks}. {why}')}</p>" for (lacks, why), of in names.items()]


def _observed(analyses: list[tuple[Run, RunAnalysis]], share: str) -> str:
    """What the forecasts have seen."""
    part = f"the first {share} of each run's tokens and to nothing after them"
    if analyses and all(run.tokens < FRACTION * run.planned_tokens for run, _ in analyses):
        return f"all there is so far, less than {share} of the planned tokens"
    unfinished = {analysis.result.fit_fraction is None for _, analysis in analyses}
    if unfinished == {True}:
        return "all rows, which end before the run does"
    return part + (" (all rows of a log that has not reached its end)" if True in unfinished else "")


def _rates(analyses: list[tuple[Run, RunAnalysis]]) -> str:
    """What was known of the learning rate ahead."""
    states = {_rate_is(analysis) for _, analysis in analyses}
    if len(states) > 1 and "known" in states:
        return "the learning rate ahead is known where the run or log says it, the later losses are not."
    return {
        "known": "the planned learning rate is known, the later losses are not.",
        "assumed": "the learning rate is taken to go on or to stay, as the notes say; neither it nor the later losses are known.",
        "unknown": "neither the learning rate nor the later losses are known.",
    }["known" if states == {"known"} else "assumed" if "assumed" in states else "unknown"]


def _rate_is(analysis: RunAnalysis) -> str:
    if analysis.series.plan is None:
        return "unknown"
    return "assumed" if analysis.series.rates_assumed else "known"


def _notes(analyses: list[tuple[Run, RunAnalysis]]) -> str:
    """How a log was read, and what the forecasts could not identify: the notes of `analyze temporal`."""
    notes = dict.fromkeys(f"{run.name}: {note}" for run, analysis in analyses for note in analysis.result.notes)
    listed = "".join(f"<li>{html.escape(note)}</li>" for note in notes)
    return (
        f"<details><summary>Notes on the data and the forecasts</summary><ul>{listed}</ul></details>" if notes else ""
    )


def _by_split(run: Run) -> list[RunAnalysis]:
    """The run's analyses, the training curve first."""
    if run.forecast is None:
        return []
    return sorted(run.forecast.runs, key=lambda analysis: SPLITS.index(analysis.series.split))


def _laws(analyses: list[tuple[Run, RunAnalysis]], share: str, drawn: set[str]) -> list[tuple[str, str, str]]:
    """The sections on the position law's parameters and residuals; none where no law was fitted."""
    laws: list[Figure] = []
    missed: list[Figure] = []
    unbounded: dict[str, list[str]] = {}
    for run, analysis in analyses:
        if analysis.positions is None:
            continue
        figures, missing = parameters(analysis, analysis.positions, run.name)
        for name in missing:
            unbounded.setdefault(name, []).append(run.name)
        if run.name not in drawn:
            continue
        laws += figures
        missed.append(
            residuals(analysis, analysis.positions, f"{run.name}, iid", lines=LINES if len(drawn) <= MANY else 6)
        )
    if not laws:
        return []
    text = (
        "<p>The three numbers of the position law at every checkpoint (iid, points with 95% intervals), and the laws of "
        f"them in tokens that were fitted to the first {share}: grey points were seen by the fit, orange ones not. a0 and "
        "a1 follow a logarithmic, hyperbolic, power or constant law, whichever predicted best within the observed part; a2 "
        "follows the learning-rate schedule.</p>"
    )
    if unbounded:
        names = "; ".join(f"{name} of {html.escape(listed(of, SHOWN))}" for name, of in unbounded.items())
        text += f"<p>Bounded by the data at fewer than {FEWEST} checkpoints, and not drawn: {names}.</p>"
    about = (
        "<p>Measured loss minus the position law fitted at the same checkpoint, by position. Where lines leave the grey "
        "band (95% of the sampling noise at the last checkpoint) together, the law's form is at fault, not the noise.</p>"
    )
    return [
        ("laws", "The law's numbers and their forecast", text + folded(laws, "figures")),
        ("residuals", "What the position law misses", about + folded(missed, "runs")),
    ]


def _table(analyses: list[tuple[Run, RunAnalysis]]) -> str:
    """Mean squared error on the held-out rows: a law a row, a run and split a column."""
    columns = [
        (run, analysis.result, {score.name: score for score in analysis.result.models})
        for run, analysis in analyses
        if analysis.held_out
    ]
    if not columns:
        return ""
    heads = [
        f"{html.escape(run.name)}<br>{html.escape(result.split or 'training')}, {result.models[0].heldout_points} rows"
        for run, result, _ in columns
    ]
    rows = []
    for law in dict.fromkeys(name for *_, laws in columns for name in laws):
        cells = [html.escape(law)]
        for _, result, laws in columns:
            score = laws.get(law)
            mark = "selected" if law == result.selected else ""
            best = min(other.mse for other in laws.values() if other.mse is not None)
            text = "–" if score is None else f"{score.mse:#.3g}"
            text = f"<b>{text}</b>" if score is not None and score.mse == best else text
            below = "" if score is None or score.r2 is None else f"{score.r2:.2f}"
            cells.append(f'{text}<br><span class="soft">{below} {mark}</span>')
        rows.append(cells)
    head = ["law", *heads]
    if len(columns) > WIDE:
        names = [row[0] for row in rows]
        rows = [[title, *cells] for title, *cells in zip(heads, *(row[1:] for row in rows))]
        head = ["run", *names]
    return (
        "<h3>Error on the held-out part: MSE (nats²), R² below it</h3><p>The law marked selected was chosen before, from the "
        "observed part alone; the least error is bold.</p>" + table(head, rows, "Errors on the held-out part")
    )
