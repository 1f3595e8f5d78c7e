"""Pieces of the page that several sections use."""

import re
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from emergence_train.analysis.figures import Figure
from emergence_train.report.chart import figure_html

OPEN = 6  # figures of single runs that are open


def grid(figures: Iterable[Figure]) -> str:
    """Figures side by side, as many as the width holds; those without data are left out, and nothing is left of none."""
    drawn = "".join(map(figure_html, figures))
    return f'<div class="grid">{drawn}</div>' if drawn else ""


def folded(figures: Sequence[Figure], of: str) -> str:
    """Figures of which only the first few are open, since a page of 25 runs would else be endless; `of` says what they are."""
    first, rest = grid(figures[:OPEN]), grid(figures[OPEN:])
    if not rest:
        return first
    return f"{first}<details><summary>{len(figures) - OPEN} more {of}</summary>{rest}</details>"


def count(number: int, noun: str) -> str:
    """ "1 checkpoint", "2 checkpoints"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}{'es' if noun.endswith('ch') else 's'}"


def table(head: list[str], rows: list[list[str]], name: str, *, words: bool = False) -> str:
    """A table that scrolls sideways where it is too wide; a row is named by its first cell. `head` and `rows` are HTML; `name`
    is for screen readers. With `words` cells are sentences, which break over lines."""
    top = "".join(f'<th scope="col">{title}</th>' for title in head)
    cells = "".join(
        f'<tr><th scope="row">{_breaking(first)}</th>' + "".join(f"<td>{cell}</td>" for cell in rest) + "</tr>"
        for first, *rest in rows
    )
    kind = ' class="words"' if words else ""
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{name}"><table{kind}><thead><tr>{top}</tr></thead>'
        f"<tbody>{cells}</tbody></table></div>"
    )


def _breaking(cell: str) -> str:
    """HTML whose names may break behind an underscore or a slash, and not in the middle of a word."""
    return re.sub(r"([_/])(?=[^<>\s_/])(?![^<]*>)", r"\1<wbr>", cell)


def smoothed(curve: pd.DataFrame, bins: int = 120) -> pd.DataFrame:
    """Mean tokens and loss of steps in bins, with the lowest and highest loss: no spike is averaged away."""
    curve = curve.dropna(subset=["loss"])
    cut = np.unique(np.geomspace(1, max(len(curve), 1), bins).astype(int))
    group = np.searchsorted(cut, np.arange(1, len(curve) + 1))
    parts = curve[["tokens", "loss"]].groupby(group)
    return parts.mean().assign(low=parts["loss"].min(), high=parts["loss"].max())
