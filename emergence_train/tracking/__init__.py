"""Views of a run elsewhere: Weights & Biases. The run's own files are the truth."""
