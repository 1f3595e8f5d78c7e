"""What a model repeats of the text it was trained on, by size and repetitions, against text it never saw.

It reads items (items.py: one row a probed sequence) and knows nothing of models.
"""

from emergence_train.analysis.memorisation.analyze import analyze
from emergence_train.analysis.memorisation.counterfactual import counterfactual

__all__ = ["analyze", "counterfactual"]
