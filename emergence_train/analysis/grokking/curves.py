"""The table that the measures read: one row a measurement of a run."""

import pandas as pd

from emergence_train.errors import InputError

KEYS = ("run", "model", "params", "fraction", "weight_decay", "seed")
MEASURES = ("update", "train_loss", "train_accuracy", "heldout_loss", "heldout_accuracy", "norm")
COLUMNS = (*KEYS, *MEASURES)


def checked(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame sorted by run and update.

    Raises:
        InputError: a column is missing or a setting empty, a measurement is listed twice, or a run has two settings.
    """
    missing = [name for name in COLUMNS if name not in frame]
    if missing:
        raise InputError(f"curves: no column {missing[0]!r}; give {', '.join(COLUMNS)}")
    if frame.empty:
        raise InputError("curves: no rows; give those of a run")
    for name in (*KEYS, "update"):  # a measure may be NaN, where a run diverged
        if frame[name].isna().any():
            row = int(frame[name].isna().to_numpy().argmax())
            raise InputError(
                f"curves: row {row + 1}, column {name!r}: is empty or NaN; give every row of a run its setting"
            )
    if frame.duplicated(["run", "update"]).any():
        row = frame[frame.duplicated(["run", "update"])].iloc[0]
        raise InputError(f"curves: run {row['run']} has update {row['update']} twice; keep each once")
    if (frame.groupby("run")[list(KEYS[1:])].nunique() > 1).any(axis=None):
        raise InputError(
            "curves: a run has two models, sizes, shares, weight decays or seeds; give each run a name of its own"
        )
    return frame.sort_values(["run", "update"], kind="stable")
