"""A row of the page of claims, and how numbers stand in it."""

from typing import NamedTuple

LOSS, TEMPORAL, TALK = "2403.15796", "2404.17785", "talk"
HOLDS, NOT, CANNOT = "**holds**", "**does not hold**", "cannot tell at this scale"


class Claim(NamedTuple):
    """A row: the claim, its source, what was measured, the verdict, where more is, and the command."""

    claim: str
    source: str
    measured: str
    verdict: str
    more: str = ""
    command: str = ""


def note(name: str, text: str = "finding") -> str:
    """A link to a page of the notebook."""
    return f"[{text}](notebook/{name}.md)"


def interval(value: dict, form: str = "+.3f") -> str:
    """A value with its 95% interval, `?` for an end that is open."""
    low, high = ("?" if value[end] is None else format(value[end], form) for end in ("low95", "high95"))
    return f"{'?' if value['value'] is None else format(value['value'], form)} [{low}, {high}]"
