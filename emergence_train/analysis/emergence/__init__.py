"""Emergence from the loss perspective: tasks against loss, what size adds at equal loss, when runs gain abilities."""

from emergence_train.analysis.emergence.analyze import analyze_emergence, backtest

__all__ = ["analyze_emergence", "backtest"]
