"""Runs that the accuracy of a task shows to have an ability, asked of the task's continuous metrics.

Whether a run has learnt a task is told by its accuracy, whose chance and sampling are known. A log-likelihood has no chance
level, so that where a few of the runs have learnt it and one curve of the loss stays flat, it would be called at chance beside an
accuracy that is not. It inherits those runs where their scores stand apart from the others' in it as well.
"""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from scipy import stats

from emergence_train.analysis.emergence.finding import Finding
from emergence_train.analysis.emergence.metric_names import continuous, is_step
from emergence_train.analysis.emergence.verdict import SIDE, last_rows

# Of the one-sided test that able runs stand apart; benchmarks/studies/inherited_ability.py has what it calls
LEVEL = 0.05
LEAST_OTHERS = 2  # runs without the ability, whose scatter is the measure


def with_able_runs(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """The findings, where a continuous metric at chance is not-identified for the sake of runs that its task's accuracy shows."""
    findings = tuple(findings)
    shown: dict[tuple[str, str], frozenset[str]] = {}
    for finding in findings:
        task = finding.task
        if finding.verdict.able and not continuous(task.metric) and not is_step(task.metric):
            key = (task.family, task.task)
            shown[key] = shown.get(key, frozenset()) | _names(finding)
    return tuple(
        _inheriting(finding, shown.get((finding.task.family, finding.task.task), frozenset())) for finding in findings
    )


def _names(finding: Finding) -> frozenset[str]:
    codes = finding.task.rows.run
    return frozenset(finding.task.frame["run"].to_numpy()[np.isin(codes, list(finding.verdict.able))])


def _inheriting(finding: Finding, able: frozenset[str]) -> Finding:
    """The finding as the able runs among its own change it: those that lack the metric say nothing of it."""
    task, verdict = finding.task, finding.verdict
    names = dict(zip(task.frame["run"], task.rows.run))
    codes = frozenset(int(code) for name, code in names.items() if name in able)
    if not codes or verdict.name != "at-chance" or not continuous(task.metric):
        return finding
    apart = stand_apart(finding, codes)
    if apart is False:
        return finding
    counted = f"{len(codes)} of {len(names)} runs"
    if apart:
        reason = f"{counted} are far above chance by the accuracy, and stand apart from the others in {task.metric} too"
    else:
        reason = (
            f"{counted} are far above chance by the accuracy; too few of them or of others have {SIDE} checkpoints here "
            "to tell whether they stand apart"
        )
    changed = replace(
        verdict, name="not-identified", probability=1.0, reason=reason, able=codes if apart else frozenset()
    )
    return replace(finding, verdict=changed)


def stand_apart(finding: Finding, able: frozenset[int]) -> bool | None:
    """Whether the runs `able` end above the others: Student's one-sided test of one mean against the scatter of the others'.

    Each run counts with the mean, over its SIDE checkpoints of the lowest losses, of what its score is above the common curve.
    The scatter is that of runs without the ability alone: what the able ones differ in among themselves says nothing of chance.
    The difference must also be a relevant change (TaskMetric.smallest). None with fewer than two others, or no able run, of SIDE
    checkpoints.
    """
    task, drawn = finding.task, finding.verdict.posterior
    if drawn is None:
        return None
    level, above = drawn.curves.mean(0), {}
    for code in np.unique(task.rows.run):
        last = last_rows(task.rows, code)
        if len(last) == SIDE:
            above[int(code)] = float((task.rows.y[last] - np.interp(task.rows.x[last], drawn.grid, level)).mean())
    ours = np.array([value for code, value in above.items() if code in able])
    others = np.array([value for code, value in above.items() if code not in able])
    if len(others) < LEAST_OTHERS or not len(ours):
        return None
    gap = float(ours.mean() - others.mean())
    error = others.std(ddof=1) * np.sqrt(1 / len(ours) + 1 / len(others))
    return bool(gap > task.smallest and gap > stats.t.isf(LEVEL, len(others) - 1) * error)
