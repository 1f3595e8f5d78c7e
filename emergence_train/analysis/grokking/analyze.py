"""From curves to the result of a sweep."""

import numbers
from collections import Counter
from dataclasses import replace

import numpy as np
import pandas as pd

from emergence_train.analysis.grokking import critical, curves
from emergence_train.analysis.grokking.efficiency import efficiency
from emergence_train.analysis.grokking.outcomes import run_result
from emergence_train.analysis.grokking.result import (
    CriticalFraction,
    GrokkingResult,
    MedianTime,
    Outcome,
    RunResult,
    TimeTrend,
    Trend,
    nothing_counts,
)
from emergence_train.analysis.grokking.times import median_time, time_trend
from emergence_train.errors import InputError

NO_TREND = "no size generalised at two shares, too few runs did, or their times do not bound it"


def analyze(frame: pd.DataFrame, budget: int) -> GrokkingResult:
    """Outcomes, critical shares and their trend, times and efficiency of a sweep.

    Args:
        frame: a row a measurement, with the columns of curves.COLUMNS.
        budget: updates that a run could have had; later rows are not read.

    Raises:
        InputError: the frame lacks a column or rows, or lists a measurement twice; the budget is no number of updates.
    """
    if isinstance(budget, bool) or not isinstance(budget, numbers.Real) or budget != budget // 1 or budget < 1:
        raise InputError(f"budget: {budget!r} is no number of updates; give a whole number above 0")
    budget = int(budget)
    rows = curves.checked(frame)
    runs = tuple(run_result(curve, budget) for _, curve in rows.groupby("run", sort=False))
    runs = tuple(sorted(runs, key=lambda run: (run.params, run.weight_decay, run.fraction, run.seed)))
    groups = _groups(runs)
    # A run that diverged says nothing of how much data is needed; one that stopped says it of times alone.
    counted = [[run for run in members if run.counts()] for members in groups]
    known = [[run for run in members if not run.stopped] for members in counted]
    fitted = critical.fit(
        [
            critical.Group(
                np.array([run.fraction for run in members], dtype=float),
                np.array([run.heldout_90 is not None for run in members], dtype=bool),
                of[0].params,
                of[0].weight_decay,
            )
            for of, members in zip(groups, known)
        ]
    )
    moved = critical.trend(fitted)
    result = GrokkingResult(
        budget=budget,
        outcomes=dict(Counter(run.outcome for run in runs)),
        runs=runs,
        critical_fraction=tuple(_critical(of, known[number], fitted, number) for number, of in enumerate(groups)),
        trend=Trend(
            value=moved.slope.value,
            low95=moved.slope.low95,
            high95=moved.slope.high95,
            p=moved.p,
            least_p=moved.least_p,
            straight_p=moved.straight_p,
            sizes=moved.sizes,
            log_share=moved.log,
        ),
        times=_times(counted),
        time_trend=_time_trend([members for members in counted if members], [run.outcome for run in runs]),
        efficiency=tuple(
            row for members in counted if members and (row := efficiency(members, rows, budget)) is not None
        ),
    )
    if moved.slope.value is not None:
        return result
    return replace(result, trend=replace(result.trend, reason=result.trend_unknown()))


def _groups(runs: tuple[RunResult, ...]) -> list[list[RunResult]]:
    """The runs by size and weight decay."""
    groups: dict[tuple, list[RunResult]] = {}
    for run in runs:
        groups.setdefault((run.params, run.model, run.weight_decay), []).append(run)
    return list(groups.values())


def _critical(of: list[RunResult], members: list[RunResult], fitted: critical.Fit, number: int) -> CriticalFraction:
    """Of all runs `of` one size and weight decay by its `members` that count."""
    share = fitted.critical(number)
    return CriticalFraction(
        model=of[0].model,
        params=of[0].params,
        weight_decay=of[0].weight_decay,
        value=share.value,
        low95=share.low95,
        high95=share.high95,
        runs=len(members),
        generalised=(generalised := sum(run.heldout_90 is not None for run in members)),
        reason=None if share.value is not None else _unknown(of, members, generalised),
    )


def _unknown(of: list[RunResult], members: list[RunResult], generalised: int) -> str:
    """Why these runs have no critical share."""
    if not members:
        return nothing_counts({"stopped" if run.counts() else run.outcome for run in of})
    if generalised == 0:
        return "no run generalised within the budget"
    if generalised == len(members):
        return "every run generalised"
    if len({run.fraction for run in members}) == 1:
        return "one share alone"
    rates = [
        np.mean([run.heldout_90 is not None for run in members if run.fraction == share]) for share in _shares(members)
    ]
    if rates[0] >= max(rates):
        return "more data did not go with more runs that generalised"
    return "half of the runs generalise at no place between two shares"


def _shares(members: list[RunResult]) -> list[float]:
    return sorted({run.fraction for run in members})


def _times(groups: list[list[RunResult]]) -> tuple[MedianTime, ...]:
    rows = []
    for members in groups:
        for share in _shares(members):
            part = [run for run in members if run.fraction == share]
            times, happened = _survival(part)
            median = median_time(times, happened)
            rows.append(
                MedianTime(
                    model=part[0].model,
                    params=part[0].params,
                    weight_decay=part[0].weight_decay,
                    fraction=share,
                    median=None if median is None else int(median),
                    runs=len(part),
                    generalised=int(happened.sum()),
                )
            )
    return tuple(rows)


def _survival(runs: list[RunResult]) -> tuple[np.ndarray, np.ndarray]:
    """Updates until each generalised, or until its end; and whether it did."""
    happened = np.array([run.heldout_90 is not None for run in runs])
    times = np.array([run.updates if run.heldout_90 is None else run.heldout_90 for run in runs], dtype=float)
    return np.maximum(times, 1.0), happened


def _time_trend(groups: list[list[RunResult]], outcomes: list[Outcome]) -> TimeTrend:
    runs = [run for members in groups for run in members]
    if not runs:
        why = nothing_counts({*outcomes})
        return TimeTrend(value=None, low95=None, high95=None, p=None, runs=0, generalised=0, reason=why)
    after = np.array(
        [max(run.updates, 1) if run.heldout_90 is None else run.before_heldout_90 for run in runs], dtype=float
    )
    until = np.array([np.inf if run.heldout_90 is None else run.heldout_90 for run in runs])
    numbers = np.repeat(np.arange(len(groups)), [len(members) for members in groups])
    slope, p = time_trend(np.array([run.fraction for run in runs]), after, until, numbers)
    return TimeTrend(
        value=slope.value,
        low95=slope.low95,
        high95=slope.high95,
        p=p,
        runs=len(runs),
        generalised=int(np.isfinite(until).sum()),
        reason=NO_TREND if slope.value is None else None,
    )
