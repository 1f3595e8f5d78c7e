"""Runs that weighted their training loss by position, compared with uniform weights."""

from emergence_train.analysis.position_weights.analyze import compare_position_weights, regions
from emergence_train.analysis.position_weights.result import PositionWeightsResult

__all__ = ["PositionWeightsResult", "compare_position_weights", "regions"]
