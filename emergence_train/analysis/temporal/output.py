"""What `analyze temporal` leaves behind: result.json, CSV tables, figures, and the short table it prints."""

import hashlib
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd

from emergence_train.analysis.drawing import save
from emergence_train.analysis.results import as_json
from emergence_train.analysis.temporal.figures import of_run
from emergence_train.analysis.temporal.result import TemporalResult
from emergence_train.analysis.temporal.tables import RunAnalysis, TemporalAnalysis
from emergence_train.files import write_csv, write_json

POSITION_TABLES = {
    "parameters": "parameters",
    "position_forecast": "forecast",
    "residuals": "residuals",
    "forms": "forms",
}  # file: field of PositionTables


def write(out: Path, analysis: TemporalAnalysis) -> TemporalResult:
    """Write the analysis into the directory `out`; returns the result with the figures' names.

    result.json comes last, so that it vouches for a whole set.
    """
    out.mkdir(parents=True, exist_ok=True)
    _table(out / "forecast.csv", analysis.runs, lambda run: run.forecast)
    _table(out / "models.csv", analysis.runs, lambda run: pd.DataFrame(as_json(run.result.models)))
    with_positions = tuple(run for run in analysis.runs if run.positions is not None)
    for name, table in POSITION_TABLES.items():
        _table(out / f"{name}.csv", with_positions, lambda run, table=table: getattr(run.positions, table))
    names = [
        name
        for run in analysis.runs
        for figure, panels in of_run(run).items()
        for name in save(panels, out, f"{_stem(run)}-{figure}")
    ]
    result = replace(analysis.result, figures=tuple(names))
    write_json(out / "result.json", as_json(result))
    return result


def _stem(run: RunAnalysis) -> str:
    """What the names of a run's figures begin with."""
    name = run.series.run + (f"-{run.series.split}" if run.series.split else "")
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", name)
    if len(stem) > 100 or stem != name:  # cut or changed: keep names of different runs apart
        stem = f"{stem[:90]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return stem


def _table(path: Path, runs: tuple[RunAnalysis, ...], rows: Callable[[RunAnalysis], pd.DataFrame]) -> None:
    if not runs:
        return
    parts = [rows(run).assign(run=run.series.run, split=run.series.split or "") for run in runs]
    frame = pd.concat(parts, ignore_index=True)
    columns = ["run", "split", *(column for column in frame.columns if column not in ("run", "split"))]
    write_csv(path, frame[columns])


def format_table(result: TemporalResult) -> str:
    """The short table that `analyze temporal` prints: the forecast end, and each law's error on held-out rows."""
    lines = []
    for run in result.runs:
        final = run.final
        name = run.run + (f" [{run.split}]" if run.split else "")
        share = f", {run.fit_fraction:.0%} of the run observed" if run.fit_fraction else ""
        lines.append(f"{name}: loss at step {final.step} ({final.tokens:,} tokens){share}")
        lines.append(
            f"  forecast {final.loss:.4f} nats, 95% {final.low95:.4f} to {final.high95:.4f}"
            + (f", measured {final.actual:.4f}" if final.actual is not None else "")
        )
        if run.models[0].mse is not None:
            lines.append(f"  {'law':<24}{'MSE':>12}{'R2':>10}   {run.models[0].heldout_points} rows held out")
            for model in run.models:
                r2 = f"{model.r2:.4f}" if model.r2 is not None else "-"
                lines.append(f"  {model.name:<24}{model.mse:>12.3e}{r2:>10}")
        lines += [f"  note: {note}" for note in run.notes]
    lines += [f"left out: {run.reason}" for run in result.skipped]
    for ranking in result.ranking:
        on = f" on {ranking.split}" if ranking.split else ""
        lines.append(f"ranking{on} (right with probability {ranking.probability:.2f}):")
        for number, place in enumerate(ranking.order, 1):
            lines.append(f"  {number}. {place.run:<30}{place.loss:.4f} +- {place.sd:.4f}")
    return "\n".join(lines)
