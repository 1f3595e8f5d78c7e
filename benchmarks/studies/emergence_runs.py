"""The emergence analysis on runs trained here, as `make quickstart` or `make ladder` trains them.

    python benchmarks/studies/emergence_runs.py --name tiny-cpu RUN... [--sources data/ladder/sources.json]

Records verdicts, thresholds, size effects, the cost of the tasks, and two backtests: of ability forecasts with the largest size
hidden, which need a task with a threshold, and of the tokens at which a run's loss reaches given values.
Writes benchmarks/results/emergence_runs_NAME.json.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE)]

from commands import write_result  # noqa: E402

from emergence_train.analysis.emergence import analyze_emergence, backtest  # noqa: E402
from emergence_train.analysis.emergence.analyze import generator  # noqa: E402
from emergence_train.analysis.emergence.forecast import OBSERVED, crossing, draw_losses  # noqa: E402
from emergence_train.analysis.results import as_json  # noqa: E402
from emergence_train.recorder import tables  # noqa: E402

KEPT = (
    "task",
    "metric",
    "verdict",
    "probability",
    "reason",
    "eta",
    "plateau",
    "change",
    "size_effect",
    "collapse",
    "rows",
    "params",
    "loss_range",
    "chance",
    "items",
    "spearman",
    "dispersion",
    "correlation",
)


def cost(run: Path) -> dict:
    """Seconds of scoring tasks and of training steps."""
    metrics = tables.Metrics.read(run)
    scoring, training = metrics.cost_of_tasks()
    return {
        "checkpoints": len(metrics.of_kind("evaluation")),
        "seconds_of_tasks": round(scoring, 1),
        "seconds_of_training": round(training, 1),
        "tasks_over_training": round(scoring / training, 4),
    }


def progress(run: Path) -> dict:
    """Progress of a run: its size, tokens of its plan, and its iid loss at the last checkpoint."""
    rows = tables.read_metrics(run)
    header, last = rows[0], [row for row in rows if row["kind"] == "validation"][-1]
    return {
        "params": header["params"],
        "tokens": last["tokens"],
        "planned_tokens": header["total_tokens"],
        "iid_loss": last["loss"]["iid"],
        "log_pplu": last["log_pplu"]["iid"],
    }


def loss_backtest(run: Path) -> list[dict]:
    """From the first 40% of a run's tokens and its planned learning rates: the tokens at which its iid loss reaches its values
    at 50, 60, ... 100%; as the ability forecast, with an exact threshold."""
    frame = tables.read(tables.EVALUATIONS, run, mixed_vocabularies=True).drop_duplicates("step").sort_values("step")
    rng = generator(run.name, "loss-backtest")
    ahead = draw_losses(run.name, frame, run, rng, until=OBSERVED)
    tokens, best = frame["tokens"].to_numpy(float), np.minimum.accumulate(frame["loss"].to_numpy(float))
    rows = []
    for at in sorted(
        {int(np.searchsorted(tokens, share * tokens[-1] * 0.999)) for share in (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)}
    ):
        actual = float(tokens[np.argmax(best <= best[at])])
        predicted = crossing(ahead, np.array([best[at]]), rng).tokens
        low, high = (np.inf if end is None else end for end in (predicted.low95, predicted.high95))
        rows.append(
            {
                "loss": float(best[at]),
                "predicted": as_json(predicted),
                "actual": actual,
                "inside95": bool(low <= actual <= high),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--name", required=True)
    parser.add_argument("--sources", type=Path, help="JSON that names the data, kept in the result")
    arguments = parser.parse_args()
    begin = time.process_time()
    analysis = as_json(analyze_emergence(arguments.runs))
    seconds = time.process_time() - begin
    environment = json.loads((arguments.runs[0] / "environment.json").read_text())["sessions"][-1]
    command = f"python benchmarks/studies/emergence_runs.py --name {arguments.name} " + " ".join(
        r.name for r in arguments.runs
    )
    command += f" --sources {arguments.sources}" if arguments.sources else ""
    result = {
        "trained_on": {key: environment[key] for key in ("device", "processes", "cpu_threads", "commit", "versions")},
        "sources": json.loads(arguments.sources.read_text()) if arguments.sources else None,
        "runs": {run.name: progress(run) for run in arguments.runs},
        "analysis_cpu_seconds": round(seconds, 2),
        "cost_of_tasks": {run.name: cost(run) for run in arguments.runs},
        "tasks": [{key: task[key] for key in KEPT} for task in analysis["tasks"]],
        **{key: analysis[key] for key in ("notes", "mirage", "size_law", "abilities")},
        "backtest": as_json(backtest(arguments.runs)),
        "loss_backtest": {run.name: loss_backtest(run) for run in arguments.runs},
    }
    path = HERE.parent / "results" / f"emergence_runs_{arguments.name}.json"
    write_result(path, command, result)
    print(path)


if __name__ == "__main__":
    main()
