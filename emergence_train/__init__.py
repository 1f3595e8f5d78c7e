"""The framework: data, models, training, evaluation, analysis and reports. The command line is emergence_train.cli."""

__version__ = "0.1.0"
