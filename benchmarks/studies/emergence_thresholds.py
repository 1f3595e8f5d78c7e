"""Do thresholds, verdicts and ability forecasts hold on other people's runs, and on simulated items that the fit does not know?

    python benchmarks/studies/emergence_thresholds.py [--simulations 100] [--public FOLDER] [--figures]

Simulated (emergence_items.py): how often the 95% interval of a threshold holds the truth, by items, rows and the foot of the
rise; whether the intervals of two runs of one family overlap. Seeds from 1,000 on chose shapes.TRUST and threshold's
constants. With --public, tables of other laboratories (FOLDER has gadre_evaluations.csv and gemstones_evaluations.csv, see
docs/notebook/2026-11-26-thresholds-that-hold.md): what one untrained checkpoint changes, how often verdicts of halves agree,
and when hidden runs cross levels of performance that were ahead.
Writes benchmarks/results/emergence_thresholds.json; the tables themselves are not kept.
"""

import argparse
import io
import json
import re
import sys
import time
from collections import Counter
from itertools import product
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE)]

import emergence_items  # noqa: E402
from commands import write_result  # noqa: E402
from emergence_crossings import crossings, summaries  # noqa: E402
from emergence_study import task_of  # noqa: E402

from emergence_train.analysis.emergence import table as emergence_table  # noqa: E402
from emergence_train.analysis.emergence.analyze import find  # noqa: E402
from emergence_train.analysis.emergence.verdict import VERDICTS  # noqa: E402

FEET = {
    "sharp": emergence_items.SHARP,
    "smooth": emergence_items.SMOOTH,
    "cubic": emergence_items.CUBIC,
    "smoother": emergence_items.SMOOTHER,
    "unseen": emergence_items.UNSEEN,
}
REGIMES = tuple(product((500, 14_000), emergence_items.ROWS, FEET))
SHOWN = 0.08  # least share of items known at the lowest loss: fewer are no ability to find a threshold of
TABLES = ("gadre", "gemstones")
TABLE, KNOWN = "from the table alone", "with the constant rate known"
UNSEEN = "gadre, every second task: no constant was chosen on these"
DRAWN = 20  # tasks of a panel
SPANS = (("error", 1.0), ("width", 0.5))  # what of a threshold is drawn: its error, half its interval
IMAGES = HERE.parents[1] / "docs" / "images"
matplotlib.use("svg")
plt.rcParams["svg.hashsalt"] = "emergence-train"


# ---------------------------------------------------------------------------------------------------------- simulated


def thresholds(items: int, rows: str, foot: str, count: int, first: int = 0) -> list[dict]:
    """One dictionary a simulated task: its verdict and, where emergent, the threshold's error, width and gap, in nats."""
    results = []
    for seed in range(first, first + count):
        rng = np.random.default_rng([seed, items, len(rows), len(foot)])
        kind = str(rng.choice(FEET[foot]))
        frame, truth = emergence_items.table(rng, items=items, rows=rows, foot=kind)
        if truth.end < SHOWN:
            continue
        finding = find(task_of(frame))
        row = {"seed": seed, "foot": kind, "verdict": finding.verdict.name, "gap": truth.gap}
        if finding.verdict.onset is not None:
            middle, high, low = (finding.task.loss_at(share) for share in finding.verdict.onset)
            inside = bool(low <= truth.eta <= high)
            span = finding.task.loss_from - finding.task.loss_to
            row |= {"inside": inside, "error": middle - truth.eta, "width": high - low, "range": span}
        results.append(row)
    return results


def coverage(results: list[dict]) -> dict:
    named = [row for row in results if "inside" in row]
    error = np.array([row["error"] for row in named])
    feet = sorted({row["foot"] for row in named})
    return {
        "tasks": len(results),
        "verdicts": dict(Counter(row["verdict"] for row in results).most_common()),
        "coverage95": float(np.mean([row["inside"] for row in named])),
        "coverage95_by_foot": {f: float(np.mean([row["inside"] for row in named if row["foot"] == f])) for f in feet},
        "bias_nats": float(error.mean()),
        "rmse_nats": float(np.sqrt(np.mean(error**2))),
        "median_width_nats": float(np.median([row["width"] for row in named])),
        "median_gap_nats": float(np.median([row["gap"] for row in named])),
        "narrower_than_gap": float(np.mean([row["width"] < row["gap"] for row in named])),
    }


def overlapping_runs(count: int) -> dict:
    """How often the thresholds of two runs of one family, each analysed alone, have intervals that overlap."""
    overlap, pairs = 0, 0
    for seed in range(count):
        rng = np.random.default_rng([seed, 2])
        items = int(rng.choice([500, 14_000]))
        frame, truth = emergence_items.table(rng, items=items, rows="dense", runs=2)
        if truth.end < SHOWN:
            continue
        parts = [find(task_of(rows.reset_index(drop=True))) for _, rows in frame.groupby("run")]
        if any(part.verdict.onset is None for part in parts):
            continue
        first, second = ([part.task.loss_at(share) for share in part.verdict.onset] for part in parts)
        overlap += first[1] >= second[2] and second[1] >= first[2]
        pairs += 1
    return {"pairs": pairs, "overlap": overlap / max(pairs, 1)}


# ------------------------------------------------------------------------------------------------------------- public


def untrained(folder: Path) -> dict:
    """One untrained checkpoint added to each task of each table: verdicts that turn, and thresholds that move."""
    results = {}
    for name, (loss, step) in product(TABLES, ((10.8, 0), (9.5, 100), (6.8, 0))):
        frame = pd.read_csv(folder / f"{name}_evaluations.csv")
        first = frame[frame["run"] == frame.loc[frame["params"].idxmin(), "run"]]
        first = first.sort_values("step").groupby("task").head(1)
        added = first.assign(step=step, tokens=step * 500_000, loss=loss, value=first["chance"])
        whole = pd.concat([frame, added], ignore_index=True)
        pairs = list(zip(*(map(find, _tasks(rows)) for rows in (frame, whole))))
        moved = [
            abs(before.task.loss_at(before.verdict.onset[0]) - after.task.loss_at(after.verdict.onset[0]))
            / (before.task.loss_at(before.verdict.onset[1]) - before.task.loss_at(before.verdict.onset[2]))
            for before, after in pairs
            if before.verdict.onset is not None and after.verdict.onset is not None
        ]
        results[f"{name}, loss {loss} at step {step}"] = {
            "tasks": len(pairs),
            "verdicts_turned": sum(before.verdict.name != after.verdict.name for before, after in pairs),
            "largest_move_over_width": max(moved, default=None),
        }
    return results


def _tasks(frame: pd.DataFrame) -> list[emergence_table.TaskMetric]:
    groups = frame.sort_values(["run", "step"]).groupby(["task", "metric"], sort=True)
    return [emergence_table.task_metric("", str(task), str(metric), rows) for (task, metric), rows in groups]


def halves(folder: Path, splits: int) -> dict:
    """Verdicts of two halves of a table's runs: how often they agree, and how often their probabilities say they should."""
    results: dict[str, list] = {name: [] for name in (*TABLES, UNSEEN)}
    for name in TABLES:
        for number, task in enumerate(_tasks(pd.read_csv(folder / f"{name}_evaluations.csv"))):
            runs = task.frame["run"].unique()
            for split in range(splits):
                chosen = np.random.default_rng([split, 11]).permutation(runs)[: len(runs) // 2]
                first = task.frame["run"].isin(chosen).to_numpy()
                pair = [find(emergence_table.part(task, keep)).verdict for keep in (first, ~first)]
                results[name].append([(v.name, v.probability, v.probabilities) for v in pair])
                if name == TABLES[0] and number % 2:
                    results[UNSEEN].append(results[name][-1])
    return {name: _agreement(pairs) for name, pairs in results.items()}


def _agreement(pairs: list) -> dict:
    named = [pair for pair in pairs if all(name != "not-identified" for name, _, _ in pair)]
    likeliest = [[max(probabilities, key=probabilities.get) for _, _, probabilities in pair] for pair in pairs]
    stated = [sum(a.get(v, 0.0) * b.get(v, 0.0) for v in VERDICTS) for (_, _, a), (_, _, b) in pairs]
    return {
        "pairs": len(pairs),
        "both_identified": len(named),
        "agree": float(np.mean([a[0] == b[0] for a, b in named])),
        "stated": float(np.mean([a[1] * b[1] for a, b in named])),
        "likeliest_agree": float(np.mean([a == b for a, b in likeliest])),
        "likeliest_stated": float(np.mean(stated)),
        "opposed": dict(Counter(" | ".join(sorted((a[0], b[0]))) for a, b in named if a[0] != b[0]).most_common(6)),
    }


def draw_thresholds(regimes: dict[str, list[dict]], path: Path) -> None:
    """Errors of thresholds with their intervals, a panel per regime; those that miss the truth in red."""
    figure, axes = plt.subplots(4, 5, figsize=(13, 9), sharex=True, layout="constrained")
    for axis, (name, results) in zip(axes.flat, regimes.items()):
        every = [row for row in results if "inside" in row]
        named = sorted(every[:DRAWN], key=lambda row: row["error"] / row["range"])
        error, half = (100 * np.array([row[key] * scale / row["range"] for row in named]) for key, scale in SPANS)
        inside = np.array([row["inside"] for row in named])
        for these, colour in ((inside, "0.7"), (~inside, "tab:red")):
            place = np.flatnonzero(these)
            ends = np.stack([error - half, error + half, np.full(len(error), np.nan)], 1)[these]
            axis.plot(ends.ravel(), np.repeat(place, 3), color=colour, linewidth=1)  # one path: hlines would be many
            axis.plot(error[these], place, ".", color="black" if colour != "tab:red" else colour, markersize=2)
        axis.axvline(0, color="tab:blue", linewidth=0.8)
        axis.set(yticks=[], xlim=(-30, 30))
        share = np.mean([row["inside"] for row in every])
        axis.set_title(f"{name.replace(' rows', '').replace(' foot', '')}: {share:.0%}", fontsize=8)
    text = "estimated less true threshold, percent of the loss range; 95% intervals, red where the truth is outside"
    figure.supxlabel(text, fontsize=9)
    save(figure, path)


def draw_crossings(table: pd.DataFrame, path: Path) -> None:
    """Forecast against measured tokens of each crossing that was ahead; those that miss in red, open ends dotted."""
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.8), sharex=True, sharey=True, layout="constrained")
    top = 1.5 * float(table.loc[np.isfinite(table["actual"]), "actual"].max())
    for axis, (task, rows) in zip(axes, table.groupby("task")):
        for row in rows.itertuples():
            actual, colour = min(row.actual, top), "0.65" if row.inside else "tab:red"
            style = "-" if np.isfinite(row.high) else ":"
            axis.plot([actual] * 2, [min(row.low, top), min(row.high, top)], style, color=colour, linewidth=1)
            axis.plot(actual, min(row.predicted, top), ".", color="black" if row.inside else colour, markersize=3)
        ends = [0.8 * float(table["actual"].min()), top]
        axis.plot(ends, ends, color="tab:blue", linewidth=0.8)
        axis.set(xscale="log", yscale="log", ylim=(None, 1.1 * top))
        axis.xaxis.set_minor_formatter("")
        axis.set_title(f"{task}: {rows['inside'].mean():.0%} of {len(rows)}", fontsize=9)
    axes[0].set_ylabel("forecast tokens, 95% interval")
    figure.supxlabel("tokens at which the hidden run reached the level; far right: not by its end", fontsize=9)
    save(figure, path)


def save(figure: Figure, path: Path) -> None:
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    # hundredths of a point are enough for curves; the scales of letters stay
    short = re.sub(r' d="[^"]*"', lambda curve: re.sub(r"(\d\.\d\d)\d+", r"\1", curve.group()), text.getvalue())
    path.write_text(short)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=100)
    parser.add_argument("--public", type=Path, help="folder of the public tables")
    parser.add_argument("--figures", action="store_true", help="draw docs/images/thresholds.svg and crossings.svg")
    arguments = parser.parse_args()
    begin = time.process_time()
    regimes = {
        f"{items} items, {rows} rows, {foot} foot": thresholds(items, rows, foot, arguments.simulations)
        for items, rows, foot in REGIMES
    }
    path = HERE.parent / "results" / "emergence_thresholds.json"
    command = f"python benchmarks/studies/emergence_thresholds.py --simulations {arguments.simulations}"
    command += " --public FOLDER" if arguments.public else ""
    result = {
        "simulated": {name: coverage(results) for name, results in regimes.items()},
        "all_simulated": coverage([row for results in regimes.values() for row in results]),
        "two_runs_of_a_family": overlapping_runs(arguments.simulations),
    }
    if arguments.figures:
        draw_thresholds(regimes, IMAGES / "thresholds.svg")
    if arguments.public:
        ahead = {
            name: crossings(arguments.public / "gemstones_evaluations.csv", name == KNOWN) for name in (TABLE, KNOWN)
        }
        if arguments.figures:
            draw_crossings(ahead[TABLE], IMAGES / "crossings.svg")
        result |= {
            "untrained_checkpoint": untrained(arguments.public),
            "halves": halves(arguments.public, 3),
            "crossings_ahead": {name: summaries(rows) for name, rows in ahead.items()},
        }
    elif path.is_file():
        known = json.loads(path.read_text())
        names = ("untrained_checkpoint", "halves", "crossings_ahead")
        result |= {name: known[name] for name in names if name in known}
        result["commit of the public tables' parts"] = known.get("commit of the public tables' parts", known["commit"])
    result["cpu_seconds"] = round(time.process_time() - begin, 1)
    write_result(path, command, result)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
