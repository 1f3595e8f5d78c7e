"""Tasks with their verdicts and size effects, the input of figures and report; nothing is fitted here."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from emergence_train.analysis.emergence.result import EmergenceResult, SizeEffect, TaskResult
from emergence_train.analysis.emergence.table import TaskMetric
from emergence_train.analysis.emergence.verdict import Verdict


@dataclass(frozen=True)
class Finding:
    """One metric of one task with its verdict and size effect."""

    task: TaskMetric
    verdict: Verdict
    size: SizeEffect

    @property
    def eta_draws(self) -> np.ndarray:
        """(S,) draws of the threshold in nats per token, those of result.json's interval; none without an emergent verdict."""
        return self.task.loss_from + self.verdict.onset_draws * (self.task.loss_to - self.task.loss_from)

    def curve(self) -> pd.DataFrame:
        """Posterior mean of performance along the loss with its 95% band, in the metric's own direction; empty where
        there is none."""
        drawn, task = self.verdict.posterior, self.task
        if drawn is None:
            return pd.DataFrame(columns=["loss", "value", "low95", "high95"], dtype=float)
        low, high = np.quantile(drawn.curves, [0.025, 0.975], axis=0)
        ends = np.sort(np.stack([task.value_of(low), task.value_of(high)]), axis=0)
        loss = task.loss_from + drawn.grid * (task.loss_to - task.loss_from)
        return pd.DataFrame(
            {"loss": loss, "value": task.value_of(drawn.curves.mean(0)), "low95": ends[0], "high95": ends[1]}
        )


@dataclass(frozen=True)
class EmergenceAnalysis:
    """`analyze emergence`: the result, and the findings behind its tasks, in the same order."""

    result: EmergenceResult
    findings: tuple[Finding, ...]

    @property
    def pairs(self) -> list[tuple[TaskResult, Finding]]:
        return list(zip(self.result.tasks, self.findings))
