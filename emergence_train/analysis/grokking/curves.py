"""The table that the measures read: one row a measurement of a run."""

from pathlib import Path

import numpy as np
import pandas as pd

from emergence_train.errors import InputError
from emergence_train.recorder.schemas import INTEGER, REAL, TEXT, Table
from emergence_train.recorder.table_files import Frame, chunks_of

SETTINGS = {
    "run": TEXT,
    "model": TEXT,
    "params": INTEGER,
    "fraction": REAL,
    "weight_decay": REAL,
    "seed": INTEGER,
}
KEYS = tuple(SETTINGS)
MEASURES = ("update", "train_loss", "train_accuracy", "heldout_loss", "heldout_accuracy", "norm")
COLUMNS = (*KEYS, *MEASURES)
# How many are held out; share of all that have the commonest answer
OF_QUESTIONS = {"heldout_questions": INTEGER, "chance": REAL}
UNBOUNDED = ["train_loss", "heldout_loss", "norm"]  # infinite where a run diverged
ACCURACIES = ("train_accuracy", "heldout_accuracy")
CURVES = Table(
    "curves",
    SETTINGS | {name: INTEGER if name == "update" else REAL for name in MEASURES} | OF_QUESTIONS,
    key=("run", "update"),
    non_negative=("params", "fraction", "weight_decay", "update", *ACCURACIES, *OF_QUESTIONS),
    optional=tuple(OF_QUESTIONS),
    sparse=(*MEASURES[1:], *OF_QUESTIONS),  # NaN where a run diverged, or where it is not known
    shares=("fraction", *ACCURACIES, "chance"),
)


def checked(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame in its types, sorted by run and update; infinite losses and norms are NaN.

    Raises:
        InputError: a column is missing; a cell is not of its column's kind, as an accuracy in percent; a setting is empty; a
            measurement is listed twice, or a run has two settings.
    """
    missing = [name for name in COLUMNS if name not in frame]
    if missing:
        raise InputError(f"curves: no column {missing[0]!r}; give {', '.join(COLUMNS)}")
    if frame.empty:
        raise InputError("curves: no rows; give those of a run")
    finite = frame.assign(**frame[UNBOUNDED].replace([np.inf, -np.inf], np.nan)).reset_index(drop=True)
    (frame,) = chunks_of(CURVES, Frame(Path("curves"), finite))
    if frame.duplicated(["run", "update"]).any():
        row = frame[frame.duplicated(["run", "update"])].iloc[0]
        raise InputError(f"curves: run {row['run']} has update {row['update']} twice; keep each once")
    if (frame["params"] == 0).any():
        raise InputError("curves: column 'params': 0 is no size of a model; give its parameters")
    if (frame.groupby("run")[[*KEYS[1:], *OF_QUESTIONS]].nunique() > 1).any(axis=None):
        raise InputError(
            "curves: a run has two models, sizes, shares, weight decays, seeds or chances; give each run a name of its own"
        )
    return frame.sort_values(["run", "update"], kind="stable")
