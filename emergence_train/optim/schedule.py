"""The learning rate as a pure function of the tokens trained so far. Analyses use it too, to plan ahead."""

import math
from typing import Literal

from pydantic import Field

from emergence_train.section import Section


class Schedule(Section):
    """Learning rate over tokens: linear warm-up to `lr`, then cosine, linear, constant, or constant and a decay (wsd)."""

    kind: Literal["cosine", "linear", "wsd", "constant"] = Field(
        default="cosine", description="shape after the warm-up"
    )
    lr: float = Field(gt=0, description="peak learning rate")
    warmup_tokens: int = Field(default=0, ge=0, description="length of the linear warm-up")
    final_ratio: float = Field(default=0.1, ge=0, le=1, description="lr at the end over peak lr")
    decay_tokens: int = Field(default=0, ge=0, description="wsd only: length of the final decay")
    decay_shape: Literal["linear", "cosine", "sqrt"] = Field(default="linear", description="wsd only: of that decay")


def learning_rate(schedule: Schedule, tokens: float, total: float) -> float:
    """The rate of the step that ends at `tokens` tokens, in a run of `total`.

    Linear warm-up, lr x tokens / warmup_tokens (so the first step is not wasted at 0); then
    cosine:    final + (lr - final) (1 + cos(pi x)) / 2, x from 0 at the end of warm-up to 1 at the end;
    linear:    the same with 1 - x for the cosine;
    constant:  lr;
    wsd:       lr until `decay_tokens` before the end, then down to final as 1 - x, (1 + cos(pi x)) / 2 or 1 - sqrt(x).
    """
    peak, final = schedule.lr, schedule.lr * schedule.final_ratio
    if tokens < schedule.warmup_tokens:
        return peak * tokens / schedule.warmup_tokens
    if schedule.kind == "constant":
        return peak
    begin = schedule.warmup_tokens if schedule.kind in ("cosine", "linear") else total - schedule.decay_tokens
    if tokens <= begin:
        return peak
    done = min((tokens - begin) / (total - begin), 1.0)
    shape = schedule.decay_shape if schedule.kind == "wsd" else schedule.kind
    left = {
        "cosine": (1 + math.cos(math.pi * done)) / 2,
        "linear": 1 - done,
        "sqrt": 1 - math.sqrt(done),
    }[shape]
    return final + (peak - final) * left
