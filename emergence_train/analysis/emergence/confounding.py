"""A threshold between runs of few checkpoints each, which may be one of the loss, or of what goes with it from run to run.

Where each run has one checkpoint, the loss is lower in larger runs and in those of more tokens, so that what size alone decides
has a threshold in the loss as well. No run shows it by itself; what is left is how well each explains the scores of all. An
emergent verdict is not identified where one curve of size, tokens or compute explains them clearly better than the loss, or where
runs of equal loss differ by more than it explains. Where another explains them as well, neither can be told from the other: the
curve of the loss has its threshold, and a note says so.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from emergence_train.analysis.emergence.explanations import MOST
from emergence_train.analysis.emergence.shapes import mean_curve
from emergence_train.analysis.emergence.size import explained, orders
from emergence_train.analysis.emergence.table import TaskMetric
from emergence_train.analysis.emergence.verdict import SIDE, Verdict

# From where one curve explains clearly better: the log of the likelihood ratio (Kass and Raftery 1995: 3 is strong, 5 very
# strong), and, as many runs of a few recipes are not independent, how many times as much the loss leaves unexplained
CLEAR, TIMES = 4.0, 1.5
NOTE = (
    "these runs of few checkpoints do not tell whether the loss or {name} decides: one curve of {name} explains {share:.2f} of "
    "the variance, one of the loss {loss:.2f}"
)


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
    shares, sampling = shares_by_name(task), _sampling(task)
    loss, rival = shares["loss"], _best_rival(task, shares, sampling)
    if rival is not None and rival.better > CLEAR and rival.times > TIMES:
        why = f"{rival.name} explains more than the loss"
    elif 1 - loss - sampling > 1 - MOST:
        why = "at equal loss they differ by more than it explains"
    else:
        if rival is not None and rival.better > -CLEAR:
            task.notes.append(NOTE.format(name=rival.name, share=shares[rival.name], loss=loss))
        return verdict
    reason = (
        f"emergent (probability {verdict.probability:.2f}) between runs of few checkpoints each, but {why}: give {2 * SIDE} or "
        f"more checkpoints of each run; {in_words(shares)}"
    )
    return verdict.not_identified(reason, 1.0, confounded=True)


def in_words(shares: Mapping[str, float | None]) -> str:
    """What one curve of each explains, of those that are known."""
    known = ", ".join(f"{name} {share:.2f}" for name, share in shares.items() if share is not None)
    return f"shares of the variance that one curve explains: {known or 'unknown'}"


def shares_by_name(task: TaskMetric) -> dict[str, float]:
    """The share of the variance that one curve explains of size, tokens, compute and the loss; without those that hardly vary."""
    shares = {name: _explained(task, along) for name, along in _orders(task).items()}
    return {name: share for name, share in shares.items() if share is not None}


def _orders(task: TaskMetric) -> dict[str, np.ndarray]:
    """What a curve may be of: as size.orders, and the size; without it and the compute where a run's size is unknown."""
    params, along = task.frame["params"].to_numpy(float), orders(task)
    of_size = {"size": np.log(np.maximum(params, 1.0)), "tokens": along["tokens"], "compute": along["compute"]}
    known = of_size if params.min() > 0 else {"tokens": along["tokens"]}
    return known | {"loss": along["loss"]}


def _own_checkpoints(task: TaskMetric) -> float:
    """The share of rows that are of runs with enough checkpoints to rise by themselves: first ones and last ones."""
    count = np.bincount(task.rows.run)
    return float(np.mean(count[task.rows.run] >= 2 * SIDE))


def _sampling(task: TaskMetric) -> float:
    """The share of the variance that sampling of the items alone makes."""
    return float(task.rows.variance.mean() / max(task.rows.y.var(), 1e-12))


def _explained(task: TaskMetric, along: np.ndarray) -> float | None:
    """By the shapes that the verdict is of or by the spline of the shares, whichever explains more; `along` (n,) is the order.
    None where it hardly varies."""
    rows = task.rows
    share = explained(along, rows.y)
    if share is None:
        return None
    rows = replace(rows, x=(along - along.min()) / np.ptp(along))
    rest = rows.y - mean_curve(rows, task.scale)
    return max(share, 1 - float(np.mean(rest**2)) / float(rows.y.var()))


def _best_rival(task: TaskMetric, shares: dict[str, float], sampling: float) -> Rival | None:
    """Of independent runs, with normal residuals: none is taken to be smaller than sampling makes them. None without another."""
    name = max((name for name in shares if name != "loss"), key=shares.__getitem__, default=None)
    if name is None:
        return None
    left, best = (max(1 - shares[along], sampling, 1e-9) for along in ("loss", name))
    return Rival(name, len(np.unique(task.rows.run)) / 2 * float(np.log(left / best)), left / best)
