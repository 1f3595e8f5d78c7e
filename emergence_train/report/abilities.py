"""Emergence from the loss perspective: tasks against loss, what size adds at equal loss, when runs gain abilities."""

import html

import numpy as np

from emergence_train.analysis.emergence import Finding, investigate
from emergence_train.analysis.emergence_mirage import continuous
from emergence_train.analysis.emergence_verdict import ORDER
from emergence_train.records import cost_of_tasks
from emergence_train.report.parts import grid, table
from emergence_train.report.runs import Run
from emergence_train.report.svg import Chart, Series, short

PANELS = 12  # tasks drawn


def sections(runs: list[Run]) -> list[tuple[str, str, str]]:
    """(anchor, title, body); nothing where no run has evaluations."""
    directories = [run.directory for run in runs if any((run.directory / "evaluations").glob("*.parquet"))]
    if not directories:
        return []
    result, findings = investigate(directories)
    findings = sorted(findings, key=lambda one: (ORDER.index(one.verdict.name), one.task.task, continuous(one.task.metric)))
    chosen: dict[tuple, Finding] = {}
    for one in findings:
        key = (one.task.family, one.task.task)
        if key not in chosen or continuous(chosen[key].task.metric) > continuous(one.task.metric):
            chosen[key] = one
    shown = list(chosen.values())[:PANELS]
    names = {run.name: number for number, run in enumerate(runs)}
    charts = [_against_loss(one, names) for one in shown]
    rest = f"<p>{len(chosen) - PANELS} more tasks are in the table.</p>" if len(chosen) > PANELS else ""
    body = (
        f"<p>{html.escape(result['convention'])} Loss falls to the right; lines are the posterior mean of performance given "
        "loss with its 95% band, all sizes together. If loss is all that matters, the runs share one curve.</p>"
        + _notes(result)
        + grid(charts)
        + rest
        + "<h3>Verdicts</h3>"
        + _verdicts(result)
        + "<h3>Does size matter once loss is known?</h3>"
        + _sizes(result)
        + "<h3>When runs gain abilities</h3>"
        + _timeline(result, runs)
        + _cost(runs)
    )
    return [("emergence", "Tasks against loss", body)]


def _against_loss(one: Finding, names: dict[str, int]) -> Chart:
    task, verdict = one.task, one.verdict
    series = []
    values = task.frame["value"].to_numpy(float)
    lowest, highest = float(values.min()), float(values.max())
    if np.isfinite(task.chance):
        chance = task.sign * task.chance
        lowest, highest = min(lowest, chance), max(highest, chance)
        ends = np.array([task.loss_to, task.loss_from])
        series.append(Series(ends, np.array([chance, chance]), "chance", 7, dashed=True))
    if verdict.posterior is not None:
        curve = one.curve().sort_values("loss")
        x, low, high = (curve[name].to_numpy() for name in ("loss", "low95", "high95"))
        series.append(Series(x, curve["value"].to_numpy(), "given loss", 7, low=low, high=high))
    room = 0.06 * (highest - lowest) + 0.01
    span = (lowest - room, highest + room)
    if verdict.eta is not None:
        middle, high, low = (task.loss_at(share) for share in verdict.eta)
        ends = np.array(span)
        wide = np.array([low, high])
        series.append(Series(wide, wide * 0 + span[0], "η, 95%", 1, line=False, low=wide * 0 + span[0],
                             high=wide * 0 + span[1], quiet=True))  # fmt: skip
        series.append(Series(np.array([middle, middle]), ends, f"η = {middle:.2f} [{low:.2f}, {high:.2f}]", 1, dashed=True))
    for run, rows in task.frame.groupby("run", sort=False):
        rows = rows.sort_values("loss")
        series.append(Series(rows["loss"].to_numpy(float), rows["value"].to_numpy(float), str(run), names.get(str(run), 0),
                             line=False, points=True))  # fmt: skip
    note = f"{verdict.name}, probability {verdict.probability:.2f}. {verdict.reason}".strip()
    return Chart(f"{task.task}, {task.metric}", "loss (nats), falling", task.metric, series, y_range=span, note=note,
                 x_falling=True)  # fmt: skip


def _name(one: dict) -> str:
    return html.escape(f"{one['task']}, {one['metric']}")


def _verdicts(result: dict) -> str:
    rows = []
    for one in sorted(result["tasks"], key=lambda one: (one["task"], ORDER.index(one["verdict"]))):
        eta, items = one["eta"], one["items"]
        rows.append([
            _name(one), one["verdict"], f"{one['probability']:.2f}",
            f"{eta['value']:.3f} [{eta['low95']:.3f}, {eta['high95']:.3f}]" if eta else "–",
            f"{one['plateau']['share_of_range']:.0%}" if one["plateau"] else "–",
            f"{one['chance']:.3g}" if one["chance"] is not None else "–",
            f"{items:.0f}" if items else "–", str(one["rows"]),
        ])  # fmt: skip
    head = ["task, metric", "verdict", "probability", "η (nats)", "plateau", "chance", "items", "checkpoints"]
    mirage = "".join(f"<p>Mirage check, {_name(one)}: {html.escape(one['says'])}.</p>" for one in result["mirage"])
    return table(head, rows, "Verdicts") + mirage


def _sizes(result: dict) -> str:
    rows, reasons = [], {}
    for one in result["tasks"]:
        size = one["size_effect"]
        if size["value"] is None:
            reasons[size["reason"]] = reasons.get(size["reason"], 0) + 1
            continue
        held = [row for row in size["held_out"] if row["rmse"] is not None]
        worst = max((row["rmse"] / max(row["noise"], 1e-12) for row in held), default=None)
        shares = ["–" if value is None else f"{value:.3f}" for value in one["collapse"].values()]
        rows.append([
            _name(one), f"{size['value']:+.3f} [{size['low95']:+.3f}, {size['high95']:+.3f}]", f"{size['p']:.3f}", *shares,
            "–" if worst is None else f"{worst:.1f}",
        ])  # fmt: skip
    head = ["task, metric", "ten times the size [95%]", "p", "R² of loss", "R² of compute", "held-out sizes: error / noise"]
    said = "".join(f"<p>{count} of {len(result['tasks'])}: {html.escape(reason)}.</p>" for reason, count in reasons.items())
    text = (
        "<p>Change of performance for ten times the parameters at the same loss, and p of a test that deals sizes out anew "
        "among pieces of runs. R² is what one curve for all sizes explains, of loss or of compute. The last column predicts each "
        "size from the others: 1 is noise alone.</p>"
    )
    return text + (table(head, rows, "Size at equal loss") if rows else "") + said


def _timeline(result: dict, runs: list[Run]) -> str:
    if not result["abilities"]:
        return "<p>No task has a threshold here, so there is none to wait for.</p>"
    rows, marks = [], []
    for number, one in enumerate(result["abilities"]):
        if continuous(one["metric"]) and any(
            other["task"] == one["task"] and not continuous(other["metric"]) for other in result["abilities"]
        ):
            continue
        eta = next(t["eta"] for t in result["tasks"] if (t["family"], t["task"], t["metric"])
                   == (one["family"], one["task"], one["metric"]))  # fmt: skip
        most = max(run.tokens for run in runs)
        ends = np.array([min(run.positions["tokens"].min() for run in runs), most], float)
        marks.append(Series(ends, ends * 0 + eta["value"], f"η of {one['task']}", 7 - number % 3, dashed=True,
                            low=ends * 0 + eta["low95"], high=ends * 0 + eta["high95"]))  # fmt: skip
        for run in one["runs"]:
            tokens = run["tokens"]
            low, middle, high = (short(tokens[k]) if tokens[k] is not None else None for k in ("low95", "value", "high95"))
            when = "not before its end" if middle is None else f"{middle} [{low}, {high or 'later than its end'}]"
            rows.append([_name(one), html.escape(run["run"]), run["status"].replace("-", " "), when, f"{run['probability']:.2f}"])
    series = [
        Series(rows_["tokens"].to_numpy(float), rows_["loss"].to_numpy(float), run.name, number, points=True)
        for number, run in enumerate(runs)
        for rows_ in [run.means[run.means["split"] == "iid"]]
    ]
    chart = Chart("Loss against tokens, and the thresholds", "tokens", "iid loss (nats)", [*marks, *series], x_log=True)
    head = ["task, metric", "run", "", "tokens [95%]", "probability by its end"]
    return grid([chart]) + table(head, rows, "When runs gain abilities")


def _cost(runs: list[Run]) -> str:
    """What scoring the tasks took inside training."""
    rows = []
    for run in runs:
        scoring, training = cost_of_tasks(run.metrics)
        scored = sum(row.get("kind") == "evaluation" for row in run.metrics)
        if scored and training:
            rows.append([html.escape(run.name), str(scored), f"{scoring:,.1f}", f"{training:,.1f}", f"{scoring / training:.1%}"])
    if not rows:
        return ""
    head = ["run", "checkpoints scored", "seconds of tasks", "seconds of training steps", "tasks / training"]
    return "<h3>What the tasks cost</h3>" + table(head, rows, "What the tasks cost")


def _notes(result: dict) -> str:
    return "".join(f'<p class="note">{html.escape(note)}</p>' for note in result["notes"])
