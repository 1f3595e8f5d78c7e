"""Emergence from the loss perspective: tasks against loss, what size adds at equal loss, when runs gain abilities."""

import html
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from emergence_train.analysis.emergence.figures import main_metrics, performance, size_effects
from emergence_train.analysis.emergence.result import (
    VERDICT_ORDER,
    Ability,
    EmergenceResult,
    LossForecast,
    LossInterval,
    SizeEffect,
    TaskResult,
)
from emergence_train.analysis.figures import FORECAST, INTERVALS, OBSERVED, Figure, Trace
from emergence_train.analysis.results import Interval
from emergence_train.formatting import short
from emergence_train.report.collect import ReportData, Run
from emergence_train.report.explanation_table import survival
from emergence_train.report.families import legend, letters, shown_name
from emergence_train.report.parts import grid, table

MEANINGS = {
    "emergent": "flat, then a rise",
    "gradual": "a rise all along",
    "u-shaped": "first worse, then better",
    "inverted-u": "first better, then worse",
    "inverse": "worse all along",
    "at-chance": "never beyond chance",
    "saturated": "as good as it gets from the start",
    "not-identified": "these rows do not decide",
}
PANELS = 12  # tasks drawn
Marked = tuple[Ability, LossInterval]  # an ability and its threshold


def sections(data: ReportData) -> list[tuple[str, str, str]]:
    """(anchor, title, body); nothing where no run has evaluations."""
    past = [figure for run in data.runs if (figure := _history(run)) is not None]
    history = grid(past) if past else ""
    if data.emergence is None:
        return [("emergence", "When runs gain abilities", history)] if history else []
    result = data.emergence.result
    shown = main_metrics(data.emergence)
    colours = {name: number for number, name in enumerate(data.names)}
    groups = letters(result)
    panels = [
        replace(panel, title=f"{groups[task.family]}: {panel.title}") if groups else panel
        for task, finding in shown[:PANELS]
        for panel in [performance(task, finding, runs=colours)]
    ]
    sizes = size_effects(data.emergence, groups)
    body = (
        f"<p>{html.escape(result.convention)} Loss falls to the right; lines are the posterior mean of performance given "
        "loss with its 95% band, all sizes together. If loss is all that matters, the runs share one curve.</p>"
        + "".join(f'<p class="note">{html.escape(note)}</p>' for note in result.notes)
        + legend(result)
        + grid(panels)
        + (f"<p>{len(shown) - PANELS} more tasks are in the table.</p>" if len(shown) > PANELS else "")
        + "<h3>Verdicts</h3>"
        + _verdicts(result)
        + "<h3>Does size matter once loss is known?</h3>"
        + (grid([sizes]) if sizes is not None else "")
        + _sizes(result.tasks, groups)
        + survival(result.survival, groups)
        + "<h3>When runs gain abilities</h3>"
        + _timeline(result, data.runs)
        + history
        + _cost(data.runs)
    )
    return [("emergence", "Tasks against loss", body)]


def _verdicts(result: EmergenceResult) -> str:
    rows, groups = [], letters(result)
    for task in sorted(result.tasks, key=lambda task: (task.task, VERDICT_ORDER.index(task.verdict))):
        eta = task.eta
        rows.append(
            [
                shown_name(task, groups),
                task.verdict,
                f"{task.probability:.2f}",
                f"{eta.value:.3f} [{eta.low95:.3f}, {eta.high95:.3f}]" if eta is not None else "–",
                f"{task.plateau.level:.3g}" if task.plateau is not None else "–",
                f"{task.chance:.3g}" if task.chance is not None else "–",
                f"{task.items:.0f}" if task.items else "–",
                str(task.rows),
            ]
        )
    present = {task.verdict for task in result.tasks}
    words = "; ".join(
        f"<b>{name}</b>: {MEANINGS[name]}" for name in VERDICT_ORDER if name in present and name in MEANINGS
    )
    head = ["task, metric", "verdict", "probability", "η (nats)", "plateau at", "chance", "items", "checkpoints"]
    checks = "".join(f"<li>{shown_name(check, groups)}: {html.escape(check.says)}.</li>" for check in result.mirage)
    mirage = (
        f"<p>Mirage check: is the threshold there in a metric that does not count all or nothing?</p><ul>{checks}</ul>"
        if checks
        else ""
    )
    about = (
        f"<p>What a score does as the loss falls. {words}. η is the loss at which a rise begins, and the plateau what the score "
        "was before it: one above chance is no lack of the ability.</p>"
    )
    return about + table(head, rows, "Verdicts") + mirage


def _sizes(tasks: Sequence[TaskResult], groups: dict[str, str]) -> str:
    rows = []
    reasons: Counter[str] = Counter()
    for task in tasks:
        size, details = task.size_effect, task.size_effect.details
        if details is None:
            reasons[size.reason or ""] += 1
            continue
        errors = [
            held.rmse / max(held.noise, 1e-12)
            for held in details.held_out
            if held.rmse is not None and held.noise is not None
        ]
        shares = (task.collapse.r2_loss, task.collapse.r2_compute)
        rows.append(
            [
                shown_name(task, groups),
                _change(size),
                f"{size.p:.3f}",
                *("–" if share is None else f"{share:.3f}" for share in shares),
                f"{max(errors):.1f}" if errors else "–",
            ]
        )
    head = [
        "task, metric",
        "ten times the size [95%]",
        "p",
        "R² of loss",
        "R² of compute",
        "held-out sizes: error / noise",
    ]
    unknown = "".join(f"<p>{count} of {len(tasks)}: {html.escape(reason)}.</p>" for reason, count in reasons.items())
    text = (
        "<p>Change of performance for ten times the parameters at the same loss, and p of a permutation test that reassigns "
        "sizes among pieces of runs. R² is what one curve for all sizes explains, of loss or of compute. The last column "
        "predicts each size from the others: 1 is noise alone.</p>"
    )
    if any(task.size_effect.details is not None and task.size_effect.details.interval_of == "items" for task in tasks):
        text += "<p>Of few runs luck is not known: interval and p are of items alone, and other runs may differ by more.</p>"
    return (text + table(head, rows, "Size at equal loss") if rows else "") + unknown


def _change(size: SizeEffect) -> str:
    """The change with its interval, to thousandths, or to two digits where those would show 0."""
    ends = [size.value, size.low95, size.high95]
    form = "+.3f" if any(end is None or abs(end) >= 0.001 for end in ends) else "+.1e"
    value, low, high = ("open" if end is None else f"{end:{form}}" for end in ends)
    return f"{value} [{low}, {high}]"


def _timeline(result: EmergenceResult, runs: list[Run]) -> str:
    """When runs gain abilities: of a run that has not ended the fan of its loss, crossing the thresholds; all as a table."""
    if not result.abilities:
        return "<p>No task has a threshold here, so there is none to wait for.</p>"
    tasks = {task.key: task for task in result.tasks}
    groups = letters(result)
    discrete = {ability.key[:2] for ability in result.abilities if not tasks[ability.key].continuous}
    marked = [
        (ability, eta)
        for ability in result.abilities
        if (not tasks[ability.key].continuous or ability.key[:2] not in discrete)
        and (eta := tasks[ability.key].eta) is not None
    ]
    rows = [
        [
            shown_name(ability, groups),
            html.escape(run.run),
            run.status.replace("-", " "),
            _when(run.tokens),
            f"{run.probability:.2f}",
        ]
        for ability, _ in marked
        for run in ability.runs
    ]
    unfinished = [ahead for ahead in result.outlooks if ahead.planned_end_known][:PANELS]
    figures = [_past(runs, marked)] if any(len(run.iid()) for run in runs) else []
    figures += [_fan(ahead, run, marked) for ahead in unfinished for run in runs if run.name == ahead.run]
    text = ""
    if unfinished:
        text = (
            "<p>Of a run that has not ended, the bands are the 50, 80 and 95% intervals of its loss to the planned end. A "
            "point with a bar says when it falls to a threshold: median and 95% interval, that of the threshold included.</p>"
        )
    head = ["task, metric", "run", "state", "tokens [95%]", "probability by its end"]
    return text + grid(figures) + table(head, rows, "When runs gain abilities")


def _when(tokens: Interval) -> str:
    low, middle, high = (None if end is None else short(end) for end in (tokens.low95, tokens.value, tokens.high95))
    return "not before its end" if middle is None else f"{middle} [{low}, {high or 'later than its end'}]"


def _thresholds(marked: list[Marked], ends: np.ndarray) -> list[Trace]:
    """Thresholds as dashed lines with their intervals, between two numbers of tokens."""
    flat = ends * 0
    several = Counter(ability.task for ability, _ in marked)
    return [
        Trace(
            ends,
            flat + eta.value,
            f"η of {ability.task}" + (f", {ability.metric}" if several[ability.task] > 1 else ""),
            OBSERVED - number % 3,
            dashed=True,
            low=flat + eta.low95,
            high=flat + eta.high95,
        )
        for number, (ability, eta) in enumerate(marked)
    ]


def _past(runs: list[Run], marked: list[Marked]) -> Figure:
    losses = [(number, run, run.iid()) for number, run in enumerate(runs) if len(run.iid())]
    tokens = np.concatenate([rows["tokens"].to_numpy(float) for *_, rows in losses])
    ends = np.array([tokens.min(), tokens.max()])
    traces = [
        Trace(rows["tokens"].to_numpy(float), rows["loss"].to_numpy(float), run.name, number, points=True, run=run.name)
        for number, run, rows in losses
    ]
    title = "Loss against tokens, and the thresholds"
    return Figure(title, "tokens", "iid loss (nats)", (*_thresholds(marked, ends), *traces), x_log=True)


def _fan(ahead: LossForecast, run: Run, marked: list[Marked]) -> Figure:
    """A run that has not ended: its loss so far, the forecast, the thresholds and when they are reached."""
    past = run.iid()
    tokens, loss = past["tokens"].to_numpy(float), past["loss"].to_numpy(float)
    future, middle = np.array(ahead.tokens), np.array(ahead.loss)
    mine = [(ability, eta) for ability, eta in marked if ability.family == ahead.family]
    traces = []
    for level in (95, 80, 50):
        low, high = map(np.array, ahead.interval(level))
        traces.append(Trace(future, middle, INTERVALS, FORECAST, line=False, low=low, high=high))
    traces += _thresholds(mine, np.array([tokens[0], future[-1]]))
    traces += [
        Trace(future, middle, "forecast", FORECAST),
        Trace(tokens, loss, "so far", OBSERVED, line=False, points=True),
    ]
    heights = [float(np.quantile(loss, 0.9)), *middle, *ahead.low95, *ahead.high95]  # not the untrained model's
    for number, (ability, eta) in enumerate(mine):
        at = next(crossing.tokens for crossing in ability.runs if crossing.run == run.name)
        heights += [eta.low95, eta.high95]
        if at.low95 is not None:
            traces += _reached(at, eta.value, float(future[-1]), f"{ability.task}: {_when(at)}", 1 + number % 3)
    room = 0.04 * (max(heights) - min(heights)) + 0.01
    return Figure(
        f"{run.name}: loss to come",
        "tokens",
        "iid loss (nats)",
        tuple(traces),
        x_log=True,
        y_range=(min(heights) - room, max(heights) + room),
    )


def _reached(at: Interval, eta: float, end: float, label: str, colour: int) -> list[Trace]:
    """The interval of when a threshold is reached, with an arrow at the forecast's `end` where it is open, and its value."""
    bar = np.array([at.low95 or at.value, end if at.high95 is None else at.high95], float)
    traces = [Trace(bar, bar * 0 + eta, "", colour)]
    if at.high95 is None:
        edge = np.array([end])
        arrow = label if at.value is None else ""
        traces.append(Trace(edge, edge * 0 + eta, arrow, colour, line=False, points=True, marker="right"))
    if at.value is not None:
        point = np.array([at.value])
        traces.append(Trace(point, point * 0 + eta, label, colour, line=False, points=True))
    return traces


def _history(run: Run) -> Figure | None:
    """What was forecast inside training at each checkpoint, against the thresholds of an earlier analysis."""
    rows = run.metrics.of_kind("abilities")
    names = dict.fromkeys(
        name.removesuffix("/tokens") for row in rows for name in row["value"] if name.endswith("/tokens")
    )
    end = run.planned_tokens or run.tokens
    traces = []
    for number, name in enumerate(names):
        known = [(row["tokens"], row["value"]) for row in rows if row["value"].get(f"{name}/tokens") is not None]
        x = np.array([tokens for tokens, _ in known], float)
        low, middle, high = (
            np.array([end if value[f"{name}/{key}"] is None else value[f"{name}/{key}"] for _, value in known], float)
            for key in ("low95", "tokens", "high95")
        )
        low = np.where(low > 0, low, middle)  # on a logarithmic axis; 0: from its first checkpoint on
        traces.append(Trace(x, middle, name, number, points=True, low=low, high=high))
    if not any(len(trace.x) for trace in traces):
        return None
    now = np.array([min(trace.x.min() for trace in traces if len(trace.x)), run.tokens], float)
    traces.append(Trace(now, now, "now", OBSERVED, dashed=True))
    return Figure(
        f"{run.name}: forecast while it trained",
        "tokens trained",
        "tokens at which it is gained",
        tuple(traces),
        x_log=True,
        y_log=True,
        note="Bands that reach the planned end are open there.",
    )


def _cost(runs: list[Run]) -> str:
    """What scoring the tasks took inside training."""
    rows = []
    for run in runs:
        scoring, training = run.metrics.cost_of_tasks()
        scored = len(run.metrics.of_kind("evaluation"))
        if scored and training:
            rows.append(
                [html.escape(run.name), str(scored), f"{scoring:,.1f}", f"{training:,.1f}", f"{scoring / training:.1%}"]
            )
    if not rows:
        return ""
    head = ["run", "checkpoints scored", "seconds of tasks", "seconds of training steps", "tasks / training"]
    return "<h3>What the tasks cost</h3>" + table(head, rows, "What the tasks cost")
