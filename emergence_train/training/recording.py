"""What rank 0 writes down: the rows of each step, a checkpoint's table and means, and the forecast of the end."""

import math
from pathlib import Path

import numpy as np

from emergence_train.analysis.emergence.ability_watch import abilities_ahead, read_thresholds, said
from emergence_train.analysis.temporal import forecast_final
from emergence_train.config import Config
from emergence_train.evaluation.at_checkpoint import Evaluator, Scores
from emergence_train.faults.anomalies import WINDOW, Event
from emergence_train.optim.schedule import learning_rate
from emergence_train.recorder import tables
from emergence_train.recorder.position_sums import rows
from emergence_train.recorder.run_log import RunLog
from emergence_train.tracking.wandb import Mirror, view
from emergence_train.training.plan import Plan

PLAN_POINTS = 1000  # of the planned learning rate, for the forecast


class Recorder:
    """The run's log and its mirror, and what of the log the rest of training needs."""

    def __init__(self, config: Config, plan: Plan, evaluator: Evaluator, run_log: RunLog, mirror: Mirror, log) -> None:
        self.config, self.plan, self.evaluator = config, plan, evaluator
        self.run_log, self.mirror, self.log = run_log, mirror, log
        self.noted = False  # what is to be said once of the tasks
        self.thresholds = []
        if config.abilities:
            self.thresholds = read_thresholds(Path(config.abilities), run_log.header["vocabulary"])
            if not self.thresholds:
                log(f"{config.abilities}: no task has a threshold there, so no ability is forecast")
        self.reread()

    def reread(self) -> None:
        """History from the rows that the log was taken back to."""
        kinds = {"train": [], "validation": [], "skipped": []}
        for row in self.run_log.rows:
            kinds.get(row.get("kind"), []).append(row)
        skipped = {row["step"] for row in kinds["skipped"]}
        self.history = [(row["step"], row["loss"]) for row in kinds["train"] if row["loss"] is not None]
        self.judged = [loss for step, loss in self.history if step not in skipped][-WINDOW:]
        self.iid = {row["step"]: row["loss"].get("iid", math.inf) for row in kinds["validation"]}
        # seconds
        self.scoring, self.training = tables.cost_of_tasks([self.run_log.header | {"kind": "run"}, *self.run_log.rows])

    @property
    def best(self) -> int | None:
        """The step of the lowest iid loss."""
        return min(self.iid, key=self.iid.get, default=None)

    def step(self, step: int, lr: float, speed: float, loss: float, grad_norm: float | None, event: Event | None):
        """The step's row, and one for what was wrong with it."""
        tokens = step * self.plan.step_tokens
        self._write(
            "train", step=step, tokens=tokens, loss=loss, grad_norm=grad_norm, lr=lr, tokens_per_second=round(speed, 1)
        )
        self.training += self.plan.step_tokens / speed
        if event is not None:
            kind = {"skip": "skipped", "log": "spike"}.get(event.action, event.action)
            self._write(kind, step=step, tokens=tokens, reason=event.reason)
            self.log(f"step {step}: {event.reason}" + ("; the update was left out" if event.action == "skip" else ""))
        if math.isfinite(loss):
            self.history.append((step, loss))

    def checkpoint(self, step: int, sums: dict, seconds: float, scores: Scores) -> None:
        """A checkpoint's positions table, its means, the forecast of the end and the tasks' scores, to the files, W&B and
        the screen."""
        tokens = step * self.plan.step_tokens
        table = self.run_log.positions(step, tokens, {name: rows(of_split, name) for name, of_split in sums.items()})
        means = {name: float(s[1].sum() / s[0].sum()) for name, s in sums.items() if s[0].sum() > 0}
        comparable = self.evaluator.comparable(means)
        self._write("validation", step=step, tokens=tokens, seconds=round(seconds, 3), loss=means, **comparable)
        self.iid[step] = means.get("iid", math.inf)
        self.mirror.positions(table)
        shown = "  ".join(f"{name} {means[name]:.4f}" for name in ("train", "iid", "ood") if name in means)
        if step < self.plan.total_steps and self.history:
            outlook = self._outlook()
            self._write("forecast", step=step, tokens=tokens, **outlook)
            if "loss" in outlook:
                shown += f"  end {outlook['loss']:.3f} [{outlook['low95']:.3f}, {outlook['high95']:.3f}]"
        self.log(f"checkpoint  step {step}  tokens {tokens:,}  {shown}  ({seconds:.1f} s)")
        if scores.rows:
            self._tasks(step, tokens, means, scores)
        if self.thresholds:
            self._abilities(step, tokens)

    def _tasks(self, step: int, tokens: int, means: dict[str, float], scores: Scores) -> None:
        header = self.run_log.header
        table = self.evaluator.table(
            scores, run=header["run"], params=header["params"], step=step, tokens=tokens, losses=means
        )
        self.run_log.evaluations(step, table)
        values = {f"{row['task']}/{row['metric']}": row["value"] for row in scores.rows}
        self.scoring += scores.seconds
        share = self.scoring / self.training if self.training else None
        self._write(
            "evaluation",
            step=step,
            tokens=tokens,
            seconds=round(scores.seconds, 3),
            share_of_training=share and round(share, 4),
            cut_requests=self.evaluator.cut,
            value=values,
        )
        for note in self.evaluator.notes if not self.noted else ():
            self.log(f"tasks       {note}")
        self.noted = True
        shown = "  ".join(
            f"{row['task']} {row['value']:.3f}" for row in scores.rows if row["metric"] in ("acc", "exact_match")
        )
        cost = "" if share is None else f"; so far {share:.1%} of the time in training steps"
        self.log(f"tasks       step {step}  share right: {shown}  ({scores.seconds:.1f} s{cost})")

    def _abilities(self, step: int, tokens: int) -> None:
        """When this run will gain the abilities whose thresholds are known, from its iid losses so far."""
        found = abilities_ahead(self.thresholds, self.iid, self.plan.step_tokens, self.run_log.directory)
        if not found:
            return
        values = {
            f"{name}/{key}": value
            for name, one in found.items()
            for key, value in {
                "probability": one["probability"],
                "tokens": one["tokens"]["value"],
                "low95": one["tokens"]["low95"],
                "high95": one["tokens"]["high95"],
            }.items()
        }
        self._write("abilities", step=step, tokens=tokens, value=values)
        self.log(f"abilities   step {step}  {said(found)}")

    def _write(self, kind: str, **values) -> None:
        """A line of metrics.jsonl, and of it what W&B shows."""
        shown = view(self.run_log.write(kind, **values))
        if shown is not None:
            self.mirror.log(shown)

    def _outlook(self) -> dict:
        """The loss expected at the end, with its 95% interval, from the steps so far and the planned schedule."""
        plan, schedule = self.plan, self.config.training.schedule
        steps, losses = np.array(self.history).T
        planned = np.unique(np.linspace(1, plan.total_steps, min(plan.total_steps, PLAN_POINTS)).astype(int))
        rates = [learning_rate(schedule, s * plan.step_tokens, plan.total_tokens) for s in planned]
        return forecast_final(steps, losses, planned, np.array(rates), plan.total_steps)
