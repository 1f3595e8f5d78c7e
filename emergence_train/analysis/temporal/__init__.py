"""The temporal scaling law: the loss at every position and on average, forecast from the first part of a run."""

from emergence_train.analysis.temporal.analyze import analyze_temporal, forecast_final

__all__ = ["analyze_temporal", "forecast_final"]
