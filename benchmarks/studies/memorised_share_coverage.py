"""How often do the intervals of memorised shares hold the truth? Exactly, by summing over all counts that there can be.

    python benchmarks/studies/memorised_share_coverage.py

The interval of one share (Wilson), that of trained less controls (Newcombe), and how often Fisher's p is below 0.05 where
both are the same, for 5 to 200 sequences and shares from 0 to 1, sequences taken as independent; and where pieces of one text
succeed or fail together in tens, which the intervals do not know. Writes benchmarks/results/memorised_share_coverage.json.
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE)]

import numpy as np  # noqa: E402
from commands import write_result  # noqa: E402
from scipy import stats  # noqa: E402

from emergence_train.analysis.memorisation.analyze import difference, wilson  # noqa: E402

COUNTS = (5, 20, 100, 200)
SHARES = np.linspace(0, 1, 101)
DIFFERENCES = ((0.0, 0.0), (0.02, 0.0), (0.1, 0.0), (0.3, 0.0), (0.7, 0.0), (0.3, 0.02), (0.7, 0.3), (1.0, 0.0))
TOGETHER = 10  # sequences of one text
RESULT = HERE.parents[1] / "benchmarks" / "results" / "memorised_share_coverage.json"


def of_one(count: int, together: int = 1) -> dict:
    """Coverage of one share's interval over SHARES; `together` sequences have one outcome."""
    texts = count // together
    ends = np.array([wilson(k * together, count) for k in range(texts + 1)])
    chances = stats.binom.pmf(np.arange(texts + 1), texts, SHARES[:, None])
    inside = (ends[:, 0] - 1e-12 <= SHARES[:, None]) & (SHARES[:, None] <= ends[:, 1] + 1e-12)
    held = (chances * inside).sum(1)
    return {"sequences": count, "together": together, "least": round(held.min(), 4), "mean": round(held.mean(), 4)}


def of_two(count: int, trained: float, control: float) -> dict:
    """Coverage of the difference's interval, and how often Fisher's p is below 0.05."""
    k = np.arange(count + 1)
    first, second = stats.binom.pmf(k, count, trained), stats.binom.pmf(k, count, control)
    held = called = 0.0
    for a in np.flatnonzero(first > 1e-9):
        for b in np.flatnonzero(second > 1e-9):
            low, high = difference(int(a), count, int(b), count)
            chance = float(first[a] * second[b])
            held += chance * (low - 1e-12 <= trained - control <= high + 1e-12)
            table = [[a, count - a], [b, count - b]]
            called += chance * (stats.fisher_exact(table, alternative="greater").pvalue < 0.05)
    row = {"sequences_each": count, "trained": trained, "controls": control}
    return row | {"coverage95": round(held, 4), "p_below_0.05": round(called, 4)}


def main() -> None:
    result = {
        "shares": [of_one(count) for count in COUNTS],
        "shares_of_texts": [of_one(count, TOGETHER) for count in COUNTS if count >= TOGETHER],
        "differences": [of_two(count, *pair) for count in (20, 100) for pair in DIFFERENCES],
    }
    write_result(RESULT, "python benchmarks/studies/memorised_share_coverage.py", result)
    for name in ("shares", "shares_of_texts", "differences"):
        for row in result[name]:
            print(name, *row.values())


if __name__ == "__main__":
    main()
