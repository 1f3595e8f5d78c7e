"""Coverage of the temporal analysis' intervals on simulated logs with known truth.

    python benchmarks/studies/temporal_coverage.py [--simulations 500]

Noise is that of 1,500 validation sequences, nine tenths of it the same at every checkpoint. Truths are drawn from the
spread that the shipped prior states; a quarter of the runs each is constant, cosine, WSD and cosine with restarts.
Writes benchmarks/results/temporal_coverage.json.
"""

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE)]

from commands import write_result  # noqa: E402

from emergence_train.analysis.position_matrix import observed_rows, position_matrices  # noqa: E402
from emergence_train.analysis.temporal import mean_law, priors, simulate  # noqa: E402
from emergence_train.analysis.temporal.position_forecast import forecast_positions  # noqa: E402
from emergence_train.analysis.temporal.position_law import fit_matrix  # noqa: E402

SCHEDULES = ("constant", "cosine", "wsd", "restarts")


def position_coverage(simulations: int) -> dict:
    """Position law of single checkpoints: coverage of the 95% intervals, and bias in standard errors."""
    hits, errors = {k: [] for k in ("a0", "a1", "a2")}, {k: [] for k in ("a0", "a1", "a2")}
    for seed in range(simulations):
        rng = np.random.default_rng(seed)
        level = np.random.default_rng(seed)  # replayed for the difficulty of these sequences, which is part of a2
        truth = simulate.draw(rng)
        schedule = SCHEDULES[seed % 4]
        frame, plan, true = simulate.positions(rng, schedule, truth, checkpoints=4)
        simulate.draw(level)
        level.normal(size=true.shape[1])
        level.normal(size=true.shape)
        offset = level.normal() * simulate.SEQUENCE_SD / np.sqrt(1500)
        last = fit_matrix(position_matrices(frame)[0]).iloc[-1]
        exact = [float(part[0]) for part in truth.curves(np.array([float(last["step"])]), plan)]
        exact[2] += offset
        for name, value in zip(("a0", "a1", "a2"), exact):
            hits[name].append(last[f"{name}_low"] <= value <= last[f"{name}_high"])
            errors[name].append((last[name] - value) / last[f"{name}_se"])
    return {
        name: {"coverage95": float(np.mean(hits[name])), "bias_in_se": float(np.mean(errors[name]))} for name in hits
    }


def forecast_coverage(simulations: int, misfit: bool) -> dict:
    """Forecasts from 10, 20 and 40%: coverage at the run's end, over held-out checkpoints, and over positions.

    `misfit` False switches off the allowances for misfit of real laws (effective number of points, and how far other
    runs left their own curve), to show their effect. True is the shipped setting.
    """
    shipped = mean_law.EFFECTIVE
    if misfit:
        return _forecast_coverage(simulations, priors.SHIPPED)
    mean_law.EFFECTIVE = 10**6
    try:
        return _forecast_coverage(
            simulations, replace(priors.SHIPPED, ahead=priors.FallAhead(0, 0, 4, 1, 0, 0, np.inf))
        )
    finally:
        mean_law.EFFECTIVE = shipped


def _forecast_coverage(simulations: int, prior: priors.Prior) -> dict:
    rows = []
    for seed in range(simulations):
        rng = np.random.default_rng(seed)
        truth, schedule = simulate.draw(rng), SCHEDULES[seed % 4]
        frame, plan, _ = simulate.positions(rng, schedule, truth, checkpoints=100, length=64)
        matrix = position_matrices(frame)[0]
        x = matrix.keys["step"].to_numpy(float)
        share = (0.1, 0.2, 0.4)[seed % 3]
        seen = x <= share * x[-1]
        ahead = forecast_positions(observed_rows(matrix, seen), x[seen], x[~seen], plan, prior)
        actual, each = matrix.mean_loss[~seen], matrix.loss[~seen]
        row = {"end_error_sd": (ahead.level.mean[-1] - actual[-1]) / np.hypot(ahead.level.sd[-1], ahead.level.noise)}
        for percent in (50, 80, 95):
            low, high = ahead.level.interval(percent)
            row[f"end{percent}"] = low[-1] <= actual[-1] <= high[-1]
            row[f"mean{percent}"] = np.mean((low <= actual) & (actual <= high))
            low, high = ahead.interval(percent)
            row[f"position{percent}"] = np.mean((low <= each) & (each <= high))
        rows.append(row)
    return {key: round(float(np.mean([row[key] for row in rows])), 4) for key in rows[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=500)
    count = parser.parse_args().simulations
    begin = time.time()
    result = {
        "simulations": count,
        "position_law": position_coverage(count),
        "forecast_without_allowances": forecast_coverage(count, misfit=False),
        "forecast_as_shipped": forecast_coverage(count, misfit=True),
    }
    result["seconds"] = round(time.time() - begin, 1)
    command = f"python benchmarks/studies/temporal_coverage.py --simulations {count}"
    write_result(HERE.parent / "results" / "temporal_coverage.json", command, result)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
