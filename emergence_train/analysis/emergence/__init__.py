"""Emergence from the loss perspective: tasks against loss, the effect of size at equal loss, forecasts of abilities."""

from emergence_train.analysis.emergence.analyze import analyze_emergence, investigate
from emergence_train.analysis.emergence.backtest import backtest
from emergence_train.analysis.emergence.finding import EmergenceAnalysis
from emergence_train.analysis.emergence.result import EmergenceResult

__all__ = ["EmergenceAnalysis", "EmergenceResult", "analyze_emergence", "backtest", "investigate"]
