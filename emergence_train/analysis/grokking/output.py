"""The files of a sweep's result (result.json, tables as CSV, curves as Parquet, figures as PNG and SVG), and its short table."""

from dataclasses import replace
from pathlib import Path

import pandas as pd

from emergence_train import files
from emergence_train.analysis.drawing import DEFAULT, save
from emergence_train.analysis.grokking import figures
from emergence_train.analysis.grokking.result import GrokkingResult, shown
from emergence_train.analysis.results import as_json


def write(
    out: Path, result: GrokkingResult, curves: pd.DataFrame, suffixes: tuple[str, ...] = DEFAULT
) -> GrokkingResult:
    """Write everything into the directory `out`; returns the result with the figures' names."""
    result = replace(result, figures=tuple(_figures(out, result, curves, suffixes)))
    for name in ("runs", "critical_fraction", "times", "efficiency"):
        files.write_csv(out / f"{name}.csv", pd.DataFrame([as_json(row) for row in getattr(result, name)]))
    with files.atomic_path(out / "curves.parquet") as temporary:
        curves.to_parquet(temporary, index=False)
    files.write_json(out / "result.json", as_json(result))
    return result


def _figures(out: Path, result: GrokkingResult, curves: pd.DataFrame, suffixes: tuple[str, ...]) -> list[str]:
    phases = figures.phase_diagrams(result)
    sheets = {
        "phase-diagram": phases,
        "curves": figures.run_curves(figures.shown_run(result), curves),
        "critical-share": (figures.critical_share(result),),
        "times": (figures.times(result),),
    }
    names = []
    for stem, panels in sheets.items():
        if any(panel.drawable() for panel in panels):
            names += save(
                [p for p in panels if p.drawable()], out, stem, columns=min(len(panels), 3), suffixes=suffixes
            )
    return names


def format_table(result: GrokkingResult) -> str:
    """The short table: outcomes, a line for each size and weight decay, then what moves with what."""
    counts = ", ".join(f"{number} {name}" for name, number in result.outcomes.items())
    warning = result.warning()
    width = max(5, *(len(row.model) for row in result.critical_fraction))
    lines = [
        *([f"warning: {warning}"] if warning else []),
        *([f"note: {note}"] if (note := result.note()) else []),
        f"{len(result.runs)} runs of at most {result.budget:,} updates: {counts}",
        f"{'model':<{width}} {'params':>9}  decay  generalised  critical share [95%]",
    ]
    for row in result.critical_fraction:
        share = "unknown" if row.value is None else shown(row.value)
        ends = f"[{shown(row.low95)}, {shown(row.high95)}]"
        counted = f"{row.generalised} of {row.runs}"
        why = f"; {row.reason}" if row.reason else ""
        lines.append(
            f"{row.model:<{width}} {row.params:>9,}  {row.weight_decay:<5g}  {counted:<11}  {share} {ends}{why}"
        )
    trend, time = result.trend, result.time_trend
    if trend.value is not None:
        interval = f"[{shown(trend.low95, '+')}, {shown(trend.high95, '+')}]"
        change = f"{shown(trend.value, '+')} {interval}, p {_p(trend.p)}{result.few_runs()}"
        lines.append(f"critical share for ten times the parameters{result.at_middle()}: {change}")
    else:
        lines.append(
            f"critical share for ten times the parameters: unknown, {result.trend_unknown()}{result.few_runs()}"
        )
    if time.value is not None:
        interval = f"[{shown(time.low95)}, {shown(time.high95)}]"
        lines.append(f"time of runs that generalise as share to the power {time.value:.2f} {interval}, p {_p(time.p)}")
    else:
        lines.append(f"time of runs that generalise: power of the share unknown, {time.reason}")
    for cost in result.efficiency:
        interval = f"[{shown(cost.low95)}, {shown(cost.high95)}]"
        lines.append(
            f"norm of generalising / memorising {cost.model}, decay {cost.weight_decay:g}: {cost.ratio:.3f} {interval}"
        )
    return "\n".join(lines)


def _p(value: float | None) -> str:
    return "unknown" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"
