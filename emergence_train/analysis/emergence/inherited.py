"""Runs that the accuracy of a task shows to have an ability, asked of the task's continuous metrics.

Whether a run has learnt a task is told by its accuracy, whose chance and sampling are known. A log-likelihood has no chance
level, so that where a few of the runs have learnt it and one curve of the loss stays flat, it would be called at chance beside an
accuracy that is not. It inherits those runs where their scores stand apart from the others' in it as well; or, of runs that rise
in the accuracy and leave too few others, where they rise in it as well.
"""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from scipy import stats

from emergence_train.analysis.emergence.finding import Finding
from emergence_train.analysis.emergence.metric_names import continuous, is_step
from emergence_train.analysis.emergence.verdict import SIDE, first_and_last, last_rows

# Of the one-sided test that able runs stand apart, or rise; benchmarks/studies/inherited_ability.py has what it calls
LEVEL = 0.05
LEAST = 2  # runs whose scatter is the measure: those without the ability, or those that rise


def with_able_runs(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """The findings, where a continuous metric at chance is not-identified for the sake of runs that its task's accuracy shows."""
    findings = tuple(findings)
    shown: dict[tuple[str, str], frozenset[str]] = {}
    risen: set[tuple[str, str]] = set()
    for finding in findings:
        task = finding.task
        if finding.verdict.able and not continuous(task.metric) and not is_step(task.metric):
            key = (task.family, task.task)
            shown[key] = shown.get(key, frozenset()) | _names(finding)
            risen |= {key} if finding.verdict.rose else set()
    keyed = [(finding, (finding.task.family, finding.task.task)) for finding in findings]
    return tuple(_inheriting(finding, shown.get(key, frozenset()), key in risen) for finding, key in keyed)


def _names(finding: Finding) -> frozenset[str]:
    codes = finding.task.rows.run
    return frozenset(finding.task.frame["run"].to_numpy()[np.isin(codes, list(finding.verdict.able))])


def _inheriting(finding: Finding, able: frozenset[str], rose: bool) -> Finding:
    """The finding as the able runs among its own change it: those that lack the metric say nothing of it."""
    task, verdict = finding.task, finding.verdict
    names = dict(zip(task.frame["run"], task.rows.run))
    codes = frozenset(int(code) for name, code in names.items() if name in able)
    if not codes or verdict.name != "at-chance" or not continuous(task.metric):
        return finding
    shows, how = stand_apart(finding, codes), "stand apart from the others"
    if shows is None and rose:
        shows, how = rise(finding, codes), "rise"
    if shows is False:
        return finding
    reason = f"{len(codes)} of {len(names)} runs are far above chance by the accuracy"
    if shows:
        reason += f", and {how} in {task.metric} too"
    else:
        reason += f"; too few runs have enough checkpoints here to tell whether they are so in {task.metric} too"
    changed = replace(
        verdict, name="not-identified", probability=1.0, reason=reason, able=codes if shows else frozenset()
    )
    return replace(finding, verdict=changed)


def stand_apart(finding: Finding, able: frozenset[int]) -> bool | None:
    """Whether the runs `able` end above the others: Student's one-sided test of one mean against the scatter of the others'.

    Each run counts with the mean, over its SIDE checkpoints of the lowest losses, of what its score is above the common curve.
    The scatter is that of runs without the ability alone: what the able ones differ in among themselves says nothing of chance.
    The difference must also be a relevant change (TaskMetric.smallest). None with fewer than two others, or no able run, of SIDE
    checkpoints.
    """
    task, residuals = finding.task, _residuals(finding)
    if residuals is None:
        return None
    above = {}
    for code in np.unique(task.rows.run):
        last = last_rows(task.rows, code)
        if len(last) == SIDE:
            above[int(code)] = float(residuals[last].mean())
    ours = np.array([value for code, value in above.items() if code in able])
    others = np.array([value for code, value in above.items() if code not in able])
    if len(others) < LEAST or not len(ours):
        return None
    gap = float(ours.mean() - others.mean())
    error = others.std(ddof=1) * np.sqrt(1 / len(ours) + 1 / len(others))
    return bool(gap > task.smallest and gap > stats.t.isf(LEVEL, len(others) - 1) * error)


def rise(finding: Finding, able: frozenset[int]) -> bool | None:
    """Whether the runs `able` gain as they train: Student's one-sided test of their gains, each the mean of the SIDE last
    checkpoints less that of the SIDE first, above the common curve. Their mean must also be a relevant change. None with fewer
    than two runs of so many checkpoints."""
    rows, residuals = finding.task.rows, _residuals(finding)
    if residuals is None:
        return None
    ends = [each for code in able if (each := first_and_last(rows, code)) is not None]
    if len(ends) < LEAST:
        return None
    gains = [residuals[last].mean() - residuals[first].mean() for first, last in ends]
    gain, error = np.mean(gains), np.std(gains, ddof=1) / np.sqrt(len(gains))
    return bool(gain > finding.task.smallest and gain > stats.t.isf(LEVEL, len(gains) - 1) * error)


def _residuals(finding: Finding) -> np.ndarray | None:
    """What each score is above the common curve; None where there is no curve."""
    rows, drawn = finding.task.rows, finding.verdict.posterior
    return None if drawn is None else rows.y - np.interp(rows.x, drawn.grid, drawn.curves.mean(0))
