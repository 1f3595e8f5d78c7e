"""Names of the groups of runs whose losses compare, where tasks are shown of several: A, B, ..."""

import html

from emergence_train.analysis.emergence.result import EmergenceResult, TaskKey
from emergence_train.errors import listed

SHOWN = 3  # names of runs


def letters(result: EmergenceResult) -> dict[str, str]:
    """family: its letter; nothing where there is one family alone."""
    if len(result.families) < 2:
        return {}
    return {family.family: _letter(number) for number, family in enumerate(result.families)}


def _letter(number: int) -> str:
    return chr(ord("A") + number) if number < 26 else f"group {number + 1}"


def shown_name(task: TaskKey, groups: dict[str, str]) -> str:
    """Task and metric, behind the letter of the runs where there are several groups."""
    text = f"{task.task}, {task.metric}"
    return html.escape(f"{groups[task.family]}: {text}" if task.family in groups else text)


def legend(result: EmergenceResult) -> str:
    """Which runs each letter stands for."""
    groups = letters(result)
    if not groups:
        return ""
    items = "".join(
        f"<li><b>{groups[family.family]}</b>: {html.escape(listed(family.runs, SHOWN))}</li>"
        for family in result.families
    )
    return f"<p>Groups of runs whose losses compare, each analysed apart:</p><ul>{items}</ul>"
