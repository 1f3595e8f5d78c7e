"""Emergence from the loss perspective: tasks against loss, what size adds at equal loss, when runs gain abilities."""

import html

import numpy as np

from emergence_train.analysis.emergence.analyze import Finding, investigate
from emergence_train.analysis.emergence.mirage import continuous
from emergence_train.analysis.emergence.verdict import ORDER
from emergence_train.recorder.tables import cost_of_tasks
from emergence_train.report.parts import grid, table
from emergence_train.report.runs import Run
from emergence_train.report.svg import Chart, Series, short

PANELS = 12  # tasks drawn


def sections(runs: list[Run]) -> list[tuple[str, str, str]]:
    """(anchor, title, body); nothing where no run has evaluations."""
    directories = [run.directory for run in runs if any((run.directory / "evaluations").glob("*.parquet"))]
    past = [chart for run in runs if (chart := _history(run))]
    history = grid(past) if past else ""
    if not directories:
        return [("emergence", "When runs gain abilities", history)] if history else []
    result, findings = investigate(directories)
    findings = sorted(
        findings, key=lambda one: (ORDER.index(one.verdict.name), one.task.task, continuous(one.task.metric))
    )
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
        + history
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
        series.append(
            Series(
                wide,
                wide * 0 + span[0],
                "η, 95%",
                1,
                line=False,
                low=wide * 0 + span[0],
                high=wide * 0 + span[1],
                quiet=True,
            )
        )
        series.append(
            Series(np.array([middle, middle]), ends, f"η = {middle:.2f} [{low:.2f}, {high:.2f}]", 1, dashed=True)
        )
    for run, rows in task.frame.groupby("run", sort=False):
        rows = rows.sort_values("loss")
        series.append(
            Series(
                rows["loss"].to_numpy(float),
                rows["value"].to_numpy(float),
                str(run),
                names.get(str(run), 0),
                line=False,
                points=True,
            )
        )
    note = f"{verdict.name}, probability {verdict.probability:.2f}. {verdict.reason}".strip()
    return Chart(
        f"{task.task}, {task.metric}",
        "loss (nats), falling",
        task.metric,
        series,
        y_range=span,
        note=note,
        x_falling=True,
    )


def _name(one: dict) -> str:
    return html.escape(f"{one['task']}, {one['metric']}")


def _verdicts(result: dict) -> str:
    rows = []
    for one in sorted(result["tasks"], key=lambda one: (one["task"], ORDER.index(one["verdict"]))):
        eta, items = one["eta"], one["items"]
        rows.append(
            [
                _name(one),
                one["verdict"],
                f"{one['probability']:.2f}",
                f"{eta['value']:.3f} [{eta['low95']:.3f}, {eta['high95']:.3f}]" if eta else "–",
                f"{one['plateau']['share_of_range']:.0%}" if one["plateau"] else "–",
                f"{one['chance']:.3g}" if one["chance"] is not None else "–",
                f"{items:.0f}" if items else "–",
                str(one["rows"]),
            ]
        )
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
        rows.append(
            [
                _name(one),
                f"{size['value']:+.3f} [{size['low95']:+.3f}, {size['high95']:+.3f}]",
                f"{size['p']:.3f}",
                *shares,
                "–" if worst is None else f"{worst:.1f}",
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
    said = "".join(
        f"<p>{count} of {len(result['tasks'])}: {html.escape(reason)}.</p>" for reason, count in reasons.items()
    )
    text = (
        "<p>Change of performance for ten times the parameters at the same loss, and p of a test that deals sizes out anew "
        "among pieces of runs. R² is what one curve for all sizes explains, of loss or of compute. The last column predicts each "
        "size from the others: 1 is noise alone.</p>"
    )
    return text + (table(head, rows, "Size at equal loss") if rows else "") + said


def _timeline(result: dict, runs: list[Run]) -> str:
    """When runs gain abilities: for a run that goes on the fan of its loss, crossing the thresholds; and all as a table."""
    if not result["abilities"]:
        return "<p>No task has a threshold here, so there is none to wait for.</p>"
    named = {
        (one["family"], one["task"], one["metric"]) for one in result["abilities"] if not continuous(one["metric"])
    }
    thresholds = [
        one
        for one in result["abilities"]
        if not continuous(one["metric"]) or not any((one["family"], one["task"]) == other[:2] for other in named)
    ]
    eta = {(one["family"], one["task"], one["metric"]): one["eta"] for one in result["tasks"]}
    marked = [(one, eta[one["family"], one["task"], one["metric"]]) for one in thresholds]
    rows = [
        [
            _name(one),
            html.escape(run["run"]),
            run["status"].replace("-", " "),
            _when(run["tokens"]),
            f"{run['probability']:.2f}",
        ]
        for one in thresholds
        for run in one["runs"]
    ]
    unfinished = [one for one in result["outlooks"] if one["planned_end_known"]]
    charts = [_past(runs, marked)]
    charts += [_fan(one, run, marked) for one in unfinished[:PANELS] for run in runs if run.name == one["run"]]
    text = ""
    if unfinished:
        text = (
            "<p>Where a run goes on, the bands are the 50, 80 and 95% intervals of its loss to the planned end. A point with "
            "a bar says when it falls to a threshold: median and 95% interval, that of the threshold included.</p>"
        )
    head = ["task, metric", "run", "", "tokens [95%]", "probability by its end"]
    return text + grid(charts) + table(head, rows, "When runs gain abilities")


def _when(tokens: dict) -> str:
    low, middle, high = (short(tokens[k]) if tokens[k] is not None else None for k in ("low95", "value", "high95"))
    return "not before its end" if middle is None else f"{middle} [{low}, {high or 'later than its end'}]"


def _eta_lines(marked: list, ends: np.ndarray) -> list[Series]:
    """Thresholds as dashed lines with their intervals, between two numbers of tokens."""
    return [
        Series(
            ends,
            ends * 0 + eta["value"],
            f"η of {one['task']}",
            7 - number % 3,
            dashed=True,
            low=ends * 0 + eta["low95"],
            high=ends * 0 + eta["high95"],
        )
        for number, (one, eta) in enumerate(marked)
    ]


def _past(runs: list[Run], marked: list) -> Chart:
    ends = np.array([min(run.positions["tokens"].min() for run in runs), max(run.tokens for run in runs)], float)
    series = [
        Series(rows["tokens"].to_numpy(float), rows["loss"].to_numpy(float), run.name, number, points=True)
        for number, run in enumerate(runs)
        for rows in [run.means[run.means["split"] == "iid"]]
    ]
    return Chart(
        "Loss against tokens, and the thresholds",
        "tokens",
        "iid loss (nats)",
        [*_eta_lines(marked, ends), *series],
        x_log=True,
    )


def _fan(fan: dict, run: Run, marked: list) -> Chart:
    """One run that goes on: its loss so far, the forecast, the thresholds and when they are reached."""
    past = run.means[run.means["split"] == "iid"].sort_values("tokens")
    tokens, loss = past["tokens"].to_numpy(float), past["loss"].to_numpy(float)
    ahead, middle = np.array(fan["tokens"]), np.array(fan["loss"])
    mine = [(one, eta) for one, eta in marked if one["family"] == fan["family"]]
    series = [
        Series(
            ahead,
            middle,
            f"{level}%",
            0,
            line=False,
            low=np.array(fan[f"low{level}"]),
            high=np.array(fan[f"high{level}"]),
            quiet=True,
        )
        for level in (95, 80, 50)
    ]
    series += _eta_lines(mine, np.array([tokens[0], ahead[-1]]))
    series += [Series(ahead, middle, "forecast", 0), Series(tokens, loss, "so far", 7, line=False, points=True)]
    heights = [float(np.quantile(loss, 0.9)), *middle, *fan["low95"], *fan["high95"]]  # not the untrained model's
    for number, (one, eta) in enumerate(mine):
        at = next(found["tokens"] for found in one["runs"] if found["run"] == run.name)
        heights += [eta["low95"], eta["high95"]]
        if at["value"] is not None:
            bar = np.array([at["low95"], at["high95"] if at["high95"] is not None else ahead[-1]])
            label = f"{one['task']}: {_when(at)}"
            colour, point = 1 + number % 3, np.array([at["value"]])
            series.append(Series(bar, bar * 0 + eta["value"], label, colour, quiet=True))
            series.append(Series(point, point * 0 + eta["value"], label, colour, line=False, points=True))
    room = 0.04 * (max(heights) - min(heights)) + 0.01
    return Chart(
        f"{run.name}, going on",
        "tokens",
        "iid loss (nats)",
        series,
        x_log=True,
        y_range=(min(heights) - room, max(heights) + room),
    )


def _history(run: Run) -> Chart | None:
    """What was forecast inside training at each checkpoint, against the thresholds of an earlier analysis."""
    rows = [row for row in run.metrics if row.get("kind") == "abilities"]
    names = dict.fromkeys(
        name.removesuffix("/tokens") for row in rows for name in row["value"] if name.endswith("/tokens")
    )
    end = run.header.get("total_tokens") or run.tokens
    series = []
    for number, name in enumerate(names):
        found = [(row["tokens"], row["value"]) for row in rows if row["value"].get(f"{name}/tokens") is not None]
        x = np.array([tokens for tokens, _ in found], float)
        low, middle, high = (
            np.array([end if value[f"{name}/{key}"] is None else value[f"{name}/{key}"] for _, value in found], float)
            for key in ("low95", "tokens", "high95")
        )
        series.append(Series(x, middle, name, number, points=True, low=low, high=high))
    if not any(len(one.x) for one in series):
        return None
    now = np.array([min(one.x.min() for one in series if len(one.x)), run.tokens], float)
    series.append(Series(now, now, "now", 7, dashed=True))
    return Chart(
        f"{run.name}: forecast while it trained",
        "tokens trained",
        "tokens at which it is gained",
        series,
        x_log=True,
        y_log=True,
        note="Bands that reach the planned end are open there.",
    )


def _cost(runs: list[Run]) -> str:
    """What scoring the tasks took inside training."""
    rows = []
    for run in runs:
        scoring, training = cost_of_tasks(run.metrics)
        scored = sum(row.get("kind") == "evaluation" for row in run.metrics)
        if scored and training:
            rows.append(
                [html.escape(run.name), str(scored), f"{scoring:,.1f}", f"{training:,.1f}", f"{scoring / training:.1%}"]
            )
    if not rows:
        return ""
    head = ["run", "checkpoints scored", "seconds of tasks", "seconds of training steps", "tasks / training"]
    return "<h3>What the tasks cost</h3>" + table(head, rows, "What the tasks cost")


def _notes(result: dict) -> str:
    return "".join(f'<p class="note">{html.escape(note)}</p>' for note in result["notes"])
