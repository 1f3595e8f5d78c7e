"""Backtest of ability forecasts: the largest size is hidden and its abilities are forecast from the others."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from emergence_train.analysis.emergence import table as emergence_table
from emergence_train.analysis.emergence.analyze import find, generator
from emergence_train.analysis.emergence.forecast import OBSERVED, LossDraws, crossing, draw_losses
from emergence_train.analysis.emergence.result import BacktestRow


def backtest(paths: str | Path | Iterable[str | Path], observed: float = OBSERVED) -> list[BacktestRow]:
    """Hide the largest size of each family: thresholds from the others, its loss forecast from its first `observed` share.

    One row per emergent task (verdict without the hidden size) and hidden run: predicted tokens with interval, the tokens
    at which its loss crossed the threshold from all sizes, and whether the interval contains them.
    """
    tasks, *_ = emergence_table.load(paths)
    rows = []
    for task in tasks:
        if len(task.sizes) < 2:
            continue
        hidden = task.frame["params"] == task.sizes[-1]
        smaller = find(emergence_table.part(task, ~hidden.to_numpy()))
        whole = find(task)
        if smaller.verdict.name != "emergent" or whole.verdict.name != "emergent":
            continue
        rng = generator(task.family, task.task, task.metric, "backtest")
        for run, points in task.frame[hidden].groupby("run"):
            points = points.sort_values("step")
            ahead = draw_losses(str(run), points, None, rng, until=observed)
            tokens, loss = points["tokens"].to_numpy(float), points["loss"].to_numpy(float)
            predicted = crossing(ahead, smaller.eta_draws, rng)
            measured = crossing(LossDraws(str(run), ahead.params, tokens, loss, True), whole.eta_draws, rng)
            low, high, actual = (
                np.inf if at is None else at
                for at in (predicted.tokens.low95, predicted.tokens.high95, measured.tokens.value)
            )
            rows.append(
                BacktestRow(
                    family=task.family,
                    task=task.task,
                    metric=task.metric,
                    run=str(run),
                    params=ahead.params,
                    predicted=predicted.tokens,
                    actual=measured.tokens.value,
                    inside95=bool(low <= actual <= high),
                    status=predicted.status,
                )
            )
    return rows
