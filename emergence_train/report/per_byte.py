"""Losses of runs with different tokenizers per byte of text, which compare where the held-out text is the same."""

import html
from collections.abc import Sequence

import numpy as np
import pyarrow.parquet as pq

from emergence_train.input_files import regular
from emergence_train.report.collect import Run

SHOWN = 3  # runs that are named


def per_byte(run: Run) -> float | None:
    """Bits per UTF-8 byte of the held-out text at the last checkpoint that has evaluations; None where they do not say."""
    files = sorted((run.directory / "evaluations").glob("*.parquet"))
    if not files or "bits_per_byte" not in pq.read_schema(files[-1]).names:
        return None
    table = pq.read_table(regular(files[-1]), columns=["step", "bits_per_byte"])
    value = table["bits_per_byte"].to_numpy()[int(np.argmax(table["step"].to_numpy()))]
    return float(value) if np.isfinite(value) else None


def ranked(groups: Sequence[Sequence[Run]]) -> str:
    """Which runs are lowest per byte; "" unless every tokenizer (a group of runs) has one whose files say it."""
    values = [[(value, run) for run in group if (value := per_byte(run)) is not None] for group in groups]
    if not all(values):
        return ""
    order = sorted((pair for group in values for pair in group), key=lambda pair: pair[0])[:SHOWN]
    names = ", ".join(f"<b>{html.escape(run.name)}</b> {value:.3f}" for value, run in order)
    return (
        f"<p>Per byte of text they compare, if the held-out text is the same: the lowest are {names} bits per byte.</p>"
    )
