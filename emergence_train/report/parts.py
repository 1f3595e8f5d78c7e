"""Pieces of the page that several sections use."""

from collections.abc import Iterable

import numpy as np
import pandas as pd

from emergence_train.analysis.figures import Figure
from emergence_train.report.chart import figure_html


def grid(figures: Iterable[Figure]) -> str:
    """Figures side by side, as many as the width holds; those without data are left out, and nothing is left of none."""
    drawn = "".join(map(figure_html, figures))
    return f'<div class="grid">{drawn}</div>' if drawn else ""


def table(head: list[str], rows: list[list[str]], name: str, *, words: bool = False) -> str:
    """A table that scrolls sideways where it is too wide; a row is named by its first cell. `head` and `rows` are HTML; `name`
    is for screen readers. With `words` cells are sentences, which break over lines."""
    top = "".join(f'<th scope="col">{title}</th>' for title in head)
    cells = "".join(
        f'<tr><th scope="row">{first}</th>' + "".join(f"<td>{cell}</td>" for cell in rest) + "</tr>"
        for first, *rest in rows
    )
    kind = ' class="words"' if words else ""
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{name}"><table{kind}><thead><tr>{top}</tr></thead>'
        f"<tbody>{cells}</tbody></table></div>"
    )


def smoothed(curve: pd.DataFrame, bins: int = 120) -> pd.DataFrame:
    """Mean tokens and loss of steps in bins, with the lowest and highest loss: no spike is averaged away."""
    curve = curve.dropna(subset=["loss"])
    cut = np.unique(np.geomspace(1, max(len(curve), 1), bins).astype(int))
    group = np.searchsorted(cut, np.arange(1, len(curve) + 1))
    parts = curve[["tokens", "loss"]].groupby(group)
    return parts.mean().assign(low=parts["loss"].min(), high=parts["loss"].max())
