"""Does what the quickstart shows hold for other seeds? Its own commands, over seeds with nothing else changed.

    python benchmarks/studies/quickstart_seeds.py --chosen 1 --fresh 11 12 13 14 --control 11 12 --work DIR

A seed sets the weights, the order of the samples and the items of the tasks. Every seed is a row, whatever comes out: loss and
forecast from 40% of each size, the position law of the iid set and of the planted domain, verdicts, thresholds and size effects,
what the decay of the learning rate was worth (against a branch at a constant rate), CPU seconds. --control trains the middle
size with the planted domain left out. Resumable: finished runs are not trained again.
Writes benchmarks/results/quickstart_seeds.json.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(HERE)]

from temporal_coverage import provenance  # noqa: E402

from emergence_train.analysis import temporal  # noqa: E402
from emergence_train.analysis.emergence import analyze_emergence  # noqa: E402
from emergence_train.analysis.position_matrix import position_matrices  # noqa: E402
from emergence_train.analysis.results import as_json  # noqa: E402
from emergence_train.analysis.temporal.position_law import fit_matrix  # noqa: E402
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


def command(work: Path, *words: str) -> float:
    """Run emergence-train in `work`; CPU seconds of it and its children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}"}
    with open(work / "log.txt", "a") as log:
        subprocess.run(
            [sys.executable, "-m", "emergence_train", *words],
            cwd=work,
            env=environment,
            stdout=log,
            stderr=log,
            check=True,
        )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1)


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


def seed_row(work: Path, seed: int, group: str) -> dict:
    """Train and analyse one seed."""
    runs = [train(work, f"seed{seed}-{size}", size, seed) for size in SIZES]
    middle = runs[SIZES.index(MIDDLE)]
    branch = train(
        work, f"seed{seed}-constant", MIDDLE, seed, *CONSTANT, "--from", f"runs/{middle.name}@{DECAY_BEGINS}"
    )
    ends = {
        run.name: mean_loss(read(POSITIONS, run)).query("split == 'iid'")["loss"].iloc[-1] for run in (middle, branch)
    }
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
        "decay_lowers_iid_by": rounded(ends[branch.name] - ends[middle.name]),
        "tasks_by_run": {size: [t for t in tasks([run]) if t["task"] == PLANTED] for size, run in zip(SIZES, runs)},
        "tasks": tasks(runs),
    }


def control_row(work: Path, seed: int) -> dict:
    run = train(work, f"seed{seed}-control", MIDDLE, seed, f"data.sources.{PLANTED_SOURCE}.weight=0")
    kept = [row for row in tasks([run]) if row["task"] == PLANTED]
    return {"seed": seed, "size": MIDDLE, "last_acc": last_scores(run), "tasks": kept}


def write(arguments: argparse.Namespace, rows: list[dict], controls: list[dict], work: Path) -> None:
    environment = json.loads(next((work / "runs").glob("*/environment.json")).read_text())["sessions"][-1]
    numbers = {name: " ".join(map(str, getattr(arguments, name))) for name in ("chosen", "fresh", "control")}
    words = " ".join(f"--{name} {value}" for name, value in numbers.items() if value)
    result = {
        **provenance(f"python benchmarks/studies/quickstart_seeds.py {words} --work DIR"),
        "trained_on": {key: environment[key] for key in ("device", "processes", "cpu_threads", "versions")},
        "machine": platform.machine(),
        "beside": "other jobs on the same cores: CPU seconds count the waiting of shared caches and hyperthreads too",
        "missing_seeds": [
            seed for seed in (*arguments.chosen, *arguments.fresh) if seed not in {r["seed"] for r in rows}
        ],
        "seeds": rows,
        "controls": controls,
    }
    RESULT.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chosen", type=int, nargs="*", default=[], help="seeds that the setting was chosen on")
    parser.add_argument("--fresh", type=int, nargs="*", default=[])
    parser.add_argument("--control", type=int, nargs="*", default=[])
    parser.add_argument("--work", type=Path, required=True, help="directory for data and runs")
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    command(work, "prepare", CONFIG)
    rows: list[dict] = []
    controls: list[dict] = []
    for seed in (*arguments.chosen, *arguments.fresh):
        rows.append(seed_row(work, seed, "chosen on" if seed in arguments.chosen else "fresh"))
        write(arguments, rows, controls, work)
    for seed in arguments.control:
        controls.append(control_row(work, seed))
        write(arguments, rows, controls, work)


if __name__ == "__main__":
    main()
