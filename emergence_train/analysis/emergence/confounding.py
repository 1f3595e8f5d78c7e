"""A threshold between runs of few checkpoints each, which may be one of the loss, or of what goes with it from run to run.

Where each run has one checkpoint, the loss is lower in larger runs and in those of more tokens, so that what size alone decides
has a threshold in the loss as well. No run shows it by itself; what is left is how well each explains the scores of all. An
emergent verdict is not identified where one curve of size, tokens or compute explains them clearly better than the loss, or where
runs of equal loss differ by more than it explains. Where another explains them as well, neither can be told from the other: the
curve of the loss has its threshold, and a note says so.
"""

from dataclasses import dataclass, replace

import numpy as np

from emergence_train.analysis.emergence.explanations import MOST
from emergence_train.analysis.emergence.shapes import posterior
from emergence_train.analysis.emergence.size import explained, orders
from emergence_train.analysis.emergence.table import TaskMetric
from emergence_train.analysis.emergence.verdict import SIDE, Verdict

# From where one curve explains clearly better: the log of the likelihood ratio (Kass and Raftery 1995: 3 is strong, 5 very
# strong), and, as many runs of a few recipes are not independent, how many times as much the loss leaves unexplained
CLEAR, TIMES = 4.0, 1.5
NOTE = "one curve of {} explains these runs of few checkpoints as well as one of the loss: which of them decides is not known"


@dataclass(frozen=True)
class Rival:
    """What explains the scores best beside the loss: log of the likelihood ratio, and ratio of what both leave."""

    name: str
    better: float
    times: float


def without_confounding(task: TaskMetric, verdict: Verdict) -> Verdict:
    """The verdict; not-identified where it is emergent between runs in which the loss is not what decides."""
    if verdict.name != "emergent" or _own_checkpoints(task) >= 0.5:
        return verdict
    loss, sampling = _explained(task, task.rows.x), _sampling(task)
    rival = _best_rival(task, loss, sampling)
    if rival.better > CLEAR and rival.times > TIMES:
        why = f"{rival.name} explains more than the loss"
    elif 1 - loss - sampling > 1 - MOST:
        why = "at equal loss they differ by more than it explains"
    else:
        if rival.better > -CLEAR:
            task.notes.append(NOTE.format(rival.name))
        return verdict
    reason = f"emergent (probability {verdict.probability:.2f}) between runs of few checkpoints each, but {why}"
    return verdict.not_identified(f"{reason}: give several checkpoints of each run", 1.0, confounded=True)


def shares_by_name(task: TaskMetric) -> dict[str, float]:
    """The share of the variance that one curve explains of size, tokens, compute and the loss; without those that hardly vary."""
    shares = {name: explained(along, task.rows.y) for name, along in _orders(task).items()}
    return {name: share for name, share in shares.items() if share is not None}


def _orders(task: TaskMetric) -> dict[str, np.ndarray]:
    params = task.frame["params"].to_numpy(float)
    return {"size": np.log(np.maximum(params, 1.0))} | {
        name: orders(task)[name] for name in ("tokens", "compute", "loss")
    }


def _own_checkpoints(task: TaskMetric) -> float:
    """The share of rows that are of runs with enough checkpoints to rise by themselves: first ones and last ones."""
    count = np.bincount(task.rows.run)
    return float(np.mean(count[task.rows.run] >= 2 * SIDE))


def _sampling(task: TaskMetric) -> float:
    """The share of the variance that sampling of the items alone makes."""
    return float(task.rows.variance.mean() / max(task.rows.y.var(), 1e-12))


def _explained(task: TaskMetric, along: np.ndarray) -> float:
    """By the shapes that the verdict is of or by the spline of the shares, whichever explains more; `along` (n,) is the order."""
    rows = task.rows
    share = explained(along, rows.y)
    if share is None:
        return 0.0
    rows = replace(rows, x=(along - along.min()) / np.ptp(along))
    drawn = posterior(rows, task.scale, np.random.default_rng(0))
    rest = rows.y - np.interp(rows.x, drawn.grid, drawn.curves.mean(0))
    return max(share, 1 - float(np.mean(rest**2)) / float(rows.y.var()))


def _best_rival(task: TaskMetric, loss: float, sampling: float) -> Rival:
    """Of independent runs, with normal residuals: none is taken to be smaller than sampling makes them."""
    shares = {name: _explained(task, along) for name, along in _orders(task).items() if name != "loss"}
    name = max(shares, key=shares.__getitem__)
    left, best = (max(1 - share, sampling, 1e-9) for share in (loss, shares[name]))
    return Rival(name, len(np.unique(task.rows.run)) / 2 * float(np.log(left / best)), left / best)
