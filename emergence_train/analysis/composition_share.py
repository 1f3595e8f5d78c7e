"""How much of a whole's variation over checkpoints the product of its steps explains, with the sampling of items taken out.

Sampling makes whole and product differ, and the whole vary, also where steps are independent: its mean square is subtracted
from both. The interval is that of shares with which the measured difference is compatible (the inversion of a test): a
difference of the measured shape and any size, and the noise of the items on it. So it reaches 1 where steps are independent.
"""

from collections.abc import Callable

import numpy as np

from emergence_train.analysis.results import Interval

CLOSE = 1e-4  # of the interval's ends
MOST_LEFT = 1e3  # unexplained, in variations of the whole: from here on it is open


def share_by_product(
    apart: np.ndarray, whole: np.ndarray, apart_noise: np.ndarray, whole_noise: np.ndarray
) -> Interval:
    """1 - mean squared (whole - product) / variance of the whole, of endless items, with its 95% interval.

    Args:
        apart: (checkpoints,) whole - product as measured. whole: (checkpoints,).
        apart_noise, whole_noise: (draws, checkpoints) what sampling of items adds to them, drawn together.

    Returns:
        No value and no lower end where sampling alone may be what makes the whole vary.
    """
    variation_noise = whole_noise.var(1).mean()
    variation = float(whole.var() - variation_noise)
    noise = (apart_noise**2).mean(1)
    square = float((apart**2).mean())
    difference = square - float(noise.mean())
    if variation <= 0:
        return Interval(None, None, 1.0)
    centre = whole.mean() + (whole - whole.mean()) * np.sqrt(variation / whole.var())
    variations = (centre + whole_noise).var(1) - variation_noise - variation
    along = 2 * (apart_noise @ apart) / len(apart) / np.sqrt(square) if square > 0 else 0 * noise

    def compatible(left: float, quantile: float) -> float:
        """How far the measured difference lies above the quantile of those of a share `left` that is not explained."""
        drawn = np.sqrt(left * variation) * along + noise - noise.mean() - left * variations
        return difference - left * variation - float(np.quantile(drawn, quantile))

    value = max(difference, 0.0) / variation
    most, least = _end(lambda left: compatible(left, 0.025), value), 0.0
    if compatible(0.0, 0.975) > 0:
        least = _between(lambda left: compatible(left, 0.975), 0.0, value)
    return Interval(None, None, 1 - least) if most is None else Interval(1 - value, 1 - most, 1 - least)


def _end(compatible: Callable[[float], float], value: float) -> float | None:
    step = max(value, CLOSE)
    while value + step < MOST_LEFT:
        if compatible(value + step) < 0:
            return _between(compatible, value, value + step)
        step *= 2
    return None


def _between(compatible: Callable[[float], float], low: float, high: float) -> float:
    """Where it falls below 0."""
    while high - low > CLOSE * max(1.0, high):
        middle = (low + high) / 2
        low, high = (middle, high) if compatible(middle) > 0 else (low, middle)
    return (low + high) / 2
