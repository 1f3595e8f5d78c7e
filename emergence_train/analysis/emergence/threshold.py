"""The threshold's uncertainty: the posterior over shapes, and what no fit of shapes can know.

A curve's rise need not be any of the shapes, guesses and label biases persist from checkpoint to checkpoint, and between two rows
nothing was observed. None of these shrinks with the number of items, so the posterior alone is too narrow.
"""

import numpy as np

# Standard deviation of the foot of a rise about that of the best shape: of any rise, as a share of the loss range, and as a share
# of its own foot. Chosen together with shapes.TRUST on simulated items (benchmarks/studies/emergence_items.py).
SHAPE, OF_FOOT = 0.003, 0.4


def threshold(onset: np.ndarray, foot: np.ndarray, x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(S,) draws of the threshold from those of the onset, both as shares of the loss range; `x` (n,) are the rows'.

    `foot` (S,) is the share of the range over which the drawn rise does its first shapes.FIRST: there no data tell one form
    from another. The draws' 95% interval is at least as wide as the widest gap between neighbouring rows that the posterior's
    touches, or that is next to those: a foot just outside the interval was seen no better.
    """
    drawn = onset + np.hypot(SHAPE, OF_FOOT * foot) * rng.standard_normal(len(onset))
    low, middle, high = np.quantile(drawn, [0.025, 0.5, 0.975])
    gap = _widest_gap(np.unique(x), low, high)
    # a thousandth more, because quantiles of what is clipped below and rounded in result.json must not fall short
    stretch = max(1.001 * gap / max(high - low, 1e-12), 1.0)
    return np.clip(middle + (drawn - middle) * stretch, 0, 1)


def _widest_gap(rows: np.ndarray, low: float, high: float) -> float:
    """Of the gaps between `rows` (n,) ascending that touch [low, high], and the next one on either side."""
    touched = np.flatnonzero((rows[1:] > low) & (rows[:-1] < high))
    if not len(touched):
        return 0.0
    return float(np.diff(rows)[max(touched[0] - 1, 0) : touched[-1] + 2].max())
