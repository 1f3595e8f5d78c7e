"""The `evaluations` table of a checkpoint's scores."""

from pathlib import Path

import pandas as pd

from emergence_train.recorder import tables


def table(
    rows: list[dict], *, run: str, params: int, step: int, tokens: int, loss: float, **extra: float
) -> pd.DataFrame:
    """The `evaluations` table of one checkpoint. `loss` is the iid validation loss, nats per token; `extra` may hold
    unigram_loss and bits_per_byte."""
    return pd.DataFrame(rows).assign(run=run, params=params, step=step, tokens=tokens, loss=loss, **extra)


def write(directory: Path, name: str, frame: pd.DataFrame, vocabulary: str) -> Path:
    """Write evaluations/`name`.parquet of a run; rows of tasks that are not in `frame` are kept."""
    path = directory / "evaluations" / f"{name}.parquet"
    if path.is_file():
        before = tables.read(tables.EVALUATIONS, path)
        kept = before[~before["task"].isin(frame["task"])]
        frame = pd.concat([kept[[c for c in kept if c in frame]], frame], ignore_index=True)
    tables.write(tables.EVALUATIONS, frame, path, vocabulary=vocabulary)
    return path
