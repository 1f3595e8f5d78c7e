"""The output of `analyze emergence`: result.json, CSV tables, figures, and the printed table."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from emergence_train.analysis.drawing import DEFAULT, save
from emergence_train.analysis.emergence.families import POOLED
from emergence_train.analysis.emergence.figures import main_metrics, performance, size_effects, timeline
from emergence_train.analysis.emergence.finding import EmergenceAnalysis
from emergence_train.analysis.emergence.result import (
    Ability,
    Crossing,
    EmergenceResult,
    Kept,
    SizeKept,
    TaskKept,
    TaskResult,
)
from emergence_train.analysis.emergence.verdict import ROWS
from emergence_train.analysis.results import as_json
from emergence_train.errors import listed
from emergence_train.files import write_csv, write_json

SHOWN = 60  # lines of the printed table
NAMED = 6  # tasks of one line
NOTES = 8  # printed
PANELS = 12  # of the first family's page (the one with most rows)
FEWER = 8  # of other pages
FAMILIES = 4  # drawn, one page each; the tables have the rest
COLUMNS = 4
DPI = 130  # small multiples of scatter plots: many and large
KEY = ("family", "task", "metric")


def write(out: Path, analysis: EmergenceAnalysis, suffixes: tuple[str, ...] = DEFAULT) -> EmergenceResult:
    """Write the analysis into the directory `out`, each figure with each of `suffixes`; returns the result with their names.

    result.json is written last, so that it exists only with all other files.
    """
    out.mkdir(parents=True, exist_ok=True)
    for name, table in _tables(analysis).items():
        if len(table):
            first = [column for column in KEY if column in table]
            write_csv(out / f"{name}.csv", table[[*first, *(c for c in table.columns if c not in first)]])
    result = replace(analysis.result, figures=tuple(_figures(analysis, out, suffixes)))
    write_json(out / "result.json", as_json(result))
    return result


def _tables(analysis: EmergenceAnalysis) -> dict[str, pd.DataFrame]:
    """The CSV files by their names; those without rows are not written."""
    result = analysis.result
    points, curves = [], []
    for task, finding in analysis.pairs:
        columns = finding.task.frame[["run", "params", "step", "tokens", "loss", "value"]]
        points.append(columns.assign(**_key(task), share_of_loss_range=finding.task.rows.x))
        if finding.verdict.posterior is not None:
            curves.append(finding.curve().assign(**_key(task)))
    held = [
        _key(task) | as_json(size)
        for task in result.tasks
        if task.size_effect.details is not None
        for size in task.size_effect.details.held_out
    ]
    return {
        "tasks": pd.DataFrame([_flat(as_json(task)) for task in result.tasks]),
        "points": pd.concat(points, ignore_index=True),
        "curves": pd.concat(curves, ignore_index=True) if curves else pd.DataFrame(),
        "held_out_sizes": pd.DataFrame(held),
        "mirage": pd.DataFrame([as_json(check) for check in result.mirage]),
        "explanations": pd.DataFrame([_flat(as_json(entry)) for entry in result.explanations]),
        "survival": pd.DataFrame([_kept_row(task, size) for task in result.survival for size in task.sizes]),
        "abilities": pd.DataFrame([_ability_row(task, run) for task in result.abilities for run in task.runs]),
    }


def _key(task: TaskResult | Ability | TaskKept) -> dict[str, str]:
    return dict(zip(KEY, task.key))


def _kept_row(task: TaskKept, size: SizeKept) -> dict[str, Any]:
    row = _key(task) | {"largest": task.largest, "params": size.params, "runs": size.runs}
    row["interval_of"] = task.interval_of
    for name, at, kept in (("tokens", task.tokens, size.at_equal_tokens), ("loss", task.loss, size.at_equal_loss)):
        shares = {f"share_at_equal_{name}_{key}": value for key, value in as_json(kept.share).items()}
        row |= {name: at} | shares | {f"at_equal_{name}": kept.verdict}
    return row


def _ability_row(task: Ability, run: Crossing) -> dict[str, Any]:
    tokens = {f"tokens_{key}": value for key, value in as_json(run.tokens).items()}
    row = {key: getattr(run, key) for key in ("run", "params", "status", "probability", "until_tokens", "note")}
    return _key(task) | row | tokens


def _flat(task: dict[str, Any]) -> dict[str, Any]:
    """A task's entry as one row: nested values by joined names, lists left to result.json."""
    row: dict[str, Any] = {}
    for key, value in task.items():
        if isinstance(value, dict):
            row |= {f"{key}_{name}": inner for name, inner in value.items() if not isinstance(inner, (list, dict))}
        elif isinstance(value, list):
            row[key] = "; ".join(map(str, value))
        else:
            row[key] = value
    return row


def _figures(analysis: EmergenceAnalysis, out: Path, suffixes: tuple[str, ...]) -> list[str]:
    """Draw the figures into `out`; returns the file names."""
    names: list[str] = []
    rows: Counter[str] = Counter()
    for task in analysis.result.tasks:
        rows[task.family] += task.rows
    families = sorted(rows, key=lambda name: (-rows[name], name))
    for place, family in enumerate(families[:FAMILIES]):
        pairs = [pair for pair in main_metrics(analysis) if pair[0].family == family]
        params = [size for task, _ in pairs for size in task.params]
        sizes = (min(params), max(params))
        stem = re.sub(r"[^A-Za-z0-9._-]+", "-", family)[:40]
        stem = f"-{stem}" if stem and len(families) > 1 else ""
        for against, most in (("loss", PANELS if place == 0 else FEWER), ("compute", FEWER if place == 0 else 0)):
            panels = [performance(task, finding, against, sizes=sizes) for task, finding in pairs[:most]]
            if panels:
                names += save(
                    panels,
                    out,
                    f"performance-{against}{stem}",
                    columns=min(COLUMNS, len(panels)),
                    title=f"Performance against {against}" + (f": {family}" if len(families) > 1 else ""),
                    suffixes=suffixes,
                    dpi=DPI,
                )
    continuous = {task.key: task.continuous for task in analysis.result.tasks}
    for stem, figure in (
        ("size-effect", size_effects(analysis)),
        ("abilities", timeline(analysis.result.abilities, continuous)),
    ):
        if figure is not None:
            names += save([figure], out, stem, suffixes=suffixes, dpi=DPI)
    return names


def format_table(result: EmergenceResult) -> str:
    """The short table: a line for each task and metric, then what was assumed."""
    width = min(max(len(task.task) + len(task.metric) for task in result.tasks) + 3, 48)
    lines = [
        f"{'task, metric':<{width}} {'verdict':<15}{'P':>5}  {'eta [95%], nats':<22} "
        f"{'size effect [95%]':<26} {'p':>6} rows"
    ]
    families = sorted({task.family for task in result.tasks})
    few = _of_few_rows(families, result.tasks)
    for family in families:
        if family in few:
            continue
        if len(families) > 1:
            lines.append(f"{family}:")
        group = [task for task in result.tasks if task.family == family]
        group.sort(key=lambda task: (task.verdict != "emergent", task.task, task.metric))
        for task in group[:SHOWN]:
            lines.append(_task_line(task, width))
            if task.reason and task.rows >= ROWS:
                lines.append(f"  {task.reason}")
        if len(group) > SHOWN:
            lines.append(f"... and {len(group) - SHOWN} more in tasks.csv")
    lines += _few_line(few, result.tasks)
    lines += _mirage_lines(result)
    lines += [_kept_line(task) for task in result.survival if task.metric.startswith("acc")]
    metrics = Counter((ability.family, ability.task) for ability in result.abilities)
    for ability in result.abilities:
        ahead = [run for run in ability.runs if run.status != "reached"]
        of = f" ({ability.metric})" if metrics[ability.family, ability.task] > 1 else ""
        lines += [f"ability {ability.task}{of}: {run.run} {_when(run)}" for run in ahead[:6]]
    lines.append(result.convention)
    lines += [f"note: {note}" for note in result.notes]
    return "\n".join([*lines, *_note_lines(result.tasks)])


def _mirage_lines(result: EmergenceResult) -> list[str]:
    """A line for each finding of the mirage check, with the tasks that it is of."""
    tasks: dict[str, list[str]] = {}
    for check in result.mirage:
        tasks.setdefault(check.says, []).append(f"{check.task} ({check.metric})")
    return [f"mirage check, {listed(names, NAMED)}: {says}" for says, names in tasks.items()]


def _of_few_rows(families: list[str], tasks: Iterable[TaskResult]) -> list[str]:
    """Of several families, those none of whose tasks has enough rows, as where runs of one checkpoint are a family each."""
    enough = {task.family for task in tasks if task.rows >= ROWS}
    return [family for family in families if family not in enough] if len(families) > 1 else []


def _few_line(families: list[str], tasks: Iterable[TaskResult]) -> list[str]:
    if not families:
        return []
    rows = max(task.rows for task in tasks if task.family in families)
    are = f"{len(families)} families are" if families[1:] else "1 family is"
    return [f"{are} not-identified, with at most {rows} rows a task ({listed(families, 3)}); {POOLED}"]


def _task_line(task: TaskResult, width: int) -> str:
    size = task.size_effect
    eta = f"{task.eta.value:.3f} [{task.eta.low95:.3f}, {task.eta.high95:.3f}]" if task.eta is not None else "-"
    effect, p = "-", "-"
    if size.value is not None:
        effect = f"{size.value:+.3f} [{size.low95:+.3f}, {size.high95:+.3f}]"
        p = f"{size.p:.3f}"
    name = f"{task.task}, {task.metric}"[:width]
    return f"{name:<{width}} {task.verdict:<15}{task.probability:>5.2f}  {eta:<22} {effect:<26} {p:>6} {task.rows}"


def _kept_line(task: TaskKept) -> str:
    sizes = "; ".join(
        f"{size.params:,} parameters {_kept(size.at_equal_tokens)} at equal tokens, {_kept(size.at_equal_loss)} at equal loss"
        for size in task.sizes
    )
    alone = {
        "items": "; one run a size, so other runs may differ by more",
        "items and runs of some sizes": "; sizes of one run are taken to differ by luck as the others do",
        "items and runs": "",
    }[task.interval_of]
    unknown = "; unknown: no checkpoints on both sides" if "unknown" in sizes else ""
    early = (
        f"; without {', '.join(task.left_out)}, which ended before half of their size's tokens" if task.left_out else ""
    )
    return f"survival, {task.task} ({task.metric}), of what {task.largest:,} parameters have: {sizes}{alone}{unknown}{early}"


def _kept(kept: Kept) -> str:
    return "unknown" if kept.share.value is None else f"{kept.share.value:.0%} ({kept.verdict})"


def _note_lines(tasks: Iterable[TaskResult]) -> list[str]:
    """The commonest notes of the tasks, with the number of tasks that share one."""
    notes: Counter[str] = Counter()
    total = 0
    for total, task in enumerate(tasks, 1):  # noqa: B007
        notes.update(task.notes)
        if task.size_effect.reason is not None:
            notes[task.size_effect.reason] += 1
    return [
        f"note{'' if count == total else f' ({count} of {total})'}: {note}" for note, count in notes.most_common(NOTES)
    ]


def _when(run: Crossing) -> str:
    tokens = run.tokens
    if run.status == "open":
        return "has not reached it; no forecast: " + (run.note or "too few checkpoints")
    end = "the planned end" if run.planned_end_known else "ten times its tokens"
    if tokens.value is None:
        return f"not before {end} (probability {run.probability:.2f} by then)"
    high = f"{tokens.high95:.3g}" if tokens.high95 is not None else f"beyond {end}"
    return f"at {tokens.value:.3g} tokens [{tokens.low95:.3g}, {high}]"
