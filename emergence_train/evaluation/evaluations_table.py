"""The `evaluations` table of a checkpoint's scores."""

from collections.abc import Mapping

import pandas as pd

from emergence_train.evaluation.task_digest import column
from emergence_train.recorder.schemas import TASK_DIGEST


def table(
    rows: list[dict],
    digests: Mapping[str, str],
    *,
    run: str,
    params: int,
    step: int,
    tokens: int,
    loss: float,
    **extra: float,
) -> pd.DataFrame:
    """The `evaluations` table of one checkpoint; `digests` are those of the tasks (see task_digest). `loss` is the iid validation
    loss, nats per token; `extra` may hold unigram_loss and bits_per_byte."""
    known = column((row["task"] for row in rows), digests)
    place = {"run": run, "params": params, "step": step, "tokens": tokens, "loss": loss}
    return pd.DataFrame(rows).assign(**place, **extra, **{TASK_DIGEST: known})
