"""How often does the interval of an explained share hold the share of endless runs, and how often is a verdict wrong?

    python benchmarks/studies/explanation_shares.py [--simulations 100]

The share of a score's variation that one monotone curve of the loss, or of the tokens, explains, of ladders of few runs whose
scores are drawn in forms that the estimator does not contain: thresholds in the loss that are each run's own, a coin for each
run, levels that differ, a straight piece in the tokens. The truth is the share of RUNS runs. Beside the jackknife of
analysis/emergence/shares.py, the percentiles of a bootstrap over runs, which is not used.

Writes benchmarks/results/explanation_shares.json.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE)]

from commands import write_result  # noqa: E402

from emergence_train.analysis.emergence.explanations import HALF, MOST, verdict_of  # noqa: E402
from emergence_train.analysis.emergence.shares import over_runs  # noqa: E402
from emergence_train.analysis.emergence.size import explained  # noqa: E402

FORMS = ("own thresholds", "a coin for each run", "own levels", "tokens")
COUNTS = (3, 4, 6, 10)
RUNS = 600
TOKENS = np.geomspace(1e6, 1e9, 16)
SIZES = np.geomspace(1e5, 1e7, 5)
ITEMS = 200
BOOTSTRAPS = 60
RESULT = HERE.parents[1] / "benchmarks" / "results" / "explanation_shares.json"


def ladder(form: str, runs: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(rows,) loss improved, log tokens, counted score, run: each run of a size drawn at random."""
    parts = []
    for number in range(runs):
        loss = 2.0 + 300 / rng.choice(SIZES) ** 0.55 + 50 / TOKENS**0.25 + 0.02 * rng.standard_normal()
        beyond = (3.3 - loss) / 0.5
        if form == "own thresholds":
            share = 0.5 + np.arctan(3 * (beyond + 0.5 * rng.standard_normal())) / np.pi
        elif form == "a coin for each run":
            share = 0.25 + 0.7 * (rng.random() < 0.6) * (1 - np.exp(-3 * np.maximum(beyond, 0)))
        elif form == "own levels":
            share = 0.2 + 0.5 * np.clip(beyond, 0, 1) + 0.15 * rng.standard_normal()
        else:
            share = np.clip(0.5 + 0.5 * (np.log10(TOKENS) - 7.6) / 0.4, 0.05, 0.95)
        score = rng.binomial(ITEMS, np.clip(share, 0, 1)) / ITEMS
        parts.append((-loss, np.log(TOKENS), score, np.full(len(TOKENS), number)))
    loss, tokens, score, run = (np.concatenate(column) for column in zip(*parts))
    return loss, tokens, score, run


def bootstrapped(
    along: np.ndarray, score: np.ndarray, run: np.ndarray, rng: np.random.Generator
) -> tuple[float, float]:
    """The percentiles of shares of runs drawn again."""
    shares = []
    for _ in range(BOOTSTRAPS):
        rows = np.concatenate([np.flatnonzero(run == each) for each in rng.choice(np.unique(run), run.max() + 1)])
        share = explained(along[rows], score[rows])
        shares += [] if share is None else [share]
    low, high = np.percentile(shares, [2.5, 97.5])
    return float(low), float(high)


def coverage(form: str, of: str, runs: int, count: int, bootstrap: bool = True) -> dict:
    """Of `count` ladders of so many runs."""
    place = 0 if of == "loss" else 1
    whole = ladder(form, RUNS, np.random.default_rng([FORMS.index(form), 7]))
    truth = explained(whole[place], whole[2])
    assert truth is not None
    held, drawn, verdicts, widths = [], [], [], []
    for number in range(count):
        rng = np.random.default_rng([number, FORMS.index(form), place, runs])
        columns = ladder(form, runs, rng)
        along, score, run = columns[place], columns[2], columns[3]
        interval = over_runs(lambda kept: explained(along[kept], score[kept]), run, least=0.0)  # noqa: B023
        if interval.low95 is None or interval.high95 is None:
            continue
        held.append(interval.low95 <= truth <= interval.high95)
        widths.append(interval.high95 - interval.low95)
        verdicts.append(verdict_of(interval))
        if bootstrap:
            low, high = bootstrapped(along, score, run, rng)
            drawn.append(low <= truth <= high)
    right = "explains" if truth >= MOST else "in-part" if truth >= HALF else "does-not"
    allowed = {right, "open", *(["in-part"] if right == "explains" else [])}
    return {
        "form": form,
        "curve_of": of,
        "runs": runs,
        "truth": round(truth, 4),
        "ladders": len(held),
        "coverage95": round(float(np.mean(held)), 4),
        "median_width": round(float(np.median(widths)), 4),
        "bootstrap_coverage95": round(float(np.mean(drawn)), 4) if bootstrap else None,
        "verdict_given": round(float(np.mean([name != "open" for name in verdicts])), 4),
        "verdict_wrong": round(float(np.mean([name not in allowed for name in verdicts])), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=100)
    count = parser.parse_args().simulations
    begin, rows = time.process_time(), []
    for form in FORMS:
        for of in ("loss", "tokens"):
            for runs in COUNTS:
                rows.append(coverage(form, of, runs, count))
                print(rows[-1], flush=True)
    result = {
        "cpu_seconds": round(time.process_time() - begin),
        "mean_coverage95": {
            str(n): round(float(np.mean([r["coverage95"] for r in rows if r["runs"] == n])), 4) for n in COUNTS
        },
        "mean_bootstrap_coverage95": {
            str(n): round(float(np.mean([r["bootstrap_coverage95"] for r in rows if r["runs"] == n])), 4)
            for n in COUNTS
        },
        "rows": rows,
    }
    write_result(RESULT, f"python benchmarks/studies/explanation_shares.py --simulations {count}", result)


if __name__ == "__main__":
    main()
