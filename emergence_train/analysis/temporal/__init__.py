"""The temporal scaling law: the loss at every position and on average, forecast from the first part of a run."""

from emergence_train.analysis.planned_series import Series
from emergence_train.analysis.runs import load, run_series
from emergence_train.analysis.temporal.analyze import analyze_temporal, forecast_final, investigate, investigate_series
from emergence_train.analysis.temporal.position_law import fit_matrix, fit_positions
from emergence_train.analysis.temporal.result import TemporalResult
from emergence_train.analysis.temporal.tables import TemporalAnalysis

__all__ = [
    "Series",
    "TemporalAnalysis",
    "TemporalResult",
    "analyze_temporal",
    "fit_matrix",
    "fit_positions",
    "forecast_final",
    "investigate",
    "investigate_series",
    "load",
    "run_series",
]
