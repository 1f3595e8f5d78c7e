"""An analysis of runs with its tables, the input of files, figures and the report; nothing is fitted here."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from emergence_train.analysis.planned_series import Series
from emergence_train.analysis.temporal.result import RunResult, TemporalResult


@dataclass(frozen=True)
class PositionTables:
    """The position law of one run's split.

    parameters: position_law.fit_matrix at every checkpoint, with held_out, and the laws of a0, a1 and a2 along training
        (a0_law, a0_law_sd, ...; those of a0 and a1 only where the position law is identified)
    forecast: loss by bin of position and step (position_low, position_high, loss, low50 ... high95, actual)
    residuals: loss minus the position law of the same checkpoint, by bin of position (residual, stderr)
    forms: position_law.compare_forms_of at observed checkpoints
    end: (P,) forecast loss of each position at the last forecast step, nats; None where nothing is forecast
    """

    parameters: pd.DataFrame
    forecast: pd.DataFrame
    residuals: pd.DataFrame
    forms: pd.DataFrame
    end: np.ndarray | None


@dataclass(frozen=True)
class RunAnalysis:
    """One run's split: measurements, forecast and scores.

    `forecast` has a row for each forecast step (step, tokens, loss, low50 ... high95, actual where it was held out), none
    where the last row is the end; `baselines` are the forecasts of the laws that know no learning rate at the same steps, nats.
    """

    series: Series
    seen: np.ndarray  # (C,) whether the row was observed
    result: RunResult
    forecast: pd.DataFrame
    baselines: dict[str, np.ndarray]
    positions: PositionTables | None = None

    @property
    def held_out(self) -> bool:
        return "actual" in self.forecast


@dataclass(frozen=True)
class TemporalAnalysis:
    """`analyze temporal`: the result, and the tables of every run and split behind it, in the result's order."""

    result: TemporalResult
    runs: tuple[RunAnalysis, ...]
