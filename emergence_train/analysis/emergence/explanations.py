"""Explanations of a threshold beside one another, each with its evidence and what it explains: the metric, several steps, the
loss, the tokens seen, the training compute.

The metric is the mirage check (mirage.py). Steps: a task whose steps are scored by themselves, as metrics step_1, step_2, ...
beside the whole, is right with the product of its steps' shares where they succeed independently: a jump from smooth steps. Loss,
tokens and compute: the share of the score's variation that one monotone curve of each explains, whatever the run; of one run they
cannot be told apart. None excludes another.
"""

from collections.abc import Sequence

import numpy as np

from emergence_train.analysis.emergence.finding import Finding
from emergence_train.analysis.emergence.mirage import STEP
from emergence_train.analysis.emergence.result import Explained, Explanation, ExplanationName, MirageCheck, TaskResult
from emergence_train.analysis.results import Interval

LEAST = 3  # checkpoints that have the whole and every step
DRAWS = 1000
MOST, HALF = 0.8, 0.5  # shares: above MOST it explains, below HALF it does not


def explanations(
    pairs: Sequence[tuple[TaskResult, Finding]], checks: Sequence[MirageCheck], rng: np.random.Generator
) -> tuple[Explanation, ...]:
    """Those that were measured, for each task with an emergent verdict of a metric that counts right answers."""
    entries: list[Explanation] = []
    for task, finding in pairs:
        if task.verdict != "emergent" or task.continuous or STEP.match(task.metric):
            continue
        steps = [other for _, other in pairs if _is_step_of(other, task)]
        entries += [_metric(check) for check in checks if check.key == task.key and check.continuous]
        entries += [entry] if (entry := _steps(task, finding, steps, rng)) is not None else []
        entries += _curves(task, finding)
    return tuple(entries)


def _is_step_of(other: Finding, task: TaskResult) -> bool:
    metric = other.task
    return (metric.family, metric.task) == task.key[:2] and STEP.match(metric.metric) is not None and metric.sign == 1


def _metric(check: MirageCheck) -> Explanation:
    verdict: Explained = "open" if check.survives is None else "does-not" if check.survives else "explains"
    verdicts = ", ".join(f"{metric} {verdict}" for metric, verdict in check.continuous.items())
    return _entry(check, "metric", None, verdict, f"continuous metrics of the same answers: {verdicts}")


def _steps(task: TaskResult, whole: Finding, steps: list[Finding], rng: np.random.Generator) -> Explanation | None:
    """None where fewer than two steps are scored, or at fewer than three checkpoints of one whole that changes."""
    values, variances = _matched(whole, steps)
    if len(steps) < 2 or len(values) < LEAST or np.ptp(values[:, 0]) == 0:
        return None
    explained = composition(values, variances, rng)
    apart = float((values[:, 0] - values[:, 1:].prod(1)).mean())
    evidence = (
        f"{len(steps)} steps scored by themselves at {len(values)} checkpoints: the whole is {abs(apart):.2f} "
        f"{'above' if apart > 0 else 'below'} the product of the steps on average"
    )
    return _entry(task, "steps", explained, _verdict(explained), evidence)


def _matched(whole: Finding, steps: list[Finding]) -> tuple[np.ndarray, np.ndarray]:
    """(rows, 1 + steps) values and variances of the whole and its steps, at the checkpoints that have all of them."""
    frames = [
        finding.task.frame[["run", "step", "y"]].assign(v=finding.task.rows.variance).set_index(["run", "step"])
        for finding in (whole, *steps)
    ]
    shared = frames[0].index
    for frame in frames[1:]:
        shared = shared.intersection(frame.index)
    values, variances = (np.stack([frame.loc[shared, name].to_numpy(float) for frame in frames], 1) for name in "yv")
    return values, variances


def composition(values: np.ndarray, variances: np.ndarray, rng: np.random.Generator) -> Interval:
    """1 - mean squared (whole - product of steps) / variance of the whole, with its 95% interval for sampling of items.

    Args:
        values: (checkpoints, 1 + steps) shares of right items, the whole first. variances: of their estimates.

    The interval reaches as far to both sides as the lowest 2.5% of shares lie below that measured, of values drawn around those
    measured. Drawing adds noise a second time, and whole and steps are drawn apart though they are of the same items, so it is
    rather too wide.
    """
    share = _explained(values[None])[0]
    drawn = values + np.sqrt(variances) * rng.standard_normal((DRAWS, *values.shape))
    low = float(np.nanpercentile(_explained(np.clip(drawn, 0, 1)), 2.5))
    return Interval(float(share), low, float(min(2 * share - low, 1.0)))


def _explained(values: np.ndarray) -> np.ndarray:
    """(draws,) of values (draws, checkpoints, 1 + steps)."""
    whole, product = values[..., 0], values[..., 1:].prod(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return 1 - ((whole - product) ** 2).mean(-1) / whole.var(-1)


def _curves(task: TaskResult, finding: Finding) -> list[Explanation]:
    """One curve of loss, of tokens and of compute for all runs; nothing of a single run, in which they go together."""
    if task.runs < 2:
        return []
    y = finding.task.rows.y
    ceiling = 1 - float(finding.task.rows.variance.mean() / max(y.var(), 1e-12))
    about = f"one curve for {task.runs} runs of {task.sizes} size{'s' if task.sizes > 1 else ''}"
    shares: dict[ExplanationName, float | None] = {
        "loss": task.collapse.r2_loss,
        "tokens": task.collapse.r2_tokens,
        "compute": task.collapse.r2_compute,
    }
    effect, entries = task.size_effect, []
    for name, share in shares.items():
        if share is None:
            continue
        evidence = f"{about}; sampling of items alone would leave it at {max(ceiling, 0):.2f}"
        if name == "loss" and effect.value is not None:
            evidence += f"; at equal loss ten times the size changes it by {effect.value:+.3f}, p = {effect.p:.2g}"
        interval = Interval(share, None, None)
        entries.append(_entry(task, name, interval, _verdict(interval), evidence))
    return entries


def _verdict(share: Interval) -> Explained:
    low, high = (share.value if end is None else end for end in (share.low95, share.high95))
    assert low is not None and high is not None
    if low >= MOST:
        return "explains"
    if high < HALF:
        return "does-not"
    return "in-part" if low >= HALF else "open"


def _entry(
    key: TaskResult | MirageCheck, name: ExplanationName, explained: Interval | None, verdict: Explained, evidence: str
) -> Explanation:
    return Explanation(
        family=key.family,
        task=key.task,
        metric=key.metric,
        explanation=name,
        explained=explained,
        verdict=verdict,
        evidence=evidence,
    )
