"""Which kinds of task are there: scaling, emergent, U-shaped? Verdicts of `analyze emergence` on other laboratories' tables.

    python benchmarks/studies/typology.py --public FOLDER

FOLDER has gadre_evaluations.csv (46 tasks, 104 models of mlfoundations/scaling) and gemstones_evaluations.csv (mcleish7/gemstone-
scaling-laws), see docs/notebook/2026-11-26-thresholds-that-hold.md; the tables themselves are not kept. Own and planted tasks
have their verdicts in other results; docs/site_pages/typology.py puts all beside one another. Writes
benchmarks/results/typology.json.
"""

import argparse
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(HERE)]

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
from commands import write_result  # noqa: E402

from emergence_train.analysis.emergence import table as emergence_table  # noqa: E402
from emergence_train.analysis.emergence.analyze import find  # noqa: E402

RESULT = ROOT / "benchmarks" / "results" / "typology.json"
# What mlfoundations/scaling says of its own tasks: the 17 whose errors it predicts (SUBSET of scaling/constants.py, at
# a003c491; after arXiv 2403.08540 those that a model of 0.154B answers 10 points above chance). It names no task inverse,
# U-shaped or emergent.
ABOVE_CHANCE = [
    "arc_easy",
    "bigbench_cs_algorithms",
    "bigbench_dyck_languages",
    "bigbench_novel_concepts",
    "bigbench_operators",
    "bigbench_qa_wikidata",
    "boolq",
    "commonsense_qa",
    "copa",
    "coqa",
    "hellaswag",
    "hellaswag_zeroshot",
    "lambada_openai",
    "piqa",
    "pubmed_qa_labeled",
    "squad",
    "winograd",
]
SMALL = 154_000_000
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
            | _beside_the_source(source, str(task), part)
        )
        print(f"{source} {task} {metric}: {verdict.name} {verdict.probability:.2f}", flush=True)
    return results


def _beside_the_source(source: str, task: str, part: pd.DataFrame) -> dict:
    """Whether the source counts the task as above chance; how far above it are the best model up to 0.154B, the best of all,
    and the three of the lowest losses on average."""
    if source != "gadre":
        return {}
    above = part["value"] - part["chance"]
    lowest = above[part["loss"].nsmallest(3).index].mean()
    shown = {"small": above[part["params"] <= SMALL].max(), "best": above.max(), "lowest_loss": lowest}
    return {"source_above_chance": task in ABOVE_CHANCE} | {"above": {k: round(float(v), 3) for k, v in shown.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--public", type=Path, required=True, help="folder of the public tables")
    folder = parser.parse_args().public
    result = {
        "sources": TABLES,
        "tasks": [row for name in TABLES for row in rows(folder / f"{name}_evaluations.csv", name)],
    }
    write_result(RESULT, "python benchmarks/studies/typology.py --public FOLDER", result)


if __name__ == "__main__":
    main()
