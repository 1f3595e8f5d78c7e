"""How often is `analyze emergence` right? Verdicts, thresholds and size effects on simulated tasks with known truth.

    python benchmarks/studies/emergence_study.py [--simulations 500]

Every simulation is a table of 3 to 6 sizes with 8 to 20 checkpoints each, 500 to 14,000 items, noise between checkpoints
of up to twice the items' own, and a plateau lifted or lowered by up to 0.06 (emergence_train/analysis/emergence/simulate.py).
Writes benchmarks/results/emergence_study.json.
"""

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE)]

from commands import write_result  # noqa: E402

from emergence_train.analysis.emergence import simulate  # noqa: E402
from emergence_train.analysis.emergence import table as emergence_table  # noqa: E402
from emergence_train.analysis.emergence.analyze import find  # noqa: E402
from emergence_train.recorder import tables  # noqa: E402

SIZE_EFFECTS = (0.0, 0.03)


def task_of(frame):
    """The one task of a simulated table, read as from a user's table."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.parquet"
        tables.write(tables.EVALUATIONS, frame, path, vocabulary="simulated")
        return emergence_table.load(path)[0][0]


def verdicts(kind: str, count: int) -> dict:
    """Share of each verdict on tasks of one kind; for emergent ones also how often eta's interval holds the truth."""
    verdicts_given, inside, width, error = Counter(), [], [], []
    for seed in range(count):
        rng = np.random.default_rng([seed, simulate.KINDS.index(kind)])
        frame, eta = simulate.table(kind, rng)
        finding = find(task_of(frame))
        verdicts_given[finding.verdict.name] += 1
        if eta is not None and finding.verdict.onset is not None:
            middle, high, low = (finding.task.loss_at(share) for share in finding.verdict.onset)
            inside.append(low <= eta <= high)
            width.append(high - low)
            error.append(middle - eta)
    summary = {
        "right": verdicts_given[kind] / count,
        "verdicts": {name: number / count for name, number in verdicts_given.most_common()},
    }
    if inside:
        summary["eta"] = {
            "coverage95": float(np.mean(inside)),
            "median_width_nats": float(np.median(width)),
            "bias_nats": float(np.mean(error)),
            "rmse_nats": float(np.sqrt(np.mean(np.square(error)))),
        }
    return summary


def size_effects(effect: float, count: int) -> dict:
    """How often p is below 0.05 and the interval holds the truth, for a true effect for ten times the parameters."""
    small, inside = [], []
    for seed in range(count):
        rng = np.random.default_rng([seed, 77])
        kind = ("at-chance", "gradual", "emergent", "u-shaped")[seed % 4]
        frame, _ = simulate.table(kind, rng, size=effect, chances=(0.2, 0.25, 0.5))
        size = find(task_of(frame)).size
        if size.value is not None:
            small.append(size.p < 0.05)
            inside.append(size.low95 <= effect <= size.high95)
    return {"p_below_0.05": float(np.mean(small)), "coverage95": float(np.mean(inside)), "tables": len(small)}


def study(count: int) -> dict:
    kinds = {kind: verdicts(kind, count) for kind in simulate.KINDS}
    return {
        "verdicts": kinds,
        "false_emergent": {
            kind: shares["verdicts"].get("emergent", 0.0) for kind, shares in kinds.items() if kind != "emergent"
        },
        "size_effect": {str(effect): size_effects(effect, count) for effect in SIZE_EFFECTS},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=500)
    count = parser.parse_args().simulations
    begin = time.process_time()
    result = {
        "simulations_a_kind": count,
        **study(count),
    }
    result["cpu_seconds"] = round(time.process_time() - begin, 1)
    command = f"python benchmarks/studies/emergence_study.py --simulations {count}"
    write_result(HERE.parent / "results" / "emergence_study.json", command, result)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
