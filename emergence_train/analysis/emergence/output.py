"""What `analyze emergence` leaves behind: result.json, CSV tables, figures, and the short table it prints."""

from pathlib import Path

import pandas as pd

from emergence_train.analysis.emergence.analyze import Finding
from emergence_train.analysis.emergence.figures import draw
from emergence_train.files import write_csv, write_json

SHOWN = 60  # lines of the printed table


def write(out: Path, result: dict, findings: list[Finding]) -> dict:
    """Write what analyze.investigate returned into the directory `out`; returns the result with the figures' names.

    result.json comes last, so that it stands only for a whole set.
    """
    out.mkdir(parents=True, exist_ok=True)
    _csv(out / "tasks.csv", [_flat(one) for one in result["tasks"]])
    points = [
        one.task.frame[["run", "params", "step", "tokens", "loss", "value"]].assign(
            family=one.task.family, task=one.task.task, metric=one.task.metric, share_of_loss_range=one.task.rows.x
        )
        for one in findings
    ]
    _csv(out / "points.csv", pd.concat(points, ignore_index=True))
    curves = [
        one.curve().assign(family=one.task.family, task=one.task.task, metric=one.task.metric)
        for one in findings
        if one.verdict.posterior is not None
    ]
    if curves:
        _csv(out / "curves.csv", pd.concat(curves, ignore_index=True))
    held = [
        {key: one[key] for key in ("family", "task", "metric")} | row
        for one in result["tasks"]
        for row in one["size_effect"].get("held_out", ())
    ]
    _csv(out / "held_out_sizes.csv", held)
    _csv(out / "mirage.csv", result["mirage"])
    _csv(
        out / "abilities.csv",
        [
            {key: one[key] for key in ("family", "task", "metric")}
            | {key: row[key] for key in ("run", "params", "status", "probability", "until_tokens", "note")}
            | {f"tokens_{key}": value for key, value in row["tokens"].items()}
            for one in result["abilities"]
            for row in one["runs"]
        ],
    )
    result = result | {"figures": draw(findings, result, out)}
    write_json(out / "result.json", result)
    return result


def _csv(path: Path, rows) -> None:
    frame = rows if isinstance(rows, pd.DataFrame) else pd.DataFrame(rows)
    if frame.empty:
        return
    first = [name for name in ("family", "task", "metric") if name in frame]
    write_csv(path, frame[[*first, *(c for c in frame.columns if c not in first)]])


def _flat(one: dict) -> dict:
    """A task's entry as one row: nested values by joined names, lists left to result.json."""
    row = {}
    for key, value in one.items():
        if isinstance(value, dict):
            row |= {f"{key}_{name}": inner for name, inner in value.items() if not isinstance(inner, (list, dict))}
        elif isinstance(value, list):
            row[key] = "; ".join(map(str, value))
        else:
            row[key] = value
    return row


def format_table(result: dict) -> str:
    """The short table: a line for each task and metric, then what was assumed."""
    lines = []
    families = {one["family"] for one in result["tasks"]}
    width = min(max(len(one["task"]) + len(one["metric"]) for one in result["tasks"]) + 3, 48)
    lines.append(
        f"{'task, metric':<{width}} {'verdict':<15}{'P':>5}  {'eta [95%], nats':<22} "
        f"{'size effect [95%]':<26} {'p':>6} rows"
    )
    for family in sorted(families):
        if len(families) > 1:
            lines.append(f"{family}:")
        group = [one for one in result["tasks"] if one["family"] == family]
        group.sort(key=lambda one: (one["verdict"] != "emergent", one["task"], one["metric"]))
        for one in group[:SHOWN]:
            eta, size = one["eta"], one["size_effect"]
            shown = f"{eta['value']:.3f} [{eta['low95']:.3f}, {eta['high95']:.3f}]" if eta else "-"
            effect, p = "-", "-"
            if size["value"] is not None:
                effect = f"{size['value']:+.3f} [{size['low95']:+.3f}, {size['high95']:+.3f}]"
                p = f"{size['p']:.3f}"
            name = f"{one['task']}, {one['metric']}"[:width]
            lines.append(
                f"{name:<{width}} {one['verdict']:<15}{one['probability']:>5.2f}  {shown:<22} {effect:<26} "
                f"{p:>6} {one['rows']}"
            )
        if len(group) > SHOWN:
            lines.append(f"... and {len(group) - SHOWN} more in tasks.csv")
    lines += [f"mirage check, {one['task']} ({one['metric']}): {one['says']}" for one in result["mirage"]]
    for one in result["abilities"]:
        ahead = [run for run in one["runs"] if run["status"] != "reached"]
        for run in ahead[:6]:
            lines.append(f"ability {one['task']}: {run['run']} {_when(run)}")
    lines.append(result["convention"])
    lines += [f"note: {note}" for note in result["notes"]]
    said: dict[str, int] = {}
    for one in result["tasks"]:
        for note in [*one["notes"], *([one["size_effect"]["reason"]] if one["size_effect"].get("reason") else [])]:
            said[note] = said.get(note, 0) + 1
    total = len(result["tasks"])
    for note, count in sorted(said.items(), key=lambda pair: -pair[1])[:8]:
        lines.append(f"note{'' if count == total else f' ({count} of {total})'}: {note}")
    return "\n".join(lines)


def _when(run: dict) -> str:
    tokens = run["tokens"]
    if run["status"] == "open":
        return "has not reached it; no forecast: " + (run["note"] or "nothing to go on")
    end = "the planned end" if run["planned_end_known"] else "ten times its tokens"
    if tokens["value"] is None:
        return f"not before {end} (probability {run['probability']:.2f} by then)"
    high = f"{tokens['high95']:.3g}" if tokens["high95"] is not None else f"beyond {end}"
    return f"at {tokens['value']:.3g} tokens [{tokens['low95']:.3g}, {high}]"
