"""The emergence analysis on runs trained here, as `make quickstart` trains them.

    python benchmarks/emergence_runs.py --name tiny-cpu RUN...

Keeps verdicts, thresholds, size effects and what the tasks cost beside training. Writes
benchmarks/results/emergence_runs_NAME.json.
"""

import argparse
import json
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

from temporal_coverage import provenance  # noqa: E402

from emergence_train import records  # noqa: E402
from emergence_train.analysis.emergence import analyze_emergence, backtest  # noqa: E402

KEPT = ("task", "metric", "verdict", "probability", "reason", "eta", "plateau", "change", "size_effect", "collapse", "rows",
        "params", "loss_range", "chance", "items", "spearman", "dispersion", "correlation")  # fmt: skip


def cost(run: Path) -> dict:
    """Seconds of scoring tasks beside those of the training steps."""
    rows = records.read_metrics(run)
    scoring, training = records.cost_of_tasks(rows)
    return {"checkpoints": sum(row["kind"] == "evaluation" for row in rows), "seconds_of_tasks": round(scoring, 1),
            "seconds_of_training": round(training, 1), "tasks_over_training": round(scoring / training, 4)}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--name", required=True)
    arguments = parser.parse_args()
    begin = time.process_time()
    found = analyze_emergence(arguments.runs)
    seconds = time.process_time() - begin
    environment = json.loads((arguments.runs[0] / "environment.json").read_text())["sessions"][-1]
    result = {
        **provenance(f"python benchmarks/emergence_runs.py --name {arguments.name} " + " ".join(r.name for r in arguments.runs)),
        "trained_on": {key: environment[key] for key in ("device", "processes", "cpu_threads", "commit", "versions")},
        "analysis_cpu_seconds": round(seconds, 2),
        "cost_of_tasks": {run.name: cost(run) for run in arguments.runs},
        "notes": found["notes"],
        "tasks": [{key: one[key] for key in KEPT} for one in found["tasks"]],
        "mirage": found["mirage"],
        "size_law": found["size_law"],
        "abilities": found["abilities"],
        "backtest": backtest(arguments.runs),
    }
    path = HERE / "results" / f"emergence_runs_{arguments.name}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(path)


if __name__ == "__main__":
    main()
