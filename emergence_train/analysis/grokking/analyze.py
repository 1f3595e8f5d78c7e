"""From curves to the result of a sweep."""

from collections import Counter

import numpy as np
import pandas as pd

from emergence_train.analysis.grokking import critical, curves
from emergence_train.analysis.grokking.efficiency import efficiency
from emergence_train.analysis.grokking.outcomes import run_result
from emergence_train.analysis.grokking.result import (
    CriticalFraction,
    GrokkingResult,
    MedianTime,
    RunResult,
    TimeTrend,
    Trend,
)
from emergence_train.analysis.grokking.times import median_time, time_trend


def analyze(frame: pd.DataFrame, budget: int) -> GrokkingResult:
    """Outcomes, critical shares and their trend, times and efficiency of a sweep.

    Args:
        frame: a row a measurement, with the columns of curves.COLUMNS.
        budget: updates that a run could have had.

    Raises:
        InputError: the frame lacks a column or rows, or lists a measurement twice.
    """
    rows = curves.checked(frame)
    runs = tuple(run_result(curve, budget) for _, curve in rows.groupby("run", sort=False))
    runs = tuple(sorted(runs, key=lambda run: (run.params, run.weight_decay, run.fraction, run.seed)))
    groups = _groups(runs)
    fitted = critical.fit(
        [
            critical.Group(
                np.array([run.fraction for run in members]),
                np.array([run.heldout_90 is not None for run in members]),
                members[0].params,
                members[0].weight_decay,
            )
            for members in groups
        ]
    )
    moved = critical.trend(fitted)
    return GrokkingResult(
        budget=budget,
        outcomes=dict(Counter(run.outcome for run in runs)),
        runs=runs,
        critical_fraction=tuple(_critical(members, fitted, number) for number, members in enumerate(groups)),
        trend=Trend(
            value=moved.slope.value,
            low95=moved.slope.low95,
            high95=moved.slope.high95,
            p=moved.p,
            straight_p=moved.straight_p,
            sizes=moved.sizes,
        ),
        times=_times(groups),
        time_trend=_time_trend(groups),
        efficiency=tuple(row for members in groups if (row := efficiency(members, rows, budget)) is not None),
    )


def _groups(runs: tuple[RunResult, ...]) -> list[list[RunResult]]:
    """The runs by size and weight decay."""
    groups: dict[tuple, list[RunResult]] = {}
    for run in runs:
        groups.setdefault((run.params, run.model, run.weight_decay), []).append(run)
    return list(groups.values())


def _critical(members: list[RunResult], fitted: critical.Fit, number: int) -> CriticalFraction:
    share = fitted.critical(number)
    return CriticalFraction(
        model=members[0].model,
        params=members[0].params,
        weight_decay=members[0].weight_decay,
        value=share.value,
        low95=share.low95,
        high95=share.high95,
        runs=len(members),
        generalised=sum(run.heldout_90 is not None for run in members),
    )


def _times(groups: list[list[RunResult]]) -> tuple[MedianTime, ...]:
    rows = []
    for members in groups:
        for share in sorted({run.fraction for run in members}):
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


def _time_trend(groups: list[list[RunResult]]) -> TimeTrend:
    runs = [run for members in groups for run in members]
    times, happened = _survival(runs)
    numbers = np.repeat(np.arange(len(groups)), [len(members) for members in groups])
    slope, p = time_trend(np.array([run.fraction for run in runs]), times, happened, numbers)
    return TimeTrend(
        value=slope.value,
        low95=slope.low95,
        high95=slope.high95,
        p=p,
        runs=len(runs),
        generalised=int(happened.sum()),
    )
