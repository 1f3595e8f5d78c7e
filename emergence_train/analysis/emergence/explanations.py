"""Explanations of a threshold beside one another, each with its evidence and what it explains: the metric, several steps, the
loss, the tokens seen, the training compute.

The metric is the mirage check (mirage.py). Steps: a task whose steps are scored by themselves, as metrics step_1, step_2, ...
beside the whole, is right with the product of its steps' shares where they succeed independently: a jump from smooth steps,
where the steps are smooth. Loss, tokens and compute: the share of the score's variation that one monotone curve of each explains,
whatever the run; of one run they cannot be told apart. None excludes another. The limits of a verdict are a convention, and one
is given only where the share's interval lies on one side of a limit.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from emergence_train.analysis.composition_share import share_by_product
from emergence_train.analysis.emergence.finding import Finding
from emergence_train.analysis.emergence.metric_names import is_step
from emergence_train.analysis.emergence.mirage import by_verdict
from emergence_train.analysis.emergence.result import Explained, Explanation, ExplanationName, MirageCheck, TaskResult
from emergence_train.analysis.emergence.shares import LEAST_RUNS, over_runs
from emergence_train.analysis.emergence.size import explained, orders
from emergence_train.analysis.results import Interval

LEAST = 3  # checkpoints that have the whole and every step
DRAWS = 1000
MOST, HALF = 0.8, 0.5  # shares, by convention: from MOST on it explains, below HALF it does not


def explanations(
    pairs: Sequence[tuple[TaskResult, Finding]], checks: Sequence[MirageCheck], rng: np.random.Generator
) -> tuple[Explanation, ...]:
    """Those that were measured, for each metric that counts right answers and has a threshold: in the loss, or of some runs
    alone, at losses at which others have none."""
    entries: list[Explanation] = []
    for task, finding in pairs:
        jumps = task.verdict == "emergent" or finding.verdict.unexplained
        if not jumps or task.continuous or is_step(task.metric):
            continue
        steps = [other for _, other in pairs if _is_step_of(other, task)]
        entries += [_metric(check) for check in checks if check.key == task.key and check.continuous]
        entries += [entry] if (entry := _steps(task, finding, steps, rng)) is not None else []
        entries += _curves(task, finding)
    return tuple(entries)


def _is_step_of(other: Finding, task: TaskResult) -> bool:
    metric = other.task
    return (metric.family, metric.task) == task.key[:2] and is_step(metric.metric) and metric.sign > 0


def _metric(check: MirageCheck) -> Explanation:
    verdict: Explained = "open" if check.survives is None else "does-not" if check.survives else "explains"
    verdicts = by_verdict(check.continuous, "emergent")
    return _entry(check, "metric", None, verdict, f"continuous metrics of the same answers: {verdicts}")


def _steps(task: TaskResult, whole: Finding, steps: list[Finding], rng: np.random.Generator) -> Explanation | None:
    """None where fewer than two steps are scored, or at fewer than three checkpoints of one whole that changes."""
    values, variances, run = _matched(whole, steps)
    if len(steps) < 2 or len(values) < LEAST or np.ptp(values[:, 0]) == 0:
        return None
    share = composition(values, variances, run, rng)
    apart = float((values[:, 0] - values[:, 1:].prod(1)).mean())
    evidence = (
        f"{len(steps)} steps scored by themselves at {len(values)} checkpoints: the whole is {abs(apart):.2f} "
        f"{'above' if apart > 0 else 'below'} the product of the steps on average; "
        f"by themselves the steps are {_counted([step.verdict.name for step in steps])}"
    )
    if (runs := len(np.unique(run))) < LEAST_RUNS:
        evidence += f"; of {runs} run{'s' if runs > 1 else ''}, so the interval is of items alone: other runs may differ by more"
    return _entry(task, "steps", share, verdict_of(share), evidence)


def _counted(names: list[str]) -> str:
    counts = Counter(names)
    return next(iter(counts)) if len(counts) == 1 else ", ".join(f"{name} ({count})" for name, count in counts.items())


def _matched(whole: Finding, steps: list[Finding]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(rows, 1 + steps) values and variances of the whole and its steps, and (rows,) runs, at the checkpoints that have all."""
    frames = [
        finding.task.frame[["run", "step", "y"]].assign(v=finding.task.rows.variance).set_index(["run", "step"])
        for finding in (whole, *steps)
    ]
    shared = frames[0].index
    for frame in frames[1:]:
        shared = shared.intersection(frame.index)
    values, variances = (np.stack([frame.loc[shared, name].to_numpy(float) for frame in frames], 1) for name in "yv")
    return values, variances, shared.get_level_values("run").to_numpy()


def composition(values: np.ndarray, variances: np.ndarray, run: np.ndarray, rng: np.random.Generator) -> Interval:
    """1 - mean squared (whole - product of steps) / variance of the whole, of endless items, with its 95% interval.

    Args:
        values: (checkpoints, 1 + steps) shares of right items, the whole first. variances: of their estimates.
        run: (checkpoints,) the run of each.

    The interval is that of sampling of items (composition_share.py), drawn anew at each checkpoint or kept, whichever is wider,
    and widened to that over runs (shares.py) where there are three or more.
    """
    whole, apart = values[:, 0], values[:, 0] - values[:, 1:].prod(1)
    noise = (DRAWS, len(whole), 2)
    anew, kept = rng.standard_normal(noise), _kept_items(whole, run) @ rng.standard_normal(noise)
    items, of_kept = (share_by_product(apart, whole, *_sampling(values, variances, drawn)) for drawn in (anew, kept))
    lows, highs = _known(items.low95, of_kept.low95), _known(items.high95, of_kept.high95)
    if items.value is None or len(lows) < 2:
        return Interval(items.value, None, max(highs))

    def share(rows: np.ndarray) -> float | None:
        variation = whole[rows].var()
        return float(1 - (apart[rows] ** 2).mean() / variation) if variation > 0 else None

    runs = over_runs(share, run)
    assert runs.value is not None
    sampling = items.value - runs.value  # is in the share as measured
    lows += [end + sampling for end in _known(runs.low95)]
    highs += [min(end + sampling, 1.0) for end in _known(runs.high95)]
    return Interval(items.value, min(lows), max(highs))


def _known(*ends: float | None) -> list[float]:
    return [end for end in ends if end is not None]


def _kept_items(whole: np.ndarray, run: np.ndarray) -> np.ndarray:
    """(checkpoints, checkpoints) that makes independent noise that of items that, once right, stay right within a run: two shares
    of them are correlated as a Brownian bridge is at two times. Items drawn anew at each checkpoint are the other extreme."""
    low, high = np.minimum.outer(whole, whole), np.maximum.outer(whole, whole)
    odds = np.divide(low * (1 - high), high * (1 - low), out=np.zeros_like(low), where=high * (1 - low) > 0)
    together = np.sqrt(odds) * np.equal.outer(run, run)
    np.fill_diagonal(together, 1.0)
    sizes, directions = np.linalg.eigh(together)
    return directions * np.sqrt(np.maximum(sizes, 0))


def _sampling(values: np.ndarray, variances: np.ndarray, drawn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(draws, checkpoints) of whole - product, and of the whole, as sampling of the same items for the whole and its steps moves
    them, by `drawn` (draws, checkpoints, 2) normal noise. How steps go together is taken from the whole: in a part of the items
    all are right or wrong at once."""
    steps, sizes = values[:, 1:], np.sqrt(variances)
    product, least = steps.prod(1), steps.min(1)
    span = least - product
    together = np.clip(np.divide(values[:, 0] - product, span, out=np.zeros(len(span)), where=span > 0), 0, 1)
    shares = np.column_stack([product + together * span, steps])
    joint = shares[:, :, None] * shares[:, None]
    both = np.minimum(shares[:, :, None], shares[:, None])  # where all come at once; the whole has every step
    both[:, 1:, 1:] = joint[:, 1:, 1:] + together[:, None, None] * (both - joint)[:, 1:, 1:]
    spread = np.sqrt(shares * (1 - shares))
    scale = np.divide(sizes, spread, out=np.zeros_like(sizes), where=spread > 0)
    covariance = (both - joint) * scale[:, :, None] * scale[:, None]
    diagonal = np.arange(len(shares[0]))
    covariance[:, diagonal, diagonal] = variances
    apart = np.ones_like(shares)  # the derivative of whole - product
    for k in range(steps.shape[1]):
        apart[:, k + 1] = -np.delete(steps, k, 1).prod(1)
    apart_whole, whole_size = (apart * covariance[:, 0]).sum(1), sizes[:, 0]
    shared = np.divide(apart_whole, whole_size, out=np.zeros(len(shares)), where=whole_size > 0)
    own = np.sqrt(np.maximum(np.einsum("ci,cij,cj->c", apart, covariance, apart) - shared**2, 0))
    return shared * drawn[..., 0] + own * drawn[..., 1], whole_size * drawn[..., 0]


def _curves(task: TaskResult, finding: Finding) -> list[Explanation]:
    """One curve of loss, of tokens and of compute for all runs; nothing of a single run, in which they go together."""
    if task.runs < 2:
        return []
    rows, effect = finding.task.rows, task.size_effect
    ceiling = 1 - float(rows.variance.mean() / max(rows.y.var(), 1e-12))
    about = f"one curve for {task.runs} runs of {task.sizes} size{'s' if task.sizes > 1 else ''}"
    about += f"; sampling of items alone would leave it at {max(ceiling, 0):.2f}"
    entries = []
    for name, along in orders(finding.task).items():

        def share(kept: np.ndarray, along: np.ndarray = along) -> float | None:
            return explained(along[kept], rows.y[kept])

        interval = over_runs(share, rows.run, least=0.0)
        if interval.value is None:
            continue
        evidence = about
        if name == "loss" and effect.value is not None:
            evidence += f"; at equal loss ten times the size changes it by {effect.value:+.3f}, p = {effect.p:.2g}"
            if effect.details is not None and effect.details.interval_of == "items":
                evidence += " of items alone: other runs may differ by more"
        if task.runs < LEAST_RUNS:
            evidence += f"; an interval needs {LEAST_RUNS} runs"
        entries.append(_entry(task, name, interval, verdict_of(interval), evidence))
    return entries


def verdict_of(share: Interval) -> Explained:
    """Of the interval, not of the value; open without one."""
    if share.low95 is None or share.high95 is None:
        return "open"
    if share.low95 >= MOST:
        return "explains"
    if share.high95 < HALF:
        return "does-not"
    return "in-part" if share.low95 >= HALF and share.high95 < 1 else "open"


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
