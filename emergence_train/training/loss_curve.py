"""A run's losses in bounded memory, for its forecasts."""

from array import array
from collections.abc import Iterable

import numpy as np

MOST = 1 << 16  # points kept: some 2 MB of temporary arrays for a forecast, 0.1 s


class LossCurve:
    """Loss by step. Beyond `most` points (even), neighbouring ones are averaged in pairs, and from then on as many steps more for
    each point: the noise of single steps is what goes first.

    The points depend on the losses and their order alone, so that a resumed run forecasts as one that was not stopped.
    """

    def __init__(self, rows: Iterable[tuple[float, float]] = (), most: int = MOST) -> None:
        """`rows`: (step, loss in nats per token) of what has been trained."""
        self.most, self.each = most, 1  # steps a point
        self._steps, self._losses = array("d"), array("d")
        self._open = 0, 0.0, 0.0  # steps in the point that is not complete, the sums of their numbers and losses
        for step, loss in rows:
            self.add(step, loss)

    def __len__(self) -> int:
        return len(self._steps)

    def add(self, step: float, loss: float) -> None:
        """The next step's loss, nats per token; finite."""
        count, steps, losses = self._open
        count, steps, losses = count + 1, steps + step, losses + loss
        if count < self.each:
            self._open = count, steps, losses
            return
        self._open = 0, 0.0, 0.0
        self._steps.append(steps / count)
        self._losses.append(losses / count)
        if len(self) >= self.most:
            self._steps, self._losses = (_in_pairs(values) for values in (self._steps, self._losses))
            self.each *= 2

    def points(self) -> tuple[np.ndarray, np.ndarray]:
        """(n,) steps, means of those of a point, and (n,) losses; up to `each` - 1 last steps are in none yet."""
        return np.array(self._steps), np.array(self._losses)


def _in_pairs(values: array) -> array:
    return array("d", np.array(values).reshape(-1, 2).mean(1))
