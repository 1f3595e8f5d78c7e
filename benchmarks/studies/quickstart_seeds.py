"""Does what the quickstart shows hold for other seeds? Its own commands, over seeds with nothing else changed.

    python benchmarks/studies/quickstart_seeds.py --chosen 1 --fresh 11 12 13 14 --branch 1 11 12 --control 11 --work DIR

A seed sets the weights, the order of the samples and the items of the tasks. Every seed is a row, whatever comes out: loss and
forecast from 40% of each size, the position law of the iid set and of the planted domain, verdicts, thresholds and size effects,
CPU seconds. --branch adds what the decay of the learning rate was worth, against a branch at a constant rate, and --control
trains the middle size with the planted domain left out. Resumable: what is finished is neither trained nor analysed again.
Then --laws fits the position law of each finished model on ten times the held-out iid sequences, where noise matters less, and
notes where its accuracy passed 0.6. Writes benchmarks/results/quickstart_seeds.json and quickstart_laws.json; --table prints the
first as the tables of the notebook, and trains nothing.
"""

import argparse
import json
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(HERE)]

import held_out  # noqa: E402
import pandas as pd  # noqa: E402
import torch  # noqa: E402
from commands import command, write_result  # noqa: E402

from emergence_train.analysis import temporal  # noqa: E402
from emergence_train.analysis.emergence import analyze_emergence  # noqa: E402
from emergence_train.analysis.position_matrix import position_matrices  # noqa: E402
from emergence_train.analysis.results import as_json  # noqa: E402
from emergence_train.analysis.temporal.position_law import fit_matrix, fit_positions  # noqa: E402
from emergence_train.config import load_run  # noqa: E402
from emergence_train.evaluation.saved_model import load_model  # noqa: E402
from emergence_train.recorder.tables import EVALUATIONS, POSITIONS, mean_loss, read  # noqa: E402

CONFIG = str(ROOT / "configs" / "quickstart.yaml")
SIZES = ("0.1m", "0.2m", "0.4m")
MIDDLE = "0.2m"
DECAY_BEGINS = 640  # the step
PLANTED = "latest"
PLANTED_SOURCE = 6  # its number in data.sources
CONSTANT = ("training.schedule.kind=constant", "training.schedule.decay_tokens=0")
FRACTION = 0.4
RESULT = ROOT / "benchmarks" / "results" / "quickstart_seeds.json"
LAWS = RESULT.with_name("quickstart_laws.json")
ABLE = 0.6  # accuracy on the planted skill


def train(work: Path, name: str, size: str, seed: int, *words: str) -> Path:
    """Train a run unless it is finished; its CPU seconds are kept beside it."""
    run, seconds = work / "runs" / name, work / f"{name}.seconds"
    if not seconds.is_file():
        seeds = [f"seed={seed}", *(f"tasks.{task}.seed={seed}" for task in range(3))]
        took = command(work, "train", CONFIG, f"name={name}", f"model.preset=shallow-{size}", *seeds, *words)
        seconds.write_text(str(took))
    return run


def position_laws(run: Path) -> dict[str, dict]:
    """The law at the last checkpoint of the iid set and of the planted domain."""
    laws = {}
    for matrix in position_matrices(read(POSITIONS, run)):
        split = str(matrix.keys["split"].iloc[0])
        if split in ("iid", PLANTED):
            fits = fit_matrix(matrix)
            last = fits.iloc[-1]
            laws[split] = {
                **{name: rounded(last[name]) for name in fits if name[:2] in ("a0", "a1", "a2") and "_se" not in name},
                "bin_max": rounded(last["bin_max"]),
                "status": last["status"],
                "checkpoints_identified": int((fits["status"] == "ok").sum()),
                "checkpoints": len(fits),
            }
    return laws


def rounded(value: float) -> float | None:
    return round(float(value), 4) if abs(value) < float("inf") else None


def forecasts(run: Path) -> dict[str, dict]:
    """From the first 40%: the end of iid and ood, and the measured loss."""
    outcome = {}
    for each in temporal.investigate(run, fit_fraction=FRACTION, splits=["iid", "ood"]).runs:
        final = each.result.final
        at_fit = mean_loss(read(POSITIONS, run)).query(
            "split == @each.series.split and tokens <= @each.result.fit_until_tokens"
        )
        outcome[str(each.series.split)] = {
            "loss_at_40_percent": rounded(at_fit["loss"].iloc[-1]),
            **{name: rounded(getattr(final, name)) for name in ("loss", "low95", "high95", "actual")},
            "inside95": bool(final.low95 <= final.actual <= final.high95),
        }
    return outcome


def tasks(runs: list[Path]) -> list[dict]:
    """Verdict, threshold and size effect of every task and metric."""
    kept = ("task", "metric", "verdict", "probability", "reason", "eta", "size_effect", "rows")
    rows = []
    for task in as_json(analyze_emergence(runs))["tasks"]:
        row = {name: task[name] for name in kept}
        row["size_effect"] = {name: (row["size_effect"] or {}).get(name) for name in ("value", "low95", "high95", "p")}
        rows.append(row)
    return rows


def last_scores(run: Path) -> dict[str, float]:
    frame = read(EVALUATIONS, run).query("metric == 'acc'")
    return {task: round(float(rows.sort_values("step")["value"].iloc[-1]), 3) for task, rows in frame.groupby("task")}


def decay(work: Path, seed: int) -> float | None:
    """Nats by which the decay lowers the middle size's last iid loss."""
    middle = work / "runs" / f"seed{seed}-{MIDDLE}"
    branch = train(
        work, f"seed{seed}-constant", MIDDLE, seed, *CONSTANT, "--from", f"runs/{middle.name}@{DECAY_BEGINS}"
    )
    ends = {
        run.name: mean_loss(read(POSITIONS, run)).query("split == 'iid'")["loss"].iloc[-1] for run in (middle, branch)
    }
    return rounded(ends[branch.name] - ends[middle.name])


def seed_row(work: Path, seed: int, group: str, branched: bool) -> dict:
    """Train and analyse one seed."""
    runs = [train(work, f"seed{seed}-{size}", size, seed) for size in SIZES]
    return {
        "seed": seed,
        "group": group,
        "runs": {
            size: {
                "positions": position_laws(run),
                "forecasts": forecasts(run),
                "last_acc": last_scores(run),
                "cpu_seconds": float((work / f"{run.name}.seconds").read_text()),
            }
            for size, run in zip(SIZES, runs)
        },
        "decay_lowers_iid_by": decay(work, seed) if branched else None,
        "tasks_by_run": {size: [t for t in tasks([run]) if t["task"] == PLANTED] for size, run in zip(SIZES, runs)},
        "tasks": tasks(runs),
    }


def control_row(work: Path, seed: int) -> dict:
    run = train(work, f"seed{seed}-control", MIDDLE, seed, f"data.sources.{PLANTED_SOURCE}.weight=0")
    kept = [row for row in tasks([run]) if row["task"] == PLANTED]
    return {"seed": seed, "size": MIDDLE, "last_acc": last_scores(run), "tasks": kept}


def write(arguments: argparse.Namespace, rows: list[dict], controls: list[dict], work: Path) -> None:
    environment = json.loads(next((work / "runs").glob("*/environment.json")).read_text())["sessions"][-1]
    numbers = {name: " ".join(map(str, getattr(arguments, name))) for name in ("chosen", "fresh", "branch", "control")}
    words = " ".join(f"--{name} {value}" for name, value in numbers.items() if value)
    result = {
        "trained_on": {key: environment[key] for key in ("device", "processes", "cpu_threads", "versions")},
        "beside": "other jobs on the same cores: CPU seconds count the waiting of shared caches and hyperthreads too",
        "missing_seeds": [
            seed for seed in (*arguments.chosen, *arguments.fresh) if seed not in {r["seed"] for r in rows}
        ],
        "seeds": rows,
        "controls": controls,
    }
    write_result(RESULT, f"python benchmarks/studies/quickstart_seeds.py {words} --work DIR", result)


def laws_with_more_sequences(work: Path, result: dict) -> list[dict]:
    """The law of every finished model on the iid set with as many sequences as its held-out documents have."""
    (windows,) = held_out.windows(work, Path(CONFIG), "quickstart", {"iid": 1440}).values()
    rows = []
    for row in result["seeds"]:
        for size in SIZES:
            run = work / "runs" / f"seed{row['seed']}-{size}"
            loss = held_out.token_losses(load_model(load_run(run).model, newest(run)), windows)
            keys = {"run": run.name, "params": 0, "step": 1, "tokens": 1, "split": "iid"}
            (fit,) = fit_positions(pd.DataFrame(keys | held_out.position_sums(loss))).to_dict("records")
            excess = loss.mean(0) - fit["a2"]
            rows.append(
                {"seed": row["seed"], "size": size, "sequences": len(loss), "status": fit["status"]}
                | {name: rounded(fit[name]) for name in ("a0", "a1", "a1_low", "a1_high", "a2", "a2_low", "a2_high")}
                | {"able": reaches(run)}
                | {"loss_less_a2_at": {int(i): rounded(excess[i - 1]) for i in (1, 2, 3, 4, 6, 8, 16)}}
            )
    return rows


def reaches(run: Path) -> dict | None:
    """Step and iid loss of the first checkpoint with an accuracy of ABLE on the planted skill."""
    frame = read(EVALUATIONS, run).query("task == @PLANTED and metric == 'acc' and value >= @ABLE").sort_values("step")
    return {"step": int(frame["step"].iloc[0]), "loss": rounded(frame["loss"].iloc[0])} if len(frame) else None


def newest(run: Path) -> Path:
    return max((run / "checkpoints").glob("step-*"))


def tables(result: dict) -> str:
    """The result as two Markdown tables: a row for each run, and one for each seed's three sizes together."""
    lines = [
        "| seed | size | iid forecast from 40% | came | ood forecast | came | latest alone | at the end |",
        "|---" * 8 + "|",
    ]
    for row in result["seeds"]:
        for size, run in row["runs"].items():
            cells = []
            for split in ("iid", "ood"):
                each = run["forecasts"][split]
                cells += [f"{each['loss']:.2f} [{each['low95']:.2f}, {each['high95']:.2f}]", f"{each['actual']:.2f}"]
                cells[-1] += "" if each["inside95"] else " outside"
            (alone,) = [task for task in row["tasks_by_run"][size] if task["metric"] == "acc"]
            lines.append(
                f"| {row['seed']} | {size} | {' | '.join(cells)} | {_verdict(alone)} | {run['last_acc'][PLANTED]:.2f} |"
            )
    head = [
        "seed",
        "latest, acc",
        "latest, Brier",
        "size effect on acc, p",
        "continuation, acc",
        "recall, acc",
        "decay, nats",
    ]
    lines += ["", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in result["seeds"]:
        named = {(task["task"], task["metric"]): task for task in row["tasks"]}
        acc = named[PLANTED, "acc"]
        cells = [_verdict(acc), _verdict(named[PLANTED, "brier"])]
        cells += [f"{acc['size_effect']['value']:+.3f}, {acc['size_effect']['p']:.3f}"]
        cells += [_verdict(named[task, "acc"]) for task in ("continuation", "recall")]
        lines.append(f"| {row['seed']} | {' | '.join(cells)} | {row['decay_lowers_iid_by'] or '-'} |")
    for row in result["controls"]:
        (task,) = [each for each in row["tasks"] if each["metric"] == "acc"]
        lines.append(
            f"\ncontrol, seed {row['seed']}, {row['size']}: latest {row['last_acc'][PLANTED]:.2f}, {_verdict(task)}"
        )
    return "\n".join(lines)


def _verdict(task: dict) -> str:
    eta = task["eta"]
    where = f", {eta['value']:.2f} [{eta['low95']:.2f}, {eta['high95']:.2f}]" if eta else ""
    return f"{task['verdict']} {task['probability']:.2f}{where}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chosen", type=int, nargs="*", default=[], help="seeds that the setting was chosen on")
    parser.add_argument("--fresh", type=int, nargs="*", default=[])
    parser.add_argument("--branch", type=int, nargs="*", default=[], help="seeds of which the decay is measured")
    parser.add_argument("--control", type=int, nargs="*", default=[])
    parser.add_argument("--work", type=Path, help="directory for data and runs")
    parser.add_argument("--laws", action="store_true", help="fit the laws on more sequences; needs --work")
    parser.add_argument("--table", action="store_true", help="print the tables of the committed result")
    arguments = parser.parse_args()
    if arguments.table:
        print(tables(json.loads(RESULT.read_text())))
        return
    if arguments.laws:
        torch.set_num_threads(1)
        rows = laws_with_more_sequences(arguments.work.resolve(), json.loads(RESULT.read_text()))
        write_result(LAWS, "python benchmarks/studies/quickstart_seeds.py --laws --work DIR", {"runs": rows})
        return
    if arguments.work is None:
        parser.error("--work: give a directory for data and runs")
    work = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    command(work, "prepare", CONFIG)
    before = json.loads(RESULT.read_text()) if RESULT.is_file() else {"seeds": [], "controls": []}
    known = {row["seed"]: row for row in before["seeds"]}
    rows: list[dict] = []
    controls: list[dict] = before["controls"]
    for seed in (*arguments.chosen, *arguments.fresh):
        group = "chosen on" if seed in arguments.chosen else "fresh"
        rows.append(known.get(seed) or seed_row(work, seed, group, seed in arguments.branch))
        write(arguments, rows, controls, work)
    for seed in set(arguments.control) - {row["seed"] for row in controls}:
        controls.append(control_row(work, seed))
        write(arguments, rows, controls, work)


if __name__ == "__main__":
    main()
