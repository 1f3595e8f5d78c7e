"""Pieces of the page that several sections use."""

from collections.abc import Iterable

from emergence_train.analysis.figures import Figure
from emergence_train.report.svg import figure_html


def grid(figures: Iterable[Figure]) -> str:
    """Figures side by side, as many as the width holds; those without data are left out, and nothing is left of none."""
    drawn = "".join(figure_html(figure) for figure in figures if figure.drawable())
    return f'<div class="grid">{drawn}</div>' if drawn else ""


def table(head: list[str], rows: list[list[str]], name: str) -> str:
    """A table that scrolls sideways where it is too wide. `head` and `rows` are HTML; `name` is for screen readers."""
    top = "".join(f"<th>{title}</th>" for title in head)
    cells = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{name}"><table><thead><tr>{top}</tr></thead>'
        f"<tbody>{cells}</tbody></table></div>"
    )
