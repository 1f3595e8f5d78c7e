"""Views of a run elsewhere: Weights & Biases. The run's own files are the truth."""

AXES = ("step", "tokens")  # in every point that a tracker gets
