"""Small pieces of Markdown."""

import re
from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table. Bars (outside of code) and line breaks in cells are escaped."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(_cell(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _cell(value: object) -> str:
    return re.sub(r"(`[^`]*`)|\|", lambda match: match[1] or "\\|", " ".join(str(value).split()))


def code(value: object) -> str:
    return f"`{value}`"
