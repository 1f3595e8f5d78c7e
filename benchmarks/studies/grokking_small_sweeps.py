"""Do critical shares and their trend hold on few sizes and seeds, and where runs are no independent draws of a rising chance?

    python benchmarks/studies/grokking_small_sweeps.py [--simulations 100]

Sweeps of 2, 3 or 5 sizes with 1, 2 or 5 seeds at six shares. The chance to generalise is half at the critical share in each
of four forms that the estimator does not contain: Gompertz's curve; a step with lapses (0.08 below, 0.92 above); one that
falls again, to 0.62, at the largest shares; and Gompertz's with a luck that the runs of one size and share have in common (a
correlation of 0.3), which no sweep of `grok` should have: its runs are drawn apart. Half of the sweeps have no trend, half
one of -0.12 for ten times the parameters. Writes benchmarks/results/grokking_small_sweeps.json.
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE)]

import numpy as np  # noqa: E402
import simulated_cells  # noqa: E402
from intervals import holds  # noqa: E402

from emergence_train.analysis.grokking import critical  # noqa: E402

FORMS = ("gompertz", "lapses", "falls again", "common luck")
SIZES, SEEDS = (2, 3, 5), (1, 2, 5)
SHARES = np.linspace(0.25, 0.85, 6)
SLOPE = -0.12
WIDTH, CORRELATION = 0.05, 0.3
LEVELS = (0.01, 0.05, 0.2, 0.5)
RESULT = HERE.parents[1] / "benchmarks" / "results" / "grokking_small_sweeps.json"


def chance(form: str, share: float, middle: float) -> float:
    """To generalise at a share; a half at `middle`."""
    beyond = share - middle
    if form == "lapses":
        return 0.5 if beyond == 0 else 0.92 if beyond > 0 else 0.08
    rising = 0.5 ** np.exp(-beyond / WIDTH)
    if form == "falls again":
        return float(rising - 0.38 * np.clip((beyond - 0.1) / 0.3, 0, 1) * rising)
    return float(rising)


def group(form: str, params: int, middle: float, seeds: int, rng: np.random.Generator) -> critical.Group:
    able = []
    for share in SHARES:
        p = chance(form, share, middle)
        if form == "common luck":
            strength = 1 / CORRELATION - 1
            p = rng.beta(max(p, 1e-6) * strength, max(1 - p, 1e-6) * strength)
        able += list(rng.random(seeds) < p)
    return critical.Group(np.repeat(SHARES, seeds), np.array(able), params)


def cell(form: str, sizes: int, seeds: int, count: int) -> dict:
    """Coverage of critical shares and trends, and p without and with a trend."""
    held, slopes, valued, none, detected, wrong = [], [], [], [], [], []
    params = [int(value) for value in 1000 * 3.0 ** np.arange(sizes)]
    log = np.log10(params)
    for number in range(count):
        for slope in (0.0, SLOPE):
            rng = np.random.default_rng([number, sizes, seeds, FORMS.index(form), int(slope == 0)])
            truth = rng.uniform(0.45, 0.65) + slope * (log - log.mean())
            fitted = critical.fit([group(form, n, c, seeds, rng) for n, c in zip(params, truth)])
            for k, middle in enumerate(truth):
                share = fitted.critical(k)
                held.append(holds(share, middle))
                valued += [share.value - middle] if share.value is not None else []
            trend = critical.trend(fitted)
            if trend.p is None:
                continue
            slopes.append(holds(trend.slope, slope))
            if slope == 0:
                none.append(trend.p)
            else:
                detected.append(trend.p < 0.05)
                wrong.append(trend.p < 0.05 and (trend.slope.value or 0) > 0)
    p = np.array(none)
    return {
        "form": form,
        "sizes": sizes,
        "seeds": seeds,
        "share_coverage95": round(float(np.mean(held)), 4),
        "share_bias": round(float(np.mean(valued)), 4),
        "share_has_value": round(len(valued) / len(held), 4),
        "slope_coverage95": round(float(np.mean(slopes)), 4),
        "p_given": round((len(none) + len(detected)) / (2 * count), 4),
        "p_below_where_no_trend": {str(level): round(float(np.mean(p <= level)), 4) for level in LEVELS},
        "trend_told": round(float(np.mean(detected)), 4),
        "told_with_the_wrong_sign": round(float(np.mean(wrong)), 4),
        "sweeps": 2 * count,
    }


if __name__ == "__main__":
    simulated_cells.run(
        __doc__,
        100,
        RESULT,
        lambda count: (cell(form, sizes, seeds, count) for form in FORMS for sizes in SIZES for seeds in SEEDS),
    )
