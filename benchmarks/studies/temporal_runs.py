"""The temporal analysis on own run directories: every run and split, fitted at 10, 20 and 40%.

    python benchmarks/studies/temporal_runs.py --name tiny-cpu RUN...

Writes benchmarks/results/temporal_runs_NAME.json: for iid, ood and the training curve the error of the selected
forecast and of every law, smoothed over 100 groups of rows (training losses are noisy), and the coverage of the 95%
intervals.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent))

from commands import write_result  # noqa: E402

from emergence_train.analysis.temporal.analyze import analyze_temporal  # noqa: E402
from emergence_train.analysis.temporal.mean_law import CLASSICAL  # noqa: E402
from emergence_train.errors import InputError  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", required=True)
    parser.add_argument("runs", nargs="+", type=Path)
    arguments = parser.parse_args()
    rows = []
    for run in arguments.runs:
        training = yaml.safe_load((run / "config.yaml").read_text())["training"]
        for fraction in (0.1, 0.2, 0.4):
            try:
                result = analyze_temporal(run, fit_fraction=fraction)
            except InputError as error:
                print(error)
                continue
            for run_result in result.runs:
                if run_result.split not in (None, "iid", "ood"):
                    continue
                errors = {model.name: model.mse_smooth for model in run_result.models}
                row = {
                    "run": run_result.run,
                    "split": run_result.split or "training",
                    "fraction": fraction,
                    "schedule": training["schedule"]["kind"],
                    "peak": training["schedule"]["lr"],
                    "steps": run_result.final.step,
                    "rmse": float(np.sqrt(errors[run_result.selected])),
                    "best classical": float(np.sqrt(min(errors[name] for name in CLASSICAL))),
                    "coverage95": run_result.coverage.within95,
                    "end inside": run_result.final.low95 <= run_result.final.actual <= run_result.final.high95,
                    "laws": {name: float(np.sqrt(error)) for name, error in errors.items()},
                }
                if run_result.positions is not None:
                    held = run_result.positions.held_out
                    row |= {
                        "positions r2": held.r2,
                        "positions mse": held.mse,
                        "positions coverage95": held.coverage.within95,
                    }
                rows.append(row)
    frame = pd.DataFrame(rows)
    ratio = (frame["rmse"] / frame["best classical"]) ** 2
    summary = {
        "forecasts": len(frame),
        "median MSE over best classical": float(ratio.median()),
        "share better than best classical": float((ratio < 1).mean()),
        "coverage95 of rows": float(frame["coverage95"].mean()),
        "ends inside 95%": float(frame["end inside"].mean()),
        "coverage95 of positions": float(frame["positions coverage95"].mean()),
    }
    by = frame.assign(ratio=ratio).groupby(["split", "fraction"])[
        ["rmse", "best classical", "ratio", "coverage95", "positions coverage95"]
    ]
    print(by.median().round(3).to_string())
    print(summary)
    target = Path(__file__).parents[1] / "results" / f"temporal_runs_{arguments.name}.json"
    write_result(target, "python benchmarks/studies/temporal_runs.py", {**summary, "rows": rows})


if __name__ == "__main__":
    main()
