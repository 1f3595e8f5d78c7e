"""The end that a run's header plans: in tokens (`total_tokens`) or, of trainers that know no tokens, in steps (`total_steps`)."""

from collections.abc import Mapping
from typing import Any

MOST = 2**63


def planned_steps(header: Mapping[str, Any], step: float, tokens: float) -> float | None:
    """Planned last step of a run that has trained on `tokens` up to `step`; None where no end is planned, or none is known in
    steps."""
    if (steps := _number(header, "total_steps")) is not None:
        return steps
    total = _number(header, "total_tokens")
    return None if total is None or tokens <= 0 else total * step / tokens


def planned_tokens(header: Mapping[str, Any], step: float, tokens: float) -> int:
    """Planned tokens of a run that has trained on `tokens` up to `step`; 0 where no end is known in tokens."""
    if (total := _number(header, "total_tokens")) is not None:
        return int(total)
    steps = _number(header, "total_steps")
    return 0 if steps is None or step <= 0 else round(steps * tokens / step)


def _number(header: Mapping[str, Any], name: str) -> float | None:
    value = header.get(name)
    known = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < MOST
    return value if known else None
