"""What `analyze temporal` leaves behind: result.json, CSV tables, figures, and the short table it prints."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd

from emergence_train.analysis.temporal.analyze import Analysis
from emergence_train.analysis.temporal.figures import draw
from emergence_train.analysis.temporal.result import TemporalResult, as_json
from emergence_train.files import write_csv, write_json


def write(out: Path, result: TemporalResult, analysed: list[Analysis]) -> TemporalResult:
    """Write what analyze.investigate returned into the directory `out`; returns the result with the figures' names.

    result.json comes last, so that it stands only for a whole set.
    """
    out.mkdir(parents=True, exist_ok=True)
    with_positions = [one for one in analysed if one.positions is not None]
    _table(out / "forecast.csv", analysed, Analysis.forecast_rows)
    _table(out / "models.csv", analysed, lambda one: pd.DataFrame(as_json(one.models())))
    _table(out / "parameters.csv", with_positions, Analysis.parameter_rows)
    _table(out / "position_forecast.csv", with_positions, Analysis.position_rows)
    _table(out / "residuals.csv", with_positions, Analysis.residual_rows)
    _table(out / "forms.csv", with_positions, Analysis.form_rows)
    result = replace(result, figures=tuple(name for one in analysed for name in draw(one, out)))
    write_json(out / "result.json", as_json(result))
    return result


def _table(path: Path, analysed: list[Analysis], rows: Callable[[Analysis], pd.DataFrame]) -> None:
    if not analysed:
        return
    parts = [rows(one).assign(run=one.series.run, split=one.series.split or "") for one in analysed]
    frame = pd.concat(parts, ignore_index=True)
    columns = ["run", "split", *(column for column in frame.columns if column not in ("run", "split"))]
    write_csv(path, frame[columns])


def format_table(result: TemporalResult) -> str:
    """The short table that `analyze temporal` prints: the forecast end, and each law's error on held-out rows."""
    lines = []
    for one in result.runs:
        final = one.final
        name = one.run + (f" [{one.split}]" if one.split else "")
        share = f", {one.fit_fraction:.0%} of the run observed" if one.fit_fraction else ""
        lines.append(f"{name}: loss at step {final.step} ({final.tokens:,} tokens){share}")
        lines.append(
            f"  forecast {final.loss:.4f} nats, 95% {final.low95:.4f} to {final.high95:.4f}"
            + (f", measured {final.actual:.4f}" if final.actual is not None else "")
        )
        if one.models[0].mse is not None:
            lines.append(f"  {'law':<24}{'MSE':>12}{'R2':>10}   {one.models[0].heldout_points} rows held back")
            for model in one.models:
                r2 = f"{model.r2:.4f}" if model.r2 is not None else "-"
                lines.append(f"  {model.name:<24}{model.mse:>12.3e}{r2:>10}")
        lines += [f"  note: {note}" for note in one.notes]
    lines += [f"left out: {one.reason}" for one in result.skipped]
    for ranking in result.ranking:
        on = f" on {ranking.split}" if ranking.split else ""
        lines.append(f"ranking{on} (right with probability {ranking.probability:.2f}):")
        for number, place in enumerate(ranking.order, 1):
            lines.append(f"  {number}. {place.run:<30}{place.loss:.4f} +- {place.sd:.4f}")
    return "\n".join(lines)
