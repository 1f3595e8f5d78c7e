"""The `evaluations` table of a checkpoint's scores."""

import pandas as pd

from emergence_train.evaluation.task_digest import Digests
from emergence_train.recorder.schemas import TASK_DIGEST


def table(
    rows: list[dict],
    digests: Digests,
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
    known = [digests.of(row["task"]) for row in rows]
    place = {"run": run, "params": params, "step": step, "tokens": tokens, "loss": loss}
    return pd.DataFrame(rows).assign(**place, **extra, **{TASK_DIGEST: known})
