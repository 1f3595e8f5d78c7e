"""What a tracker's table of runs shows of a run: its best held-out loss, where it is now, and where it is forecast to end."""

import math
from collections.abc import Iterable
from typing import Any

from emergence_train.tracking import AXES

HELD_OUT = "val/iid/loss"
LAST = (HELD_OUT, "train/loss", "forecast/loss", "forecast/low95", "forecast/high95")


class Summary:
    """`best/...` and `last/...` of the points seen so far, by their tokens: late points may come in any order."""

    def __init__(self, points: Iterable[dict[str, Any]] = ()) -> None:
        self._best: dict[str, Any] = {}
        self._last: dict[str, tuple[int, Any]] = {}
        for point in points:
            self.add(point)

    def add(self, point: dict[str, Any]) -> None:
        """Take a point {name: value} with its step and tokens."""
        tokens = point["tokens"]
        for name in (*AXES, *LAST):
            if name in point and tokens >= self._last.get(name, (0, None))[0]:
                self._last[name] = tokens, point[name]
        loss = point.get(HELD_OUT)
        if loss is not None and math.isfinite(loss) and loss < self._best.get(HELD_OUT, math.inf):
            self._best = {name: point[name] for name in (HELD_OUT, *AXES)}

    def values(self) -> dict[str, Any]:
        """{best/val/iid/loss, best/step, best/tokens, last/NAME ...}, as far as there are points."""
        best = {f"best/{name}": value for name, value in self._best.items()}
        return best | {f"last/{name}": value for name, (_, value) in self._last.items()}
