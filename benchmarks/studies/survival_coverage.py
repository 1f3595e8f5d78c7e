"""How often do the intervals of what a smaller model keeps of an ability hold the truth, and how often is kept or lost wrong?

    python benchmarks/studies/survival_coverage.py [--simulations 100]

Three sizes with 1, 2, 3 or 5 runs each, or with two of the smallest or the largest and one of the others. The loss is
Chinchilla's form and the ability an arctangent of the loss, which the analysis does not contain. A smaller size has all of it at
equal loss, or 0.3 less for every tenth of the parameters. Runs differ by luck: of nothing, of the ability's amount by a
lognormal or by Student's t with four degrees of freedom, or of the loss at which it comes, by 0.1 nats: steep sizes then differ
more than those that have nearly all. Prints a line a cell: luck, runs of each size, share of intervals that hold, share of
verdicts (kept, lost) that are wrong, median width, how many. Writes benchmarks/results/survival_coverage.json.
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE)]

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
import simulated_cells  # noqa: E402
from scipy.stats import norm  # noqa: E402

from emergence_train.analysis.emergence.finding import Finding  # noqa: E402
from emergence_train.analysis.emergence.kept import HALF, shares_kept  # noqa: E402
from emergence_train.analysis.emergence.result import SizeEffect  # noqa: E402
from emergence_train.analysis.emergence.table import task_metric  # noqa: E402
from emergence_train.analysis.emergence.verdict import Verdict  # noqa: E402

CHANCE, ITEMS = 0.25, 600
SIZES = (100_000, 1_000_000, 10_000_000)
TOKENS = np.geomspace(1e6, 1e9, 25).round()
RUNS = ((1, 1, 1), (2, 2, 2), (3, 3, 3), (5, 5, 5), (2, 1, 1), (1, 1, 2))  # of each size, smallest first
LUCK = {"none": 0.0, "lognormal, 10%": 0.1, "lognormal, 25%": 0.25, "Student, 10%": 0.1, "Student, 25%": 0.25}
LUCK |= {"threshold, 0.1 nats": 0.1}
PENALTIES = (0.0, 0.3)
NO_EFFECT = SizeEffect(None, None, None, None)  # survival does not read it
RESULT = HERE.parents[1] / "benchmarks" / "results" / "survival_coverage.json"


def loss_of(params: int) -> np.ndarray:
    """(checkpoints,) with round numbers."""
    return 1.8 + 40 / params**0.3 + 60 / TOKENS**0.25


def above(loss: np.ndarray) -> np.ndarray:
    """The ability above chance, of the largest size."""
    return (1 - CHANCE) * np.maximum(0, np.arctan(1.5 * (3.6 - loss))) / (np.pi / 2)


def kept_at_equal_loss(params: int, penalty: float) -> float:
    return float(1 - penalty * np.log10(SIZES[-1] / params))


def truth(luck: str, params: int, penalty: float) -> tuple[float, float]:
    """Shares kept (at equal tokens, at equal loss), of endless runs."""
    share = kept_at_equal_loss(params, penalty)
    shifts = [LUCK[luck] * norm.ppf((k + 0.5) / 999) for k in range(999)] if luck.startswith("threshold") else [0.0]
    own, largest = (np.mean([above(loss_of(size)[-1] + shift) for shift in shifts]) for size in (params, SIZES[-1]))
    return share * float(own / largest), share


def factor(luck: str, rng: np.random.Generator) -> float:
    """By which the amount of a run's ability differs; its mean is 1."""
    spread = LUCK[luck]
    if luck.startswith("threshold"):
        return 1.0
    if luck.startswith("Student"):
        return max(1 + spread * rng.standard_t(4) / np.sqrt(2), 0.0)
    return float(np.exp(spread * rng.standard_normal() - spread**2 / 2))


def table(luck: str, runs: tuple[int, ...], penalty: float, rng: np.random.Generator) -> pd.DataFrame:
    parts = []
    for params, number in zip(SIZES, runs):
        loss = loss_of(params)
        for run in range(number):
            shift = LUCK[luck] * rng.standard_normal() if luck.startswith("threshold") else 0.0
            amount = factor(luck, rng) * kept_at_equal_loss(params, penalty)
            share = np.clip(CHANCE + amount * above(loss + shift), 0, 1)
            columns = {"step": np.arange(1, len(loss) + 1), "tokens": TOKENS, "loss": loss}
            columns["value"] = rng.binomial(ITEMS, share) / ITEMS
            parts.append(pd.DataFrame(columns).assign(run=f"{params}-{run}", params=params))
    constant = {"task": "t", "metric": "acc", "stderr": np.nan, "items": ITEMS, "chance": CHANCE}
    return pd.concat(parts, ignore_index=True).assign(**constant, higher_is_better=True)


def cell(luck: str, runs: tuple[int, ...], count: int) -> dict:
    judged = Verdict("gradual", 1.0, {}, None, None, (0.0, 0.0, 0.0), None, "")
    held, wrong, widths = [], [], []
    alike = runs[:1] if len(set(runs)) == 1 else runs
    for number in range(count):
        for penalty in PENALTIES:
            rng = np.random.default_rng([number, *alike, list(LUCK).index(luck), int(penalty > 0)])
            task = task_metric("", "t", "acc", table(luck, runs, penalty, rng))
            result = shares_kept(Finding(task, judged, NO_EFFECT), rng)
            for size in result.sizes if result else ():
                for kept, share in zip((size.at_equal_tokens, size.at_equal_loss), truth(luck, size.params, penalty)):
                    low, high = kept.share.low95, kept.share.high95
                    held.append(low <= share <= high)
                    widths.append(high - low)
                    wrong.append(kept.verdict == ("lost" if share > HALF else "kept"))
    return {
        "luck": luck,
        "runs": ", ".join(map(str, alike)),
        "coverage95": round(float(np.mean(held)), 4),
        "verdict_wrong": round(float(np.mean(wrong)), 4),
        "median_width": round(float(np.median(widths)), 3),
        "shares": len(held),
    }


if __name__ == "__main__":
    simulated_cells.run(__doc__, 100, RESULT, lambda count: (cell(luck, runs, count) for luck in LUCK for runs in RUNS))
