"""Cells of a log as numbers: 1,000, 1.2B and what is none."""

import re

import numpy as np
import pandas as pd

SI = {"K": 1e3, "M": 1e6, "G": 1e9, "B": 1e9, "T": 1e12}


def numbers_of(raw: pd.Series) -> pd.Series:
    """A column's cells as float64: NaN where a row lacks it, infinite where what stands there is no finite number."""
    absent = raw.isna() & raw.map(lambda value: not isinstance(value, float)) | raw.eq("")
    text = raw.map(lambda value: value.replace(",", "") if isinstance(value, str) else value)
    numbers = pd.to_numeric(text, errors="coerce").astype(float)
    if (short := numbers.isna() & ~absent).any():
        numbers[short] = text[short].map(_in_full)
    return numbers.where(numbers.notna() & np.isfinite(numbers), np.inf).mask(absent, np.nan)


def _in_full(text: object) -> float:
    """1.2B as 1,200,000,000; NaN for what is no number."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([KMGBT])\s*", str(text), re.IGNORECASE)
    return float(match[1]) * SI[match[2].upper()] if match else np.nan
