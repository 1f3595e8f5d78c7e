"""Delayed generalization: outcomes of small runs, the critical share of data and its trend with size, times, efficiency.

It reads curves (curves.py: one row a measurement), of `emergence-train grok` or of anybody, and knows nothing of training.
"""

from emergence_train.analysis.grokking.analyze import analyze

__all__ = ["analyze"]
