"""The temporal scaling law: the loss at every position and on average, forecast from the first part of a run."""

from emergence_train.analysis.temporal.analyze import analyze_temporal, forecast_final
from emergence_train.analysis.temporal.result import TemporalResult, as_json

__all__ = ["TemporalResult", "analyze_temporal", "as_json", "forecast_final"]
