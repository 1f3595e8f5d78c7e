"""How often is the critical share of `grok` right? Shares, trends and p on simulated sweeps with known truth.

    python benchmarks/studies/grokking_critical.py [--simulations 150]

Every simulation is a sweep of three sizes; whether a run generalises is drawn in forms that the estimator does not contain
(emergence_train/analysis/grokking/simulate.py): critical shares of the runs lognormal, skewed (Gumbel) or of two widths, and a
time that diverges at the critical share. Times to generalise differ by errors that are not its normal ones.
Writes benchmarks/results/grokking_critical.json.
"""

import argparse
import itertools
import json
import sys
import time
from pathlib import Path

import numpy as np
from scipy import stats

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE)]

from commands import write_result  # noqa: E402
from intervals import holds  # noqa: E402

from emergence_train.analysis.grokking import critical, simulate  # noqa: E402
from emergence_train.analysis.grokking.times import time_trend  # noqa: E402

PARAMS = (1000, 3000, 9000)
SLOPES = (0.0, -0.12, 0.12)
DESIGNS = {  # seeds, shares, spread of a run's own critical share
    "4 seeds, 6 shares": (4, np.linspace(0.3, 0.8, 6), 0.1),
    "4 seeds, 6 shares, sharp": (4, np.linspace(0.3, 0.8, 6), 0.03),
    "8 seeds, 9 shares": (8, np.linspace(0.25, 0.85, 9), 0.15),
}
LEVELS = (0.01, 0.05, 0.2, 0.5)
TIME_DESIGNS = (  # groups, shares, seeds, budget
    (2, (0.4, 0.6), 1, np.inf),
    (6, (0.4, 0.6), 2, np.inf),
    (3, (0.4, 0.5, 0.6), 1, np.inf),
    (1, (0.4, 0.5, 0.6, 0.7), 3, np.inf),
    (3, (0.45, 0.55, 0.65, 0.75, 0.85), 4, np.inf),
    (2, (0.4, 0.5, 0.6, 0.7, 0.8), 6, 4000),
)
EVERY = (25, 500)
TIME_ERRORS = {  # none is normal
    "Gumbel": lambda rng, runs: np.log(rng.exponential(size=runs)),
    "reversed Gumbel": lambda rng, runs: -np.log(rng.exponential(size=runs)),
    "Student, 3": lambda rng, runs: rng.standard_t(3, runs),
    "exponential": lambda rng, runs: rng.exponential(size=runs),
}


def sweeps(form: str, design: str, count: int) -> dict:
    """Coverage of critical shares and slopes; p where there is no trend; how often a trend's sign is told, and told wrongly."""
    seeds, shares, spread = DESIGNS[design]
    share_held, slope_held, error, width, none, detected, mistaken = [], [], [], [], [], [], []
    logistic_held, logistic_width = [], []
    for number in range(count):
        for place, slope in enumerate(SLOPES):
            rng = np.random.default_rng([number, place, simulate.FORMS.index(form), list(DESIGNS).index(design)])
            truth = simulate.critical_shares(PARAMS, rng.uniform(0.45, 0.65), slope)
            fitted = critical.fit(simulate.groups(form, rng, PARAMS, truth, shares, seeds, spread))
            for k, value in enumerate(truth):
                interval = fitted.critical(k)
                share_held.append(holds(interval, value))
                shaped = fitted.logistic(k)
                logistic_held.append(holds(shaped, value))
                if shaped.low95 is not None and shaped.high95 is not None:
                    logistic_width.append(shaped.high95 - shaped.low95)
                if interval.value is not None:
                    error.append(interval.value - value)
                if interval.low95 is not None and interval.high95 is not None:
                    width.append(interval.high95 - interval.low95)
            moved = critical.trend(fitted)
            if moved.p is None:
                continue
            slope_held.append(holds(moved.slope, slope))
            if slope == 0:
                none.append(moved.p)
            else:
                detected.append(moved.p < 0.05)
                mistaken.append(moved.p < 0.05 and np.sign(moved.slope.value or 0) != np.sign(slope))
    p = np.array(none)
    return {
        "share_coverage95": float(np.mean(share_held)),
        "share_bias": float(np.mean(error)),
        "share_median_width": float(np.median(width)),
        "logistic_share_coverage95": float(np.mean(logistic_held)),
        "logistic_share_median_width": float(np.median(logistic_width)),
        "slope_coverage95": float(np.mean(slope_held)),
        "p_below_where_no_trend": {str(level): float(np.mean(p < level)) for level in LEVELS},
        "p_is_one": float(np.mean(p > 0.999)),
        "uniform_below_one_kolmogorov_p": float(stats.kstest(p[p <= 0.999], "uniform").pvalue),
        "sign_told_of_0.12": float(np.mean(detected)),
        "sign_told_wrongly": float(np.mean(mistaken)),
        "sweeps": len(SLOPES) * count,
    }


def times(count: int) -> list[dict]:
    """Coverage of the power of time by design, error and interval of measurements, and p where there is none."""
    rows = []
    for (groups, shares, seeds, end), every, error in itertools.product(TIME_DESIGNS, EVERY, TIME_ERRORS):
        share, group = np.tile(np.repeat(shares, seeds), groups), np.repeat(np.arange(groups), len(shares) * seeds)
        held, none = [], []
        for number, power in itertools.product(range(count), (0.0, -4.0)):
            rng = np.random.default_rng([number, int(-power), every, groups, len(shares), seeds])
            level = rng.uniform(500, 900, groups)[group]
            taken = level * (share / max(shares)) ** power * np.exp(0.3 * TIME_ERRORS[error](rng, len(share)))
            until = np.ceil(taken / every) * every
            late = until > end
            slope, p = time_trend(share, np.where(late, end, until - every), np.where(late, np.inf, until), group)
            if p is not None:
                held.append(holds(slope, power))
                none += [p < 0.05] if power == 0 else []
        rows.append(
            {
                "runs": f"{groups} groups x {len(shares)} shares x {seeds} seeds",
                "budget": None if np.isinf(end) else end,
                "measured_every": every,
                "error": error,
                "power_coverage95": round(float(np.mean(held)), 4),
                "p_below_0.05_where_no_trend": round(float(np.mean(none)), 4),
                "sweeps": len(held),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=150)
    count = parser.parse_args().simulations
    begin = time.process_time()
    result = {
        "forms": {form: {design: sweeps(form, design, count) for design in DESIGNS} for form in simulate.FORMS},
        "times": times(count),
    }
    result["cpu_seconds"] = round(time.process_time() - begin, 1)
    command = f"python benchmarks/studies/grokking_critical.py --simulations {count}"
    write_result(HERE.parent / "results" / "grokking_critical.json", command, result)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
