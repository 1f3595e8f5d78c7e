"""How often does the interval of a planted skill's threshold hold it, with the shares, sizes and seeds of critical_mass.py?

    python benchmarks/studies/planted_threshold_coverage.py [--simulations 300]

Two sizes, five shares of the mixture, two seeds (and five); a run learns the skill with the chances of
grokking_small_sweeps.py in the logarithm of the share, which are half at the threshold, or with noise of its final accuracy
around the limit. No trend, or three times less for the larger size. Writes
benchmarks/results/planted_threshold_coverage.json.
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE)]

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
import simulated_cells  # noqa: E402
from critical_mass import ABLE, critical  # noqa: E402
from grokking_small_sweeps import WIDTH, chance  # noqa: E402

SHARES = np.array([0.016, 0.032, 0.063, 0.104, 0.189])
PARAMS = (106_816, 427_000)
FORMS = ("gompertz", "lapses", "falls again", "accuracy")
RESULT = HERE.parents[1] / "benchmarks" / "results" / "planted_threshold_coverage.json"


def accuracy(form: str, share: float, threshold: float, rng: np.random.Generator) -> float:
    """At the end of a run; half of the runs are at ABLE or above at the threshold."""
    beyond = np.log10(share / threshold)
    if form == "accuracy":  # an arctangent of the share, with noise of the run
        return float(ABLE + 0.4 * np.arctan(6 * (beyond + 0.1 * rng.standard_normal())) / (np.pi / 2))
    return 0.95 if rng.random() < chance(form, WIDTH / 0.1 * beyond, 0.0) else 0.25


def cell(form: str, seeds: int, factor: float, count: int) -> dict:
    held, moved, called, valued = [], [], [], 0
    for number in range(count):
        rng = np.random.default_rng([number, FORMS.index(form), seeds, int(factor != 1)])
        middle = 10 ** rng.uniform(np.log10(0.025), np.log10(0.12))
        truth = {PARAMS[0]: middle * factor**-0.5, PARAMS[1]: middle * factor**0.5}
        rows = [
            {"params": params, "share": share, "accuracy": accuracy(form, share, truth[params], rng)}
            for params in PARAMS
            for share in SHARES
            for _ in range(seeds)
        ]
        shares, change = critical(pd.DataFrame(rows))
        for row in shares:
            valued += row["value"] is not None
            held.append((row["low95"] or 0.0) <= truth[row["params"]] <= (row["high95"] or np.inf))
        if change["p"] is not None:
            slope = factor ** (1 / np.log10(PARAMS[1] / PARAMS[0]))
            ends = change["factor_for_ten_times"]
            moved.append((ends["low95"] or 0.0) <= slope <= (ends["high95"] or np.inf))
            called.append(change["p"] < 0.05)
    return {
        "form": form,
        "seeds": seeds,
        "factor": factor,
        "threshold_coverage95": round(float(np.mean(held)), 4),
        "has_value": round(valued / len(held), 4),
        "trend_coverage95": round(float(np.mean(moved)), 4) if moved else None,
        "p_below_0.05": round(float(np.mean(called)), 4) if called else None,
        "ladders": count,
    }


if __name__ == "__main__":
    simulated_cells.run(
        __doc__,
        300,
        RESULT,
        lambda count: (
            cell(form, seeds, factor, count) for form in FORMS for seeds in (2, 5) for factor in (1.0, 1 / 3)
        ),
    )
