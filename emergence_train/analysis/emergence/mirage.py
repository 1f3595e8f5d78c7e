"""The mirage check: does an emergent verdict hold for continuous metrics of the same outputs (arXiv 2304.15004)?

Accuracy and exact match can stay flat while the probability of the right answer grows, so a threshold found only in
them may be a mirage. Continuous metrics have chance levels of their own: a Brier score that falls from 1.5 (a constant
one-hot answer among four) to 0.75 (uniform guesses) is calibration, not learning.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from emergence_train.analysis.emergence.metric_names import continuous, is_step
from emergence_train.analysis.emergence.result import MirageCheck, TaskResult

BINS = 12  # of the loss, for the emergence score


def emergence_score(performance: np.ndarray) -> float | None:
    """sign(argmax y - argmin y) (max y - min y) / sqrt(median((y_i - y_{i-1})^2)) of arXiv 2304.15004.

    `performance` (n,) in the order of growing ability. None where it is not defined: fewer than 3 values, or a median
    step of 0.
    """
    y = np.asarray(performance, float)
    if len(y) < 3:
        return None
    step = float(np.sqrt(np.median(np.diff(y) ** 2)))
    if step == 0:
        return None
    return float(np.sign(int(y.argmax()) - int(y.argmin())) * (y.max() - y.min()) / step)


def binned(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Mean of `y` in BINS equal bins of `x` in [0, 1], without empty ones, so that neighbours differ by more than noise."""
    index = np.minimum((x * BINS).astype(int), BINS - 1)
    count = np.bincount(index, minlength=BINS)
    return (np.bincount(index, y, BINS)[count > 0]) / count[count > 0]


def mirage(tasks: Sequence[TaskResult]) -> tuple[MirageCheck, ...]:
    """For each task with an emergent verdict, whether the verdict holds in a continuous metric too; not of single steps."""
    return tuple(
        _check(task, tasks)
        for task in tasks
        if task.verdict == "emergent" and not continuous(task.metric) and not is_step(task.metric)
    )


def _check(task: TaskResult, tasks: Sequence[TaskResult]) -> MirageCheck:
    others = [other for other in tasks if other.key[:2] == task.key[:2] and continuous(other.metric)]
    verdicts = {other.metric: other.verdict for other in others}
    telling = {name for name in verdicts.values() if name not in ("not-identified", "at-chance")}
    survives = None
    if not others:
        says = "not known: the table has no continuous metric of this task"
    elif "emergent" in telling:
        says, survives = f"survives: of the continuous metrics {by_verdict(verdicts, 'emergent')}", True
    elif telling:
        says, survives = f"does not survive: no continuous metric has a threshold; {by_verdict(verdicts)}", False
    else:
        says = f"open: the continuous metrics show nothing; {by_verdict(verdicts)}"
    return MirageCheck(
        family=task.family,
        task=task.task,
        metric=task.metric,
        continuous=verdicts,
        survives=survives,
        says=says,
        resolution=task.resolution,
    )


def by_verdict(verdicts: Mapping[str, str], first: str = "") -> str:
    """`emergent in a, b; gradual in c`: the metrics by their verdicts, `first` first."""
    order = sorted(dict.fromkeys(verdicts.values()), key=lambda verdict: verdict != first)
    return "; ".join(
        f"{name} in {', '.join(m for m, verdict in verdicts.items() if verdict == name)}" for name in order
    )
