"""Backtest of ability forecasts: the largest size is hidden and its abilities are forecast from the others.

Only crossings that were ahead count: a run whose loss was below the threshold already where the observation ends tells nothing of
a forecast.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from emergence_train.analysis.emergence import table as emergence_table
from emergence_train.analysis.emergence.analyze import find, generator
from emergence_train.analysis.emergence.forecast import OBSERVED, LossDraws, crossing, draw_losses
from emergence_train.analysis.emergence.result import BacktestRow
from emergence_train.analysis.emergence.table import TaskMetric


def backtest(paths: str | Path | Iterable[str | Path], observed: float = OBSERVED) -> list[BacktestRow]:
    """Hide the largest size of each family: thresholds from the others, its loss forecast from its first `observed` share.

    One row per emergent task (verdict without the hidden size) and hidden run whose crossing was ahead: predicted tokens with
    interval, the tokens at which its loss crossed the threshold from all sizes (None where it did not), and whether the
    interval contains them (no upper end contains a crossing that never came).
    """
    tasks, *_ = emergence_table.load(paths)
    return [row for task in tasks if len(task.sizes) > 1 for row in _hidden_size(task, observed)]


def _hidden_size(task: TaskMetric, observed: float) -> list[BacktestRow]:
    hidden = task.frame["params"] == task.sizes[-1]
    smaller = find(emergence_table.part(task, ~hidden.to_numpy()))
    whole = find(task)
    if smaller.verdict.name != "emergent" or whole.verdict.name != "emergent":
        return []
    rng = generator(task.family, task.task, task.metric, "backtest")
    rows = []
    for run, points in task.frame[hidden].groupby("run"):
        points = points.sort_values("step")
        ahead = draw_losses(str(run), points, None, rng, until=observed)
        row = _row(task, ahead, points, smaller.eta_draws, whole.eta_draws, rng)
        rows += [row] if row is not None else []
    return rows


def _row(
    task: TaskMetric,
    ahead: LossDraws,
    points: pd.DataFrame,
    smaller: np.ndarray,
    whole: np.ndarray,
    rng: np.random.Generator,
) -> BacktestRow | None:
    """The forecast of one hidden run beside what happened; None where the crossing was not ahead, or nothing was forecast.

    `smaller` and `whole` are draws of the threshold without and with the hidden size, nats.
    """
    if not len(ahead.future):
        return None
    predicted = crossing(ahead, smaller, rng)
    tokens, loss = points["tokens"].to_numpy(float), points["loss"].to_numpy(float)
    measured = crossing(LossDraws(ahead.run, ahead.params, tokens, loss, True), whole, rng).tokens
    if measured.value is not None and measured.value <= ahead.tokens[-1]:
        return None
    low, high, actual = (
        np.inf if at is None else at for at in (predicted.tokens.low95, predicted.tokens.high95, measured.value)
    )
    return BacktestRow(
        family=task.family,
        task=task.task,
        metric=task.metric,
        run=ahead.run,
        params=ahead.params,
        predicted=predicted.tokens,
        actual=measured.value,
        inside95=bool(low <= actual <= high),
        status=predicted.status,
    )
