"""The files of `analyze weights`, and its short table."""

from dataclasses import replace
from pathlib import Path

from emergence_train import files
from emergence_train.analysis.drawing import DEFAULT, save
from emergence_train.analysis.position_weights.figures import figures, table
from emergence_train.analysis.position_weights.result import PositionWeightsResult
from emergence_train.analysis.results import as_json


def write(out: Path, result: PositionWeightsResult, suffixes: tuple[str, ...] = DEFAULT) -> PositionWeightsResult:
    """Write result.json, CSV and figures into the directory `out`; returns the result with the figures' names."""
    out.mkdir(parents=True, exist_ok=True)
    files.write_csv(out / "position_weights.csv", table(result))
    panels = figures(result)
    result = replace(
        result, figures=tuple(save(panels, out, "position_weights", columns=len(panels), suffixes=suffixes))
    )
    files.write_json(out / "result.json", as_json(result))
    return result


def format_table(result: PositionWeightsResult) -> str:
    """The short table that `analyze weights` prints: differences from uniform weights on iid and ood."""
    width = max([12, *(len(row.variant) for row in result.rows)]) + 2
    lines = [f"{'weights':<{width}}{'split':<8}{'region':<8}{'loss':>9}{'difference':>12}   95% interval over seeds"]
    for row in result.rows:
        if row.split in ("iid", "ood"):
            known = row.low95 is not None and row.high95 is not None
            over_seeds = f"{row.low95:+.4f} to {row.high95:+.4f}" if known else "one seed"
            lines.append(
                f"{row.variant:<{width}}{row.split:<8}{row.region:<8}{row.loss:>9.4f}"
                f"{row.difference:>+12.4f}   {over_seeds} ({row.seeds} seeds)"
            )
    return "\n".join([*lines, *result.notes])
