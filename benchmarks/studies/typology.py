"""Which kinds of task are there: scaling, emergent, U-shaped? Verdicts of `analyze emergence` on other laboratories' tables.

    python benchmarks/studies/typology.py --public FOLDER

FOLDER has gadre_evaluations.csv (46 tasks, 104 models of mlfoundations/scaling) and gemstones_evaluations.csv (mcleish7/gemstone-
scaling-laws), see docs/notebook/2026-11-26-thresholds-that-hold.md; the tables themselves are not kept. Own and planted tasks
have their verdicts in other results; docs/site_pages/typology.py puts all beside one another. Writes
benchmarks/results/typology.json.
"""

import argparse
import json
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(HERE)]

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
import torch  # noqa: E402

from emergence_train.analysis.emergence import table as emergence_table  # noqa: E402
from emergence_train.analysis.emergence.analyze import find  # noqa: E402
from emergence_train.recorder.environment import environment  # noqa: E402

RESULT = ROOT / "benchmarks" / "results" / "typology.json"
TABLES = {"gadre": "mlfoundations/scaling", "gemstones": "mcleish7/gemstone-scaling-laws"}


def rows(path: Path, source: str) -> list[dict]:
    """A row a task: its verdict with the probability, the threshold, whether size adds to the loss, the range of loss."""
    frame = pd.read_csv(path).sort_values(["run", "step"])
    results = []
    for (task, metric), part in frame.groupby(["task", "metric"], sort=True):
        finding = find(emergence_table.task_metric("", str(task), str(metric), part))
        verdict, eta, size = finding.verdict, finding.eta_draws, finding.size
        results.append(
            {"source": source, "task": str(task), "metric": str(metric), "verdict": verdict.name}
            | {"probability": round(float(verdict.probability), 3), "reason": verdict.reason}
            | {"eta": [round(float(x), 3) for x in np.quantile(eta, [0.5, 0.025, 0.975])] if len(eta) else None}
            | {"rows": len(part), "sizes": int(part["params"].nunique())}
            | {"params": [int(part["params"].min()), int(part["params"].max())]}
            | {"p_size": size.p, "size_matters": size.details.matters if size.details else None}
            | {"loss": [round(float(x), 3) for x in (part["loss"].max(), part["loss"].min())]}
        )
        print(f"{source} {task} {metric}: {verdict.name} {verdict.probability:.2f}", flush=True)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--public", type=Path, required=True, help="folder of the public tables")
    folder = parser.parse_args().public
    result = {
        "command": "python benchmarks/studies/typology.py --public FOLDER",
        "environment": environment(torch.device("cpu")),
        "sources": TABLES,
        "tasks": [row for name in TABLES for row in rows(folder / f"{name}_evaluations.csv", name)],
    }
    RESULT.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")


if __name__ == "__main__":
    main()
