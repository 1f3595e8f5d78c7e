"""The files of a probe's result, and its short table."""

from dataclasses import replace
from pathlib import Path

import pandas as pd

from emergence_train import files
from emergence_train.analysis.drawing import DEFAULT, save
from emergence_train.analysis.memorisation.figures import shares
from emergence_train.analysis.memorisation.result import MemorisationResult
from emergence_train.analysis.results import Interval, as_json


def write(
    out: Path, result: MemorisationResult, items: pd.DataFrame, suffixes: tuple[str, ...] = DEFAULT
) -> MemorisationResult:
    """Write result.json, items.csv, shares.csv and the figure into `out`; returns the result with the figure's names."""
    out.mkdir(parents=True, exist_ok=True)
    result = replace(result, figures=tuple(save([shares(result)], out, "memorised", suffixes=suffixes)))
    files.write_csv(out / "items.csv", items)
    files.write_csv(out / "shares.csv", pd.DataFrame([as_json(row) for row in result.shares]))
    if result.counterfactual:
        files.write_csv(out / "counterfactual.csv", pd.json_normalize([as_json(row) for row in result.counterfactual]))
    files.write_json(out / "result.json", as_json(result))
    return result


def format_table(result: MemorisationResult) -> str:
    """A line for each run and number of repetitions, then trained against never seen."""
    width = max(3, *(len(row.run) for row in result.runs))
    lines = [f"{'run':<{width}}  {'step':>7}  {'seen':>7}  {'extracted':>12}  share [95%]           loss"]
    for row in result.shares:
        counted = f"{row.extracted} of {row.items}"
        ends = f"{row.share:.3f} [{row.low95:.3f}, {row.high95:.3f}]"
        lines.append(f"{row.run:<{width}}  {row.step:>7}  {row.seen:>7}  {counted:>12}  {ends}  {row.loss:.4f}")
    for run in result.runs:
        ends = f"[{run.of_100_low95:.1f}, {run.of_100_high95:.1f}]"
        gain = _signed(Interval(run.loss_gain, run.loss_gain_low95, run.loss_gain_high95), 4)
        lines.append(
            f"{run.run}: of 100 trained sequences {run.of_100:.1f} {ends} beyond controls; loss lower by {gain} nats"
        )
    for compared in result.counterfactual or ():
        who = f"{compared.params:,} parameters, step {compared.step}, {compared.models} models"
        texts = f"{compared.items} texts" + ("" if compared.seen == "all" else f" seen about {compared.seen} times")
        nats, share = _signed(compared.nats), _signed(compared.extracted)
        lines.append(
            f"{who}, with {texts} against without: loss lower by {nats} nats, share extracted greater by {share}"
        )
    return "\n".join(lines)


def _signed(value: Interval, digits: int = 3) -> str:
    ends = "no interval" if value.low95 is None else f"{value.low95:+.{digits}f}, {value.high95:+.{digits}f}"
    return f"{value.value:+.{digits}f} [{ends}]"
