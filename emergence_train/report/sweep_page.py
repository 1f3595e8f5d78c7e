"""The page of a sweep of small models: what generalised, from how much data, and when."""

import html
from pathlib import Path

import pandas as pd

from emergence_train import files
from emergence_train.analysis.grokking import figures
from emergence_train.analysis.grokking.result import APART, GrokkingResult, shown
from emergence_train.report.page import document
from emergence_train.report.parts import grid, table

MEANINGS = (
    "A model is trained on a share of a task's questions and asked the others too. <b>Comprehension</b>: it answers the others "
    f"less than {APART:,} updates after those trained on; <b>grokking</b>: later than that; <b>memorisation</b>: not at all; "
    "<b>confusion</b>: it does not answer those trained on. Answered: nine of ten are right, or more "
    "where luck gets so many; <b>unclear</b>: too few were left to ask."
)


def write_page(out: Path, name: str, result: GrokkingResult, curves: pd.DataFrame) -> Path:
    """Write report.html into `out`; returns its path."""
    run = figures.shown_run(result)
    if run.delay is None:
        which = f"the first: {run.outcome}. No run knew both kinds of questions"
    else:
        which = f"of all the one with the longest delay: {run.outcome}. It knew the held-out questions {run.delay:,}"
        which += " updates after those trained on"
    sections = [
        ("outcomes", "Outcomes", _outcomes(result) + grid(figures.phase_diagrams(result))),
        ("critical", "How much data it takes", _critical(result) + grid([figures.critical_share(result)])),
        ("times", "How long it takes", _times(result) + grid([figures.times(result)])),
        (
            "run",
            "One run",
            f"<p>{html.escape(run.run)}, {which}.</p>" + grid(figures.run_curves(run, curves)),
        ),
        ("efficiency", "What the solutions cost", _efficiency(result)),
    ]
    path = out / "report.html"
    files.write_bytes(path, document(name, "Delayed generalisation", sections).encode())
    return path


def _outcomes(result: GrokkingResult) -> str:
    counts = ", ".join(f"{number} {outcome}" for outcome, number in result.outcomes.items())
    censored = sum(run.censored for run in result.runs)
    warning = f"<p><strong>Warning: {html.escape(text)}.</strong></p>" if (text := result.warning()) else ""
    note = f"<p>Note: {html.escape(text)}.</p>" if (text := result.note()) else ""
    return (
        f"{warning}{note}<p>{len(result.runs)} runs of at most {result.budget:,} updates: {counts}. {censored} ended before they "
        f"generalised: they might have later.</p><p>{MEANINGS}</p>"
    )


def _critical(result: GrokkingResult) -> str:
    rows = [
        [
            html.escape(row.model),
            f"{row.params:,}",
            f"{row.weight_decay:g}",
            f"{row.generalised} of {row.runs}",
            shown(row.value) if row.reason is None else html.escape(f"unknown: {row.reason}"),
            f"{shown(row.low95)} to {shown(row.high95)}",
        ]
        for row in result.critical_fraction
    ]
    head = ["model", "parameters", "weight decay", "generalised", "critical share", "95% interval"]
    about = "The critical share is the one from which half of the seeds generalise within the budget."
    return f"<p>{about} {_trend(result)}</p>" + table(head, rows, "critical share by size")


def _trend(result: GrokkingResult) -> str:
    trend = result.trend
    if trend.value is None or trend.p is None:
        return f"The sweep says nothing of how the critical share moves with size: {result.trend_unknown()}{result.few_runs()}."
    words = "falls" if trend.value < 0 else "grows"
    if trend.p > 0.05:
        words = "does not move beyond chance"
    line = (
        f"For ten times the parameters{result.at_middle()} the critical share {words}: {shown(trend.value, '+')}, 95% interval "
        f"{shown(trend.low95)} to {shown(trend.high95)}, p = {trend.p:.2g}, over {trend.sizes} sizes{result.few_runs()}."
    )
    if trend.straight_p is not None and trend.straight_p < 0.05:
        share = "The share's logarithm" if trend.log_share else "It"
        line += f" {share} is no straight line in the logarithm of the parameters (p = {trend.straight_p:.2g})."
    return line


def _times(result: GrokkingResult) -> str:
    time = result.time_trend
    if time.value is None:
        return f"<p>How the time to generalise depends on the share is unknown: {time.reason}.</p>"
    return (
        f"<p>Time of runs that generalise goes as share to the power {time.value:.1f} (95% interval {shown(time.low95)} to "
        f"{shown(time.high95)}), of {time.generalised} runs that did and {time.runs - time.generalised} that did not.</p>"
    )


def _efficiency(result: GrokkingResult) -> str:
    if not result.efficiency:
        return "<p>No size was seen both to memorise and to generalise at the same training loss late in training.</p>"
    rows = [
        [
            html.escape(cost.model),
            f"{cost.weight_decay:g}",
            f"{cost.loss:.2g}",
            f"{cost.memorising_norm:.2f} ({cost.memorising_runs} runs)",
            f"{cost.generalising_norm:.2f} ({cost.generalising_runs} runs)",
            f"{cost.ratio:.3f}",
            f"{shown(cost.low95)} to {shown(cost.high95)}",
        ]
        for cost in result.efficiency
    ]
    head = ["model", "weight decay", "training loss", "memorising norm", "generalising norm", "ratio", "95% interval"]
    words = (
        "Norms at equal training loss in the last quarter of the budget. Below 1 the generalising solution is cheaper."
    )
    return f"<p>{words}</p>" + table(head, rows, "norms of the two solutions")
