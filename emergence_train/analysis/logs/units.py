"""The unit of a logged loss. The laws are fitted to nats a token; bits and perplexity are converted.

    nats = bits x ln 2 = ln(perplexity)

Bits per byte become nats per byte: how many bytes a token has is not in a log.
"""

import math

import numpy as np
import pandas as pd

UNITS = ("nats", "bits", "perplexity")


def unit_of(name: str) -> str:
    """By the words of a column's name, joined by underscores: nats unless it says otherwise."""
    words = set(name.lower().split("_"))
    if words & {"log", "ln", "nats"}:
        return "nats"
    if words & {"ppl", "perplexity"}:
        return "perplexity"
    return "bits" if words & {"bits", "bpb", "bpt"} else "nats"


def unit_beside_perplexity(loss: pd.Series, perplexity: pd.Series | None) -> str | None:
    """bits where 2^loss and not e^loss is the perplexity that stands in the same rows, as in fairseq's logs; else None."""
    if perplexity is None or perplexity is loss:
        return None
    rows = np.isfinite(loss) & np.isfinite(perplexity) & (perplexity > 1) & (loss > 0)
    if not rows.any():
        return None
    ratio = float((loss[rows] / np.log(perplexity[rows])).median())
    return "bits" if abs(ratio * math.log(2) - 1) < 0.02 else None


def to_nats(loss: pd.Series, unit: str) -> pd.Series:
    """Losses of `unit` in nats; a perplexity that is not positive becomes infinite, as other numbers that are none."""
    if unit == "bits":
        return loss * math.log(2)
    if unit == "perplexity":
        return pd.Series(np.log(loss.where(~(loss <= 0), np.inf)), loss.index)
    return loss


def notes(name: str, column: str, unit: str, remedy: str = "; --loss-unit nats says otherwise") -> list[str]:
    """What a reader should know of the conversion, and how to do without; nothing for nats."""
    if unit == "nats":
        return []
    if name.endswith(("bpb", "per_byte")) and unit == "bits":
        return [f"{column!r} counts bytes: the loss is in nats a byte (bits x ln 2), not a token"]
    how = "bits x ln 2" if unit == "bits" else "ln of the perplexity"
    return [f"{column!r} is taken as {unit}, and its losses in nats ({how}){remedy}"]
