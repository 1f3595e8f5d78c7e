"""The old name of recorder.tables."""

from emergence_train.recorder.tables import *  # noqa: F403
