"""The output of `analyze temporal`: result.json, CSV tables, figures, and the printed table."""

import hashlib
import re
from dataclasses import replace
from pathlib import Path

import pandas as pd

from emergence_train.analysis.drawing import DEFAULT, save
from emergence_train.analysis.results import as_json
from emergence_train.analysis.temporal.figures import run_figures
from emergence_train.analysis.temporal.result import RunResult, TemporalResult
from emergence_train.analysis.temporal.tables import RunAnalysis, TemporalAnalysis
from emergence_train.files import write_csv, write_json
from emergence_train.waiting import along


def write(out: Path, analysis: TemporalAnalysis, suffixes: tuple[str, ...] = DEFAULT) -> TemporalResult:
    """Write the analysis into the directory `out`, each figure with each of `suffixes`; returns the result with their names.

    result.json is written last, so that it exists only with all other files.
    """
    out.mkdir(parents=True, exist_ok=True)
    for name, parts in _tables(analysis.runs).items():
        if parts:
            frame = pd.concat([rows.assign(run=run.series.run, split=run.series.split or "") for run, rows in parts])
            columns = ["run", "split", *(column for column in frame.columns if column not in ("run", "split"))]
            write_csv(out / f"{name}.csv", frame[columns])
    names = [
        name
        for run in along(analysis.runs, "curves drawn")
        for figure, panels in run_figures(run).items()
        for name in save(panels, out, f"{_stem(run)}-{figure}", suffixes=suffixes)
    ]
    result = replace(analysis.result, figures=tuple(names))
    write_json(out / "result.json", as_json(result))
    return result


def _stem(run: RunAnalysis) -> str:
    """The prefix of the names of a run's figures."""
    name = run.series.run + (f"-{run.series.split}" if run.series.split else "")
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", name)
    if len(stem) > 100 or stem != name:  # cut or changed: keep names of different runs apart
        stem = f"{stem[:90]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return stem


def _tables(runs: tuple[RunAnalysis, ...]) -> dict[str, list[tuple[RunAnalysis, pd.DataFrame]]]:
    """The CSV files by their names, in parts of a run each."""
    positions = [(run, run.positions) for run in runs if run.positions is not None]
    return {
        "forecast": [(run, run.forecast) for run in runs],
        "models": [(run, pd.DataFrame(as_json(run.result.models))) for run in runs],
        "parameters": [(run, tables.parameters) for run, tables in positions],
        "position_forecast": [(run, tables.forecast) for run, tables in positions],
        "residuals": [(run, tables.residuals) for run, tables in positions],
        "forms": [(run, tables.forms) for run, tables in positions],
    }


def _end_lines(run: RunResult) -> list[str]:
    """Where the run ends: ahead of its rows, at rows that were held out, or at its last row."""
    final = run.final
    name = run.run + (f" [{run.split}]" if run.split else "")
    at = f"step {final.step}" + (f" ({final.tokens:,} tokens)" if final.tokens else "")
    interval = f"{final.loss:.4f} nats, 95% {final.low95:.4f} to {final.high95:.4f}"
    if run.nothing_to_forecast is not None:
        return [f"{name}: {run.nothing_to_forecast}", f"  fitted at its last row, {at}: {interval}"]
    if final.actual is None:
        return [f"{name}: loss at {at}, not reached yet", f"  forecast {interval}"]
    if run.fit_until_tokens and final.tokens:
        until, part = f"{run.fit_until_tokens:,} tokens", run.fit_until_tokens / final.tokens
    else:
        until, part = f"step {run.fit_until_step:,}", run.fit_until_step / final.step
    rows = f" (by its last {final.actual_rows} rows)" if final.actual_rows else ""
    share = f", {part:.0%} of the run" if run.fit_fraction else ""  # that of the row: checkpoints may be far apart
    return [
        f"{name}: held-out loss at {at}",
        f"  fitted until {until}{share}; forecast {interval}, observed {final.actual:.4f}{rows}",
    ]


def format_table(result: TemporalResult) -> str:
    """The short table that `analyze temporal` prints: the end of each run, and each law's error on held-out rows."""
    lines = []
    for run in result.runs:
        lines += _end_lines(run)
        if run.models[0].mse is not None:
            lines.append(f"  {'law':<24}{'MSE':>12}{'R2':>10}   {run.models[0].heldout_points} rows held out")
            for model in run.models:
                r2 = f"{model.r2:.4f}" if model.r2 is not None else "-"
                lines.append(f"  {model.name:<24}{model.mse:>12.3e}{r2:>10}")
        lines += [f"  note: {note}" for note in run.notes]
    lines += [f"left out: {run.reason}" for run in result.skipped]
    for ranking in result.ranking:
        width = max(30, *(len(place.run) + 1 for place in ranking.order))
        on = f" on {ranking.split}" if ranking.split else ""
        lines.append(f"ranking{on} (right with probability {ranking.probability:.2f}):")
        for number, place in enumerate(ranking.order, 1):
            lines.append(f"  {number}. {place.run:<{width}}{place.loss:.4f} +- {place.sd:.4f}")
    return "\n".join(lines)
