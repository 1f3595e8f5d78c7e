"""Jumps of the level inside the observed part of a curve: other data, another mixture, a broken restart.

No law has them, and a law fitted across one forecasts neither side: forecasts set the rows before it to the level behind. A jump
is looked for at every row, beside a straight line in log steps through SIDE rows on each side of it; where none is clear, through
SIDE groups of twice as many rows, and so on. The limits were set on 90 public logs, each seen to 20, 40, 70 and 100%, so that
none is noted; one has -0.06 nats of 8 to 10 standard errors.
"""

from dataclasses import dataclass, replace

import numpy as np

from emergence_train.analysis.planned_schedule import PlannedSchedule
from emergence_train.analysis.temporal.spikes import group_size, noise_of, returned_part, rounding_of, without_spikes

SIDE = 12  # rows, or groups of them, on each side of a jump
FIRST = 0.15  # share of the observed steps before which the loss bends too much for a line
CLEAR, LEAST = 10.0, 0.03  # standard errors, and nats, that a jump is larger than
SAME_RATE = 0.02  # of the peak: where the rate itself jumps by more beside its own line, it may be its doing


@dataclass(frozen=True)
class Jump:
    """`step` of the row at it, `size` in nats; `lasts`: it is not the rise of a spike that comes back."""

    step: float
    size: float
    lasts: bool = True

    @property
    def note(self) -> str:
        what = (
            f"the loss jumps by {self.size:+.2f} nats near step {self.step:.0f}, which neither its noise nor the learning rate "
            "explains (other data?): "
        )
        if not self.lasts:
            return f"{what}it comes back, and the law is fitted to all rows; forecast from those behind it"
        return (
            f"{what}the law is fitted with the rows before it set to the level behind; if those behind it fall otherwise too, "
            "forecast from them alone"
        )


def find_jump(x: np.ndarray, y: np.ndarray, plan: PlannedSchedule | None) -> Jump | None:
    """The clearest jump of losses `y` (n,), nats, at steps `x` (n,) ascending; None: there is none."""
    plan = plan and plan.past
    x, y, effect, _ = returned_part(x, y, plan)
    keep = x >= max(FIRST * x[-1], 1.2 * plan.warmup_end if plan is not None else 0.0)
    x, y, effect = x[keep], y[keep], effect[keep]
    if len(x) < 2 * SIDE:
        return None
    rounding = rounding_of(y)  # neighbours are rounded alike: a mean over rows does not lessen it
    y = without_spikes(y, noise_of(y), effect)
    each, jump = group_size(len(x)), None
    # the more rows beside it, the smaller a jump is clear of their noise; the fewer, the better known is its step
    while jump is None and len(x) // each > 2 * SIDE:
        steps, levels = (values[len(values) % each :].reshape(-1, each).mean(1) for values in (x, y))
        jump = _clearest(steps, levels, rounding, plan)
        each *= 2
    return jump if jump is None or jump.size < 0 or _lasts(x, y, jump) else replace(jump, lasts=False)


def _lasts(x: np.ndarray, y: np.ndarray, jump: Jump) -> bool:
    """Whether the loss is still above its course before a rise, and not back from a spike that took long."""
    near = min(jump.step / 2, x[x < jump.step][-SIDE])
    before, end = (x < jump.step) & (x >= near), x > jump.step + 0.75 * (x[-1] - jump.step)
    line = np.polyfit(np.log(x[before]), y[before], 1)
    return bool(np.median(y[end] - np.polyval(line, np.log(x[end]))) > jump.size / 2)


def _clearest(x: np.ndarray, y: np.ndarray, rounding: float, plan: PlannedSchedule | None) -> Jump | None:
    """The clearest jump of losses `y` (n,) of groups of rows at steps `x` (n,)."""
    noise, share = max(noise_of(y), rounding), plan.share_over_batch(x) if plan is not None else np.ones(len(x))
    clearest, best = CLEAR, None
    for k in range(SIDE, len(x) - SIDE):
        rows = np.r_[k - SIDE : k, k + 1 : k + SIDE + 1]  # the group between may be a mean over both levels
        at = np.log(x[rows] / x[k])
        line = np.c_[np.ones(2 * SIDE), at, at > 0]
        both = line.T @ np.c_[y[rows], share[rows]]
        solved = np.linalg.solve(line.T @ line, np.c_[both[:, 0], [0.0, 0.0, 1.0], both[:, 1]])
        if abs(solved[2, 2]) > SAME_RATE:
            continue
        left = y[rows] - line @ solved[:, 0]
        row_sd = max(float(np.sqrt(left @ left / (2 * SIDE - 3))), noise, 1e-9)
        size = float(solved[2, 0])
        clear = abs(size) / (row_sd * float(np.sqrt(solved[2, 1])))
        if abs(size) >= LEAST and clear > clearest:
            clearest, best = clear, Jump(float(x[k]), size)
    return best
