"""Forecasts while a run trains: its loss at the end of the plan, and when it will gain the abilities it asks about.

The analyses are imported when the first forecast is due: SciPy's statistics would be a third of the start of a run.
"""

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from emergence_train.optim.schedule import learning_rate
from emergence_train.recorder.metrics import Metrics
from emergence_train.training.loss_curve import LossCurve
from emergence_train.training.observers import Measurement, Observer, RunContext, Step

if TYPE_CHECKING:
    from emergence_train.analysis.emergence.ability_watch import Threshold
    from emergence_train.analysis.temporal.result import FinalForecast

PLAN_POINTS = 1000  # of the planned learning rate


class EndForecast(Observer):
    """Forecasts the final loss with its 95% interval from the steps so far and the planned schedule."""

    def on_restore(self, step: int, metrics: Metrics) -> None:
        losses = metrics.train("loss")
        measured = np.isfinite(losses)
        self.curve = LossCurve(zip(metrics.train("step")[measured].tolist(), losses[measured].tolist()))

    def on_step(self, step: Step) -> None:
        if math.isfinite(step.loss):
            self.curve.add(step.step, step.loss)

    def on_checkpoint(self, measurement: Measurement) -> None:
        if measurement.step >= self.context.plan.total_steps or not len(self.curve):
            return
        from emergence_train.analysis.results import as_json

        outlook = self._outlook()
        self.context.write("forecast", step=measurement.step, tokens=measurement.tokens, **as_json(outlook))
        if outlook.loss is not None:
            measurement.notes.append(f"end {outlook.loss:.3f} [{outlook.low95:.3f}, {outlook.high95:.3f}]")
            if outlook.reason is not None:
                self.context.log(f"forecast    step {measurement.step}  {outlook.reason}")

    def _outlook(self) -> "FinalForecast":
        from emergence_train.analysis.temporal import forecast_final

        plan, schedule = self.context.plan, self.context.schedule
        steps, losses = self.curve.points()
        planned = np.unique(np.linspace(1, plan.total_steps, min(plan.total_steps, PLAN_POINTS)).astype(int))
        rates = [learning_rate(schedule, s * plan.step_tokens, plan.total_tokens) for s in planned]
        return forecast_final(steps, losses, planned, np.array(rates), plan.total_steps, plan.step_tokens)


class AbilityForecast(Observer):
    """Forecasts from the iid losses when this run will pass the thresholds of an earlier analysis."""

    def __init__(self, context: RunContext) -> None:
        super().__init__(context)
        self.thresholds: list[Threshold] = []
        self.iid: dict[int, float] = {}
        path = context.abilities
        if path:
            from emergence_train.analysis.emergence.ability_watch import read_thresholds

            self.thresholds = read_thresholds(Path(path), context.header["vocabulary"])
            if not self.thresholds:
                context.log(f"{path}: no task has a threshold there, so no ability is forecast")

    def on_restore(self, step: int, metrics: Metrics) -> None:
        self.iid = iid_losses(metrics)

    def on_checkpoint(self, measurement: Measurement) -> None:
        step, plan = measurement.step, self.context.plan
        self.iid[step] = measurement.means.get("iid", math.inf)
        if not self.thresholds:
            return
        from emergence_train.analysis.emergence.ability_watch import abilities_ahead, format_abilities

        abilities = abilities_ahead(self.thresholds, self.iid, plan.step_tokens, self.context.run_log.directory)
        if not abilities:
            return
        values: dict[str, float | None] = {}
        for name, ability in abilities.items():
            tokens = ability.tokens
            numbers = {"probability": ability.probability, "tokens": tokens.value, "low95": tokens.low95}
            numbers |= {"high95": tokens.high95}
            values |= {f"{name}/{key}": value for key, value in numbers.items()}
        self.context.write("abilities", step=step, tokens=measurement.tokens, value=values)
        self.context.log(f"abilities   step {step}  {format_abilities(abilities)}")


def iid_losses(metrics: Metrics) -> dict[int, float]:
    """Mean iid loss by step, nats per token; infinite where there is none."""
    return {row["step"]: row["loss"].get("iid", math.inf) for row in metrics.of_kind("validation")}
