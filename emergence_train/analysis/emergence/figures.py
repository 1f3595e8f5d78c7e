"""The figures of the emergence analysis: tasks against loss and compute, size at equal loss, when runs gain abilities."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from emergence_train.analysis.emergence.finding import EmergenceAnalysis, Finding
from emergence_train.analysis.emergence.result import VERDICT_ORDER, Ability, TaskResult
from emergence_train.analysis.figures import FORECAST, HELD_OUT, OBSERVED, Figure, Ramp, Trace, fitted, interval

POINTS = 250  # drawn in a panel at most
LINES = 30  # of the size figure and the timeline
NAME = 40  # characters of a line's name
EVERY_SCORE = "every score: evaluations/ of the run, open_run(RUN).evaluations in Python"
THRESHOLD = HELD_OUT  # its colour
AGAINST = {"loss": "loss (nats per token), falling", "compute": "training compute, 6 x parameters x tokens (FLOP)"}


def main_metrics(analysis: EmergenceAnalysis) -> list[tuple[TaskResult, Finding]]:
    """One metric of each task (accuracy before the continuous ones), in the order of VERDICT_ORDER."""
    first: dict[tuple[str, str], tuple[TaskResult, Finding]] = {}
    for pair in sorted(analysis.pairs, key=lambda pair: (pair[0].continuous, pair[0].metric)):
        first.setdefault(pair[0].key[:2], pair)
    return sorted(first.values(), key=lambda pair: (VERDICT_ORDER.index(pair[0].verdict), pair[0].task))


def performance(
    task: TaskResult,
    finding: Finding,
    against: str = "loss",
    *,
    runs: Mapping[str, int] | None = None,
    sizes: tuple[int, int] | None = None,
) -> Figure:
    """A task's metric against "loss" or training "compute", with its posterior curve and threshold where against loss.

    Points are coloured by run where `runs` gives each a colour, else by size on a ramp over `sizes` (least, largest).
    """
    frame = finding.task.frame
    if len(frame) > POINTS:
        frame = frame.sample(POINTS, random_state=0)
    value = finding.task.frame["value"].to_numpy(float)
    shown = value if task.chance is None else np.append(value, task.chance)
    room = 0.06 * float(np.ptp(shown)) + 0.01
    span = (float(shown.min()) - room, float(shown.max()) + room)
    ramp = None if runs is not None or sizes is None else Ramp("parameters", *sizes)
    traces: list[Trace] = []
    x = _x(frame, against)
    if task.chance is not None:
        ends = np.array([x.min(), x.max()])
        traces.append(Trace(ends, ends * 0 + task.chance, "chance", OBSERVED, dashed=True))
    if against == "loss":
        traces += _given_loss(task, finding, span)
    for name, rows in frame.groupby("run", sort=False):
        rows = rows.sort_values(against if against in rows else "tokens")
        traces.append(
            Trace(
                _x(rows, against),
                rows["value"].to_numpy(float),
                str(name),
                runs.get(str(name), 0) if runs is not None else 0,
                None if ramp is None else float(ramp.shades(rows["params"].to_numpy(float)[:1])[0]),
                line=False,
                points=True,
                run=str(name) if runs is not None else "",
            )
        )
    return Figure(
        f"{task.task[:60]}, {task.metric}",
        AGAINST[against],
        task.metric[:30],
        tuple(traces),
        x_log=against == "compute",
        x_falling=against == "loss",
        y_range=span,
        reduced=f"{POINTS} of {len(value)} scores; {EVERY_SCORE}" if len(value) > POINTS else "",
        ramp=ramp,
        note=f"{task.verdict}, probability {task.probability:.2f}" + (f"; {task.reason}" if task.reason else ""),
    )


def _x(rows: pd.DataFrame, against: str) -> np.ndarray:
    if against == "loss":
        return rows["loss"].to_numpy(float)
    return 6.0 * rows["params"].to_numpy(float) * rows["tokens"].clip(lower=1).to_numpy(float)


def _given_loss(task: TaskResult, finding: Finding, span: tuple[float, float]) -> list[Trace]:
    """The posterior mean of performance given loss with its 95% band, and the threshold with its interval."""
    traces = []
    curve = finding.curve().sort_values("loss")
    if len(curve):
        x, value, low, high = (curve[name].to_numpy() for name in ("loss", "value", "low95", "high95"))
        traces.append(Trace(x, value, "given loss", OBSERVED, low=low, high=high))
    if task.eta is not None:
        eta, wide, ends = task.eta, np.array([task.eta.low95, task.eta.high95]), np.array(span)
        bottom, top = wide * 0 + span[0], wide * 0 + span[1]
        traces.append(Trace(wide, bottom, "", THRESHOLD, line=False, low=bottom, high=top))
        label = f"η = {eta.value:.2f} [{eta.low95:.2f}, {eta.high95:.2f}]"
        traces.append(Trace(ends * 0 + eta.value, ends, label, THRESHOLD, dashed=True))
    return traces


def size_effects(analysis: EmergenceAnalysis, groups: Mapping[str, str] | None = None) -> Figure | None:
    """Change of performance for ten times the parameters at the same loss, with its 95% interval; None without any.

    groups: names of the families where there are several (default: the first eight characters).
    """
    names: list[str] = []
    intervals: list[Trace] = []
    many = len({task.family for task in analysis.result.tasks}) > 1
    smallest = 0.0
    for task, finding in analysis.pairs:
        effect = task.size_effect
        if effect.details is None or finding.task.best != 1.0:
            continue
        colour = HELD_OUT if effect.details.matters else FORECAST
        intervals += interval(effect.low95, effect.value, effect.high95, len(names), colour=colour)
        named = (groups or {}).get(task.family)
        family = f"{named}: " if named else f"{task.family[:8]} " if many else ""
        names.append(family + fitted(f"{task.task}, {task.metric}", NAME))
        smallest = max(smallest, finding.task.smallest)
        if len(names) == LINES:
            break
    if not names:
        return None
    edge, ends = np.array([-smallest, smallest]), np.array([-0.5, len(names) - 0.5])
    bottom, top = edge * 0 + ends[1], edge * 0 + ends[0]
    traces = [
        Trace(edge, bottom, "too small to name", OBSERVED, line=False, low=bottom, high=top),
        Trace(ends * 0, ends, "", OBSERVED),
        *intervals,
    ]
    return Figure(
        "Size effect at equal loss",
        "change for ten times the parameters",
        "",
        tuple(traces),
        y_names=tuple(names),
    )


def timeline(abilities: Sequence[Ability], continuous: Mapping[tuple[str, str, str], bool]) -> Figure | None:
    """Tokens at which each run gains each ability, by one metric a task; None where none is forecast.

    `continuous`: whether each metric is continuous; the others are preferred.
    """
    first: dict[tuple[str, str], Ability] = {}
    for ability in sorted(abilities, key=lambda ability: continuous[ability.key]):
        first.setdefault(ability.key[:2], ability)
    lines = [(task, run) for task in first.values() for run in task.runs if run.tokens.value is not None]
    lines = sorted(lines, key=lambda pair: pair[1].status == "reached")[:LINES]  # what is still to come comes first
    if not lines:
        return None
    traces: list[Trace] = []
    for place, (_, run) in enumerate(lines):
        at, reached = run.tokens, run.status == "reached"
        high = at.high95 if at.high95 is not None else run.until_tokens
        label, colour = ("reached", FORECAST) if reached else ("forecast (dashed: open end)", HELD_OUT)
        traces += interval(at.low95 or at.value, at.value, high, place, label, colour, dashed=at.high95 is None)
    return Figure(
        "When runs gain abilities",
        "tokens trained when the loss reaches η, with 95% interval",
        "",
        tuple(traces),
        x_log=True,
        y_names=tuple(fitted(f"{run.run}: {task.task}", NAME) for task, run in lines),
    )
