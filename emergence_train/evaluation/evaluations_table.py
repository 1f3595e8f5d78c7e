"""The `evaluations` table of a checkpoint's scores."""

import pandas as pd


def table(
    rows: list[dict], *, run: str, params: int, step: int, tokens: int, loss: float, **extra: float
) -> pd.DataFrame:
    """The `evaluations` table of one checkpoint. `loss` is the iid validation loss, nats per token; `extra` may hold
    unigram_loss and bits_per_byte."""
    return pd.DataFrame(rows).assign(run=run, params=params, step=step, tokens=tokens, loss=loss, **extra)
