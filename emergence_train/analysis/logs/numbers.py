"""Cells of a log as numbers: 1,000, 1.2B and what is none."""

import re
from typing import Literal

import numpy as np
import pandas as pd

SI = {"K": 1e3, "M": 1e6, "G": 1e9, "B": 1e9, "T": 1e12}
# What a column of counts is written in by its name: "Tokens (B)", "params [M]", "tokens_in_billions"
COUNTED_IN = re.compile(
    r"[(\[]\s*(?:in\s+)?([kmbgt]|thousand|million|billion|trillion)s?\s*(?:tokens|params|parameters)?\s*[)\]]"
    r"|[\s_](?:in[\s_])?(thousand|million|billion|trillion)s$",
    re.IGNORECASE,
)
# What shows that a comma is decimal: "1.234,5", "0,123", and other than three digits behind it; then what may be either
DECIMAL = re.compile(
    r"[-+]?(?:\d{1,3}(?:\.\d{3})+,\d+|0+,\d+|\d*,(?!\d{3}(?!\d))\d+)(?:e[-+]?\d+)?\s*[%kmbgt]?", re.IGNORECASE
)
THOUSANDS = re.compile(r"[-+]?\d{1,3}(?:,\d{3})+(?:\.\d*)?(?:e[-+]?\d+)?\s*[%kmbgt]?", re.IGNORECASE)
ONE_COMMA = re.compile(r"[-+]?\d+,\d+(?:e[-+]?\d+)?\s*[%kmbgt]?", re.IGNORECASE)
EITHER = re.compile(r"[-+]?[1-9]\d{0,2},\d{3}")  # 5,500: one of both
# What a column's numbers are: small ones, whose only comma is decimal, or counts, whose commas part thousands
Role = Literal["small", "count", "perplexity"]
ROLES: dict[str, Role] = dict.fromkeys(("loss", "lr", "value", "stderr", "chance"), "small")
ROLES |= dict.fromkeys(("step", "tokens", "params", "items"), "count")
PERPLEXITY = re.compile(r"perplexity|(?<![a-z])ppl(?![a-z])", re.IGNORECASE)  # a number that may be above 1000
SMALL = re.compile(
    r"loss|entropy|accuracy|learning.?rate|(?<![a-z])(lr|rate|nll|acc|scores?|values?|bpb|chance|std|stderr)(?![a-z])",
    re.IGNORECASE,
)
COUNTED = re.compile(r"step|iter|token|param|sample|update|items|^n$", re.IGNORECASE)


def role_of(column: object) -> Role | None:
    """What a column holds by its name: "loss_step" losses, "accumulated_tokens" counts; None: its name does not say."""
    name = str(column)
    if PERPLEXITY.search(name):
        return "perplexity"
    return "small" if SMALL.search(name) else "count" if COUNTED.search(name) else None


def scale_of(column: object) -> float:
    """What one of a column of steps, tokens or parameters stands for by the column's name: 1e9 of "Tokens (B)"."""
    match = COUNTED_IN.search(str(column).strip())
    return SI[(match[1] or match[2])[0].upper()] if match else 1.0


def scales_of(raw: pd.Series, column: object) -> pd.Series:
    """`scale_of` for each cell of a column: 1 where the cell says its own, as "70M" of "Params (M)"."""
    scales = pd.Series(scale_of(column), raw.index)
    own = raw.map(lambda value: isinstance(value, str) and value.strip()[-1:].upper() in SI)
    return scales.mask(own, 1.0)


def with_points(raw: pd.Series, role: Role | None = None) -> pd.Series:
    """A column's text with "1,000" as 1000 and "3,99" as 3.99; other commas stay, so that what has them is no number.

    Three digits behind the only comma ("3,985") are decimals where another cell's surely are, and in a column of small
    numbers without points: a loss of 3985 nats is none.
    """
    if not any(isinstance(value, str) and "," in value for value in raw):
        return raw
    text = raw.map(lambda value: value.strip() if isinstance(value, str) else value)
    words = [value for value in text if isinstance(value, str)]
    decimal = any(map(DECIMAL.fullmatch, words))
    if role == "small" and not any("." in word for word in words):
        decimal |= all(ONE_COMMA.fullmatch(word) for word in words if "," in word)

    def plain(value: object) -> object:
        if not isinstance(value, str) or "," not in value:
            return value
        if DECIMAL.fullmatch(value) or decimal and ONE_COMMA.fullmatch(value):
            return value.replace(".", "").replace(",", ".")
        return value.replace(",", "") if THOUSANDS.fullmatch(value) else value

    return text.map(plain)


def is_ambiguous(raw: pd.Series, role: Role | None) -> bool:
    """Whether every cell of a column is as "5,500", and its role says neither 5.5 nor 5500."""
    known = raw[raw.notna() & raw.ne("")]
    return role == "perplexity" and len(known) > 0 and all(EITHER.fullmatch(str(value).strip()) for value in known)


def numbers_of(raw: pd.Series, role: Role | None = None) -> pd.Series:
    """A column's cells as float64: NaN where a row lacks it, infinite where what stands there is no finite number."""
    absent = raw.isna() & raw.map(lambda value: not isinstance(value, float)) | raw.eq("")
    text = with_points(raw, role)
    numbers = pd.to_numeric(text, errors="coerce").astype(float)
    if (short := numbers.isna() & ~absent).any():
        numbers[short] = text[short].map(in_full)
    return numbers.where(numbers.notna() & np.isfinite(numbers), np.inf).mask(absent, np.nan)


def in_full(text: object) -> float:
    """1.2B as 1,200,000,000; NaN for what is no number."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([KMGBT]?)\s*", str(text), re.IGNORECASE)
    return float(match[1]) * SI.get(match[2].upper(), 1.0) if match else np.nan
