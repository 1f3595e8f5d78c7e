"""The unit of a logged loss. The laws are fitted to nats a token; bits and perplexity are converted.

    nats = bits x ln 2 = ln(perplexity)

Bits per byte become nats per byte: how many bytes a token has is not in a log.
"""

import math
import re

import numpy as np
import pandas as pd

from emergence_train.analysis.logs.numbers import without_unit
from emergence_train.errors import InputError

UNITS = ("nats", "bits", "perplexity")
BITS = {"bits", "bpb", "bpt", "bpc", "bpw"}
BASE_2 = re.compile(r"(?<![a-z])(?:log|base)[\s_]*2(?!\d)")
# "loss (exp)", "exp(loss)", "loss_exp"; but "exp/loss" is of an experiment
EXPONENTIAL = re.compile(r"(?<![a-z])exp\(|[(\[]exp[)\]]|loss[\s_]exp$|^exp[\s_]loss$")
# What no unit turns into nats: "loss x1000", "loss (1e-3)", "loss (%)", "loss (log10)"
_POWER = r"(?:1e\+?\d+|10{2,}|10\s*\^\s*\d+)"
SCALED = re.compile(
    rf"[x×*]\s*1e-\d+\s*$|[x×*/]\s*{_POWER}\s*$|[(\[]\s*(?:[x×*/]?\s*(?:{_POWER}|1e-\d+)|%|[kmgbt]|base\s*10|scaled|relative|normali[sz]ed|milli\w*)\s*[)\]]"
    r"|(?<![a-z])log[\s_]*10(?!\d)",
    re.IGNORECASE,
)
PER = re.compile(r"(bpb|per_byte)$|(bpc|per_char(?:acter)?)$|(bpw|per_word)$")
BRACKETS = re.compile(r"\(.*?\)|\[.*?\]")
# Words in the brackets of a column's name that say no unit, or one that is read elsewhere
_COUNT = (
    "total seen consumed trained processed cumulative count counts number so far all global in of the token tokens step steps "
    "training train non embedding embeddings without params parameters"
)
_LOSS = (
    "nats nat bits bpb bpt bpc bpw ppl perplexity exp log2 base 2 per token tokens byte bytes char character characters word "
    "words loss ce nll lm cross entropy train training val valid validation eval test dev avg average mean smoothed running ema "
    "raw step batch global"
)
_WORDS = {name: frozenset(_COUNT.split()) for name in ("step", "tokens", "params")} | {"loss": frozenset(_LOSS.split())}


def without_brackets(column: object) -> str:
    return BRACKETS.sub("", str(column))


def unknown_unit(quantity: str, column: object) -> str:
    """What a column's name says of its unit, in brackets, that is neither one nor a word of the quantity: "per GPU"; else ""."""
    name = str(column)
    if quantity == "lr":
        return name if SCALED.search(name) else ""
    if quantity not in _WORDS:
        return ""
    texts = BRACKETS.findall(name if quantity == "loss" else without_unit(name))
    known = _WORDS[quantity]
    return next((text[1:-1].strip() for text in texts if {*re.findall(r"[^\W_]+|%", text.lower())} - known), "")


def unit_of(column: str) -> str:
    """By the words of a column's name: nats unless it says otherwise. Raises InputError where it says what no unit is."""
    name = column.lower()
    words = {*re.split(r"[^a-z0-9]+", name)}
    if SCALED.search(name):
        raise InputError(
            f"{column!r}: by its name its losses are no nats; write them in nats, and call the column loss"
        )
    if BASE_2.search(name):
        return "bits"
    if words & {"log", "ln", "nats"}:
        return "nats"
    if words & {"ppl", "perplexity"} or EXPONENTIAL.search(name):
        return "perplexity"
    return "bits" if words & BITS else "nats"


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


def notes(column: str, unit: str, remedy: str = "; --loss-unit nats says otherwise") -> list[str]:
    """What a reader should know of the conversion, and how to do without; nothing for nats that are known to be."""
    if unit == "nats":
        unknown = unknown_unit("loss", column)
        return [f"{column!r}: {unknown!r} is no unit that is known; its losses are taken as nats{remedy}"] * bool(
            unknown
        )
    per = PER.search("_".join(re.split(r"[^a-z0-9]+", column.lower())).strip("_"))
    if per and unit == "bits":
        what = next(name for name, word in zip(("byte", "character", "word"), per.groups()) if word)
        return [f"{column!r} counts {what}s: the loss is in nats a {what} (bits x ln 2), not a token"]
    how = "bits x ln 2" if unit == "bits" else "ln of the perplexity"
    return [f"{column!r} is taken as {unit}, and its losses in nats ({how}){remedy}"]
