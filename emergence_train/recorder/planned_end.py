"""The end that a run's header plans: in tokens (`total_tokens`) or, of trainers that know no tokens, in steps (`total_steps`).

Where both are given and tokens are recorded, the tokens count.
"""

from collections.abc import Mapping
from typing import Any

MOST = 2**63
NEAR = 0.999  # of the planned steps


def planned_steps(header: Mapping[str, Any], step: float, tokens: float) -> float | None:
    """Planned last step of a run that has trained on `tokens` up to `step`; None where no end is planned, or none is known in
    steps."""
    total = _number(header, "total_tokens")
    if total is not None and tokens > 0:
        return total * step / tokens
    return _number(header, "total_steps")


def planned_tokens(header: Mapping[str, Any], step: float, tokens: float) -> int:
    """Planned tokens of a run that has trained on `tokens` up to `step`; 0 where no end is known in tokens."""
    if (total := _number(header, "total_tokens")) is not None:
        return int(total)
    steps = _number(header, "total_steps")
    return round(steps * tokens / step) if steps is not None and step > 0 and 0 < tokens < MOST else 0


def has_ended(header: Mapping[str, Any], step: float, tokens: float) -> bool:
    """Whether the planned end is reached, which may lie inside a batch."""
    steps = planned_steps(header, step, tokens)
    return steps is not None and step >= int(steps * NEAR)


def _number(header: Mapping[str, Any], name: str) -> float | None:
    value = header.get(name)
    known = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < MOST
    return value if known else None
