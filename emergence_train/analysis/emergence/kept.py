"""Does an ability hold as the model shrinks? The share of the largest size's performance above chance that a smaller size keeps,
at equal tokens and at equal loss.

The loss perspective (arXiv 2403.15796) says: all of it at equal loss, less at equal tokens. Within a run performance is
interpolated between the two checkpoints around the place, linear in the loss or in the logarithm of tokens; runs of one size are
averaged. Intervals are of the items and, where any size has several runs, of the runs: their variance is pooled over sizes, and
Student's t has its degrees of freedom; sizes of one run beside them are taken to differ as much. Where each size is one run, how
much runs differ is not known. The result says which it is. The place is the furthest that every run reached; a run that ended
before half of its size's longest is left out, by convention, and listed.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from emergence_train.analysis.emergence.finding import Finding
from emergence_train.analysis.emergence.result import IntervalOf, Kept, KeptVerdict, SizeKept, TaskKept
from emergence_train.analysis.emergence.table import TaskMetric
from emergence_train.analysis.results import Interval

HALF = 0.5  # of the largest size's performance: more is kept, less is lost
EARLY = 0.5  # of the tokens of a size's longest run
CLEAR = 3.0  # standard errors that the largest size must be above chance
DRAWS = 4000
SAME = 1e-12  # nats or log tokens: places that differ by rounding
SHOWN_BY = ("emergent", "gradual")  # verdicts of which there is an ability to keep


@dataclass(frozen=True)
class Point:
    """A size's performance above chance with the variance of its estimate, and how many runs it is of."""

    above: float
    variance: float
    runs: int
    freedom: float = np.inf  # degrees of freedom of the variance


def shares_kept(finding: Finding, rng: np.random.Generator) -> TaskKept | None:
    """What each size keeps; None where there is one size, no ability, or no known chance level."""
    task = finding.task
    if finding.verdict.name not in SHOWN_BY or not np.isfinite(task.chance) or len(task.sizes) < 2:
        return None
    runs = {name: rows.sort_values("tokens") for name, rows in task.frame.assign(_v=task.rows.variance).groupby("run")}
    early = _early(runs)
    runs = {name: rows for name, rows in runs.items() if name not in early}
    largest = task.sizes[-1]
    at_tokens, log_tokens = _points(
        task, runs, {name: np.log(rows["tokens"].to_numpy(float)) for name, rows in runs.items()}
    )
    at_loss, minus_loss = _points(task, runs, {name: -rows["loss"].to_numpy(float) for name, rows in runs.items()})
    if any(_unclear(points[largest]) for points in (at_tokens, at_loss)):
        return None
    tokens, loss = round(np.exp(log_tokens)), -minus_loss
    counts = Counter(int(rows["params"].iloc[0]) for rows in runs.values())
    sizes = tuple(
        SizeKept(
            params=size,
            runs=counts[size],
            at_equal_tokens=_kept(at_tokens.get(size), at_tokens[largest], f"{tokens:,} tokens", rng),
            at_equal_loss=_kept(at_loss.get(size), at_loss[largest], f"{loss:.3f} nats", rng),
        )
        for size in task.sizes[:-1]
    )
    return TaskKept(
        family=task.family,
        task=task.task,
        metric=task.metric,
        largest=largest,
        tokens=tokens,
        loss=loss,
        interval_of=_interval_of([*at_tokens.values(), *at_loss.values()]),
        left_out=early,
        sizes=sizes,
    )


def _early(runs: dict) -> tuple[str, ...]:
    """The runs that ended before EARLY of the tokens of their size's longest."""
    ends = {name: (int(rows["params"].iloc[0]), rows["tokens"].max()) for name, rows in runs.items()}
    longest: dict[int, float] = {}
    for size, tokens in ends.values():
        longest[size] = max(longest.get(size, 0), tokens)
    return tuple(str(name) for name, (size, tokens) in ends.items() if tokens < EARLY * longest[size])


def _points(task: TaskMetric, runs: dict, axes: dict) -> tuple[dict[int, Point], float]:
    """(each size's point, the place) on `axes` (n,) of its runs; without runs that have no checkpoint on both sides of it."""
    sizes = {name: int(rows["params"].iloc[0]) for name, rows in runs.items()}
    begin = min(axes[name][0] for name, size in sizes.items() if size == task.sizes[-1])
    place = min(end for axis in axes.values() if (end := float(axis.max())) >= begin)
    by_size: dict[int, list[tuple[float, float]]] = {}
    for name, rows in runs.items():
        between = _at(axes[name], place)
        if between is not None:
            first, second, weight = between
            y, variance = rows["y"].to_numpy(float), rows["_v"].to_numpy(float)
            value = (1 - weight) * y[first] + weight * y[second]
            spread = (1 - weight) ** 2 * variance[first] + weight**2 * variance[second]
            by_size.setdefault(sizes[name], []).append((value - task.chance, spread))
    freedom = sum(len(values) - 1 for values in by_size.values())
    squares = sum(float(np.var([above for above, _ in values])) * len(values) for values in by_size.values())
    return {size: _point(values, squares / max(freedom, 1), freedom) for size, values in by_size.items()}, place


def _point(values: list[tuple[float, float]], between_runs: float, freedom: int) -> Point:
    """Of a size's runs (above chance, sampling variance); `between_runs`: the variance of runs, of so many degrees of freedom.

    Where that is below the variance of items, which is part of it, it is so by chance: its degrees of freedom are no more."""
    above, sampling = np.array(values).mean(0)
    variance = max(sampling, between_runs) / len(values)
    return Point(float(above), float(variance), len(values), freedom or np.inf)


def _at(axis: np.ndarray, place: float) -> tuple[int, int, float] | None:
    """(checkpoint before, checkpoint after, weight of the latter) where `axis` (n,), in order of time, first reaches `place`;
    None where it begins beyond it or ends before."""
    reached = np.flatnonzero(axis >= place - SAME)
    if not len(reached) or axis[0] > place + SAME:
        return None
    second = int(reached[0])
    first = max(second - 1, 0)
    gap = axis[second] - axis[first]
    return first, second, float(np.clip((place - axis[first]) / gap, 0, 1)) if gap > 0 else 1.0


def _interval_of(points: list[Point]) -> IntervalOf:
    """What the intervals of points that are compared are of."""
    if all(point.runs > 1 for point in points):
        return "items and runs"
    return "items and runs of some sizes" if any(np.isfinite(point.freedom) for point in points) else "items"


def _unclear(point: Point) -> bool:
    return point.above < CLEAR * np.sqrt(point.variance)


def _kept(size: Point | None, largest: Point, place: str, rng: np.random.Generator) -> Kept:
    """The share that `size` keeps of `largest`, both drawn around their estimates; null where it has no point at the place."""
    if size is None:
        return Kept(Interval(None, None, None), "open", f"no run has checkpoints on both sides of {place}")
    draws = _drawn(size, rng)
    draws /= _drawn(largest, rng)
    low, high = (float(bound) for bound in np.quantile(draws, [0.025, 0.975]))
    verdict: KeptVerdict = "kept" if low > HALF else "lost" if high < HALF else "open"
    return Kept(Interval(size.above / largest.above, low, high), verdict)


def _drawn(point: Point, rng: np.random.Generator) -> np.ndarray:
    """(DRAWS,) of a size's performance above chance."""
    known = np.isfinite(point.freedom)
    return point.above + np.sqrt(point.variance) * (
        rng.standard_t(point.freedom, DRAWS) if known else rng.standard_normal(DRAWS)
    )
