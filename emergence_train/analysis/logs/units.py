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
# A run may be called base_2, log2, mix100 or 1e-3: a base or a scale is one in brackets behind the quantity, or right beside it
_QUANTITY = {
    "loss": r"(?:loss(?:es)?|entropy|perplexity|(?<![a-z])(?:nll|ce|ppl|bp[bcwt]|nats|bits))(?![a-z])",
    "lr": r"(?:(?<![a-z])lr|learning[\s_]rate)(?![a-z])",
    "step": r"(?:steps?|iter(?:ation)?s?|updates?)(?![a-z])",
}


def _in_brackets(what: str, quantity: str) -> str:
    return rf"[(\[]\s*(?:{what})\s*[)\]](?!.*{quantity})"


def _based(base: int, quantity: str) -> str:
    """log2, base 2, log_2: "loss (log2)", "loss_base2", "log2(ppl)", "log2_loss"."""
    log = rf"(?<![a-z])log[\s_-]?{base}"
    either = rf"(?:log|base)[\s_-]?{base}(?!\d)"
    inside = _in_brackets(rf"[^()\[\]]*(?<![a-z]){either}[^()\[\]]*", quantity)
    return rf"{inside}|{quantity}[\s_-]?{either}|{log}(?:\(|[\s_](?:[a-z]+[\s_])?{quantity})"


def _scaled(quantity: str) -> re.Pattern:
    """What no unit makes the quantity of: "loss x1000", "1000*loss", "loss (1e-3)", "loss (%)", "loss (log10)"."""
    power = r"(?:1e[-+]?\d+|10{2,}|\d+\s*\^\s*-?\d+)"
    words = r"scaled|relative|normali[sz]ed|milli[\w-]*"
    inside = _in_brackets(rf"[x×*/]\s*(?:{power}|\d+)|{power}|%|{words}", quantity)
    behind = rf"{quantity}[\s_]*[x×*/][\s_]*{power}\s*$"
    before = rf"(?<![a-z0-9.-]){power}\s*[x×*]\s*(?:[a-z]+[\s_/])?{quantity}"
    return re.compile("|".join((inside, behind, before, _based(10, quantity))), re.IGNORECASE)


BASE_2 = re.compile(_based(2, _QUANTITY["loss"]))
SCALED = {name: _scaled(words) for name, words in _QUANTITY.items()}
# "loss (exp)", "exp(loss)", "loss_exp"; but "exp/loss" and "exp_loss" are of an experiment
EXPONENTIAL = re.compile(r"(?<![a-z])exp\(|loss[\s_]exp$|" + _in_brackets("exp", _QUANTITY["loss"]))
FEW_NATS = 1.2  # a perplexity of 3.3: below those of the best models on most texts
PER = re.compile(r"(bpb|per_byte)$|(bpc|per_char(?:acter)?)$|(bpw|per_word)$")
BRACKETS = re.compile(r"\(.*?\)|\[.*?\]")
# Words in the brackets of a column's name that say no unit, or one that is read elsewhere
_COUNT = (
    "total seen consumed trained processed cumulative count counts number so far all global in of the token tokens step steps "
    "training train non embedding embeddings emb without with incl including excl excluding padding params parameters approx "
    "approximate est estimated cum gpus ranks"
)
_LOSS = (
    "nats nat bits bpb bpt bpc bpw ppl perplexity exp log2 base 2 per token tokens byte bytes char character characters word "
    "words loss ce nll lm cross entropy train training val valid validation eval test dev avg average mean smoothed running ema "
    "raw step batch global"
)
_WORDS = {name: frozenset(_COUNT.split()) for name in ("tokens", "params")} | {"loss": frozenset(_LOSS.split())}


class UnitError(InputError):
    """A unit that cannot be converted; who reads the file names it."""


def without_brackets(column: object) -> str:
    return BRACKETS.sub("", str(column))


def unknown_unit(quantity: str, column: object) -> str:
    """What a column's name says of its unit, in brackets, that is neither one nor a word of the quantity: "per GPU"; else ""."""
    name = str(column) if quantity in ("loss", "lr") else without_unit(column)
    if quantity not in _WORDS:  # "Step (optimizer)" and "lr (group 0)" are: a scale alone makes them another
        return name if quantity in SCALED and SCALED[quantity].search(name) else ""
    texts, known = BRACKETS.findall(name), _WORDS[quantity]
    return next((text[1:-1].strip() for text in texts if {*re.findall(r"[^\W_]+|%", text.lower())} - known), "")


def unit_of(column: str, remedy: str = ", or give --loss-unit nats if they are") -> str:
    """By the words of a column's name: nats unless it says otherwise. Raises UnitError where it says what no unit is."""
    name = column.lower()
    words = {*re.split(r"[^a-z0-9]+", name)}
    if SCALED["loss"].search(name):
        raise UnitError(
            f"{column!r}: by its name its losses are no nats; write them in nats, and call the column loss{remedy}"
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


def few_nats(column: str, unit: str, nats: pd.Series) -> list[str]:
    """A hint at losses that are called perplexity, as open_lm's are, and would be fewer nats than text has."""
    known = nats[np.isfinite(nats)]
    if unit != "perplexity" or known.empty or known.median() >= FEW_NATS:
        return []
    return [
        f"{column!r} gives {known.min():.3g} to {known.max():.3g} nats, few for a token of text that is no code: if its "
        "values are nats themselves, a name with nats says so"
    ]
