"""The learning rate as a pure function of the tokens trained so far. Analyses use it too, to plan ahead."""

import math

from emergence_train.config import Schedule


def learning_rate(schedule: Schedule, tokens: float, total: float) -> float:
    """The rate of the step that ends at `tokens` tokens, in a run of `total`.

    Linear warm-up, lr x tokens / warmup_tokens (so the first step is not wasted at 0); then
    cosine:    final + (lr - final) (1 + cos(pi x)) / 2, x from 0 at the end of warm-up to 1 at the end;
    constant:  lr;
    wsd:       lr until `decay_tokens` before the end, then down to final as 1 - x, (1 + cos(pi x)) / 2 or 1 - sqrt(x).
    """
    peak, final = schedule.lr, schedule.lr * schedule.final_ratio
    if tokens < schedule.warmup_tokens:
        return peak * tokens / schedule.warmup_tokens
    if schedule.kind == "constant":
        return peak
    begin = schedule.warmup_tokens if schedule.kind == "cosine" else total - schedule.decay_tokens
    if tokens <= begin:
        return peak
    done = min((tokens - begin) / (total - begin), 1.0)
    shape = "cosine" if schedule.kind == "cosine" else schedule.decay_shape
    left = {
        "cosine": (1 + math.cos(math.pi * done)) / 2,
        "linear": 1 - done,
        "sqrt": 1 - math.sqrt(done),
    }[shape]
    return final + (peak - final) * left
