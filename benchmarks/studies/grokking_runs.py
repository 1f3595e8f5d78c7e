"""Does `grok` recover what is known? Weight decay against none, time near the critical share, and the sweep of `make grok`.

    python benchmarks/studies/grokking_runs.py [--jobs 1]

Trains configs/grok/tiny.yaml and configs/grok/decay.yaml, and measures the updates of models per CPU second in stacks against one
by one, alternating. Writes benchmarks/results/grokking_runs.json; its curves stay under runs/.
"""

import argparse
import json
import resource
import sys
import time
from dataclasses import replace
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(HERE)]

import numpy as np  # noqa: E402
from commands import write_result  # noqa: E402

from emergence_train.analysis.grokking import analyze  # noqa: E402
from emergence_train.analysis.results import as_json  # noqa: E402
from emergence_train.grokking import tasks  # noqa: E402
from emergence_train.grokking.runner import settle_in  # noqa: E402
from emergence_train.grokking.stacked import Stack  # noqa: E402
from emergence_train.grokking.sweep import read, runs_of  # noqa: E402
from emergence_train.grokking.train import train  # noqa: E402

CONFIGS = ROOT / "configs" / "grok"
STACKS = (1, 4, 16)
UPDATES, ROUNDS = 100, 3


def cpu_seconds() -> float:
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def sweep(name: str, jobs: int) -> dict:
    """Train a sweep and measure it: its result without the runs, which are counted by size, share, decay and outcome."""
    begin = cpu_seconds()
    trained = train(CONFIGS / f"{name}.yaml", ROOT / "runs" / f"study-{name}", print, jobs)
    seconds = cpu_seconds() - begin
    result = analyze(trained.curves, trained.budget)
    delays = sorted(run.delay for run in result.runs if run.delay is not None)
    by_decay = {
        f"{decay:g}": {
            "runs": sum(run.weight_decay == decay for run in result.runs),
            "memorised": sum(run.weight_decay == decay and run.train_90 is not None for run in result.runs),
            "generalised": sum(run.weight_decay == decay and run.heldout_90 is not None for run in result.runs),
            "best_heldout_accuracy": max(run.heldout_accuracy for run in result.runs if run.weight_decay == decay),
        }
        for decay in sorted({run.weight_decay for run in result.runs})
    }
    return {
        "cpu_seconds": round(seconds, 1),
        "cpu_seconds_are_of_all_updates": bool(seconds > 20),
        "longest_delay": delays[-1] if delays else None,
        "by_weight_decay": by_decay,
        **as_json(replace(result, runs=())),
    }


def throughput() -> list[dict]:
    """Updates of models per CPU second: the same 16 runs one by one and in stacks, alternating; medians of three rounds."""
    settings = read(CONFIGS / "tiny.yaml")
    table = tasks.load(settings.task, CONFIGS)
    settings = settings.model_copy(update={"seeds": list(range(1, 17)), "fractions": [0.65]})
    rows = []
    for model in settings.models:
        runs = [run for run in runs_of(settings, len(table.answers)) if run.model == model]
        speeds: dict[int, list[float]] = {size: [] for size in STACKS}
        for _ in range(ROUNDS):
            for size in STACKS:
                stacks = [Stack(runs[k : k + size], table, settings.training) for k in range(0, 16, size)]
                for stack in stacks:
                    stack.step()
                begin = time.process_time()
                for stack in stacks:
                    for _ in range(UPDATES):
                        stack.step()
                speeds[size].append(16 * UPDATES / (time.process_time() - begin))
        medians = {str(size): round(float(np.median(values))) for size, values in speeds.items()}
        rows.append({"model": model, "model_updates_per_cpu_second_by_stack": medians})
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1)
    jobs = parser.parse_args().jobs
    settle_in()
    result = {
        "throughput": throughput(),
        "tiny": sweep("tiny", jobs),
        "decay": sweep("decay", jobs),
    }
    command = f"python benchmarks/studies/grokking_runs.py --jobs {jobs}"
    write_result(ROOT / "benchmarks" / "results" / "grokking_runs.json", command, result)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
