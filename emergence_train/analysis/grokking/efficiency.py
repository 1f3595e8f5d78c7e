"""What the memorising and the generalising solution cost in norm at the same training loss, late in training."""

import numpy as np
import pandas as pd

from emergence_train.analysis.grokking.result import Efficiency, RunResult
from emergence_train.analysis.intervals import welch_reach95

LATE = 0.75  # of the budget: before, norms still move
KNOWN, UNKNOWN = 0.99, 0.5  # accuracies of a solution that is there, and of one that is not
EQUAL_LOSS = 1.25  # factor within which losses count as equal
LEAST_RUNS = 2  # of each solution, for an interval


def efficiency(runs: list[RunResult], curves: pd.DataFrame, budget: int) -> Efficiency | None:
    """Compare the runs of one size and weight decay; None where no training loss was seen with both solutions.

    At the middle, in the logarithm, of the losses that both had in the last quarter of the budget: each run counts with
    the median of its norms at losses within a factor of 1.25; the interval of the ratio is Welch's, over runs, of the
    logarithms."""
    late = curves[curves["run"].isin([run.run for run in runs]) & curves["update"].between(LATE * budget, budget)]
    late = late[(late["train_accuracy"] >= KNOWN) & (late["train_loss"] > 0)]
    solutions = [late[late["heldout_accuracy"] < UNKNOWN], late[late["heldout_accuracy"] >= KNOWN]]
    if any(rows.empty for rows in solutions):
        return None
    low = max(rows["train_loss"].min() for rows in solutions)
    high = min(rows["train_loss"].max() for rows in solutions)
    if low > high:
        return None
    level = float(np.sqrt(low * high))
    memorising, generalising = (
        np.log(
            rows[np.abs(np.log(rows["train_loss"] / level)) <= np.log(EQUAL_LOSS)].groupby("run")["norm"].median()
        ).to_numpy()
        for rows in solutions
    )
    if not len(memorising) or not len(generalising):
        return None
    change = float(generalising.mean() - memorising.mean())
    reach = np.nan
    if min(len(memorising), len(generalising)) >= LEAST_RUNS:
        reach = welch_reach95(memorising, generalising)
    return Efficiency(
        model=runs[0].model,
        params=runs[0].params,
        weight_decay=runs[0].weight_decay,
        loss=level,
        memorising_norm=float(np.exp(memorising.mean())),
        generalising_norm=float(np.exp(generalising.mean())),
        ratio=float(np.exp(change)),
        low95=float(np.exp(change - reach)) if np.isfinite(reach) else None,
        high95=float(np.exp(change + reach)) if np.isfinite(reach) else None,
        memorising_runs=len(memorising),
        generalising_runs=len(generalising),
    )
