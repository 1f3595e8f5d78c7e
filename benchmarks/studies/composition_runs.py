"""Is a whole of several steps that comes at once, in models that were trained here, the product of its steps?

    emergence-train ladder configs/ladders/steps.yaml
    python benchmarks/studies/composition_runs.py --runs runs/steps

Twelve runs of three sizes and four seeds, half of whose text are two planted tasks of several steps. For each such task the
whole, the mean step and the product of the steps at each checkpoint of each run, and the explanations of the analysis.
tests/analysis/emergence/test_explanations.py has the simulation. Writes benchmarks/results/composition_runs.json.
"""

import argparse
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE)]

import pandas as pd  # noqa: E402
from commands import write_result  # noqa: E402

from emergence_train.analysis.emergence import analyze_emergence  # noqa: E402
from emergence_train.analysis.results import as_json  # noqa: E402
from emergence_train.recorder.tables import EVALUATIONS, read  # noqa: E402

RESULT = HERE.parents[1] / "benchmarks" / "results" / "composition_runs.json"


def checkpoints(rows: pd.DataFrame) -> list[dict]:
    """Of one task in one run: the whole, the mean step and the product of the steps, and the iid loss."""
    table = rows.pivot(index="step", columns="metric", values="value")
    steps = table[[name for name in table if name.startswith("step_")]]
    losses = rows.groupby("step")["loss"].first()
    return [
        {
            "step": int(step),
            "loss": round(float(losses[step]), 4),
            "whole": round(float(table.loc[step, "acc"]), 4),
            "mean_step": round(float(steps.loc[step].mean()), 4),
            "product": round(float(steps.loc[step].prod()), 4),
        }
        for step in table.index
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="directory of the ladder's runs")
    runs = sorted(path.parent for path in parser.parse_args().runs.glob("*/config.yaml"))
    result = analyze_emergence(runs)
    tables = {run.name: read(EVALUATIONS, run) for run in runs}
    rows = [
        {"run": name, "task": task, "params": int(of_task["params"].iloc[0]), "checkpoints": checkpoints(of_task)}
        for name, table in tables.items()
        for task, of_task in table.groupby("task")
        if of_task["metric"].str.startswith("step_").any()
    ]
    named = ("task", "metric", "explanation", "explained", "verdict", "evidence")
    written = {
        "verdicts": [
            {"task": task.task, "metric": task.metric, "verdict": task.verdict, "reason": task.reason}
            for task in result.tasks
        ],
        "explanations": [{name: as_json(getattr(entry, name)) for name in named} for entry in result.explanations],
        "runs": rows,
    }
    write_result(RESULT, "python benchmarks/studies/composition_runs.py --runs runs/steps", written)


if __name__ == "__main__":
    main()
