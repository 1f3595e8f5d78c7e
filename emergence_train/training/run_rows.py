"""Observers that write the rows and tables of the analyses: steps, positions and mean losses."""

from emergence_train.recorder.environment import peak_memory
from emergence_train.training.observers import Measurement, Observer, Step


class StepRows(Observer):
    """Writes a `train` row for each step, and a row for its anomaly."""

    def on_step(self, step: Step) -> None:
        write = self.context.write
        write(
            "train",
            step=step.step,
            tokens=step.tokens,
            loss=step.loss,
            grad_norm=step.grad_norm,
            lr=step.lr,
            tokens_per_second=round(step.tokens_per_second, 1),
        )
        if step.event is None:
            return
        action, reason = step.event.action, step.event.reason
        kind = {"skip": "skipped", "log": "spike"}.get(action, action)
        write(kind, step=step.step, tokens=step.tokens, reason=reason)
        self.context.log(f"step {step.step}: {reason}" + ("; the update was skipped" if action == "skip" else ""))


class CheckpointRows(Observer):
    """Writes a checkpoint's `positions` table and its mean losses."""

    def on_checkpoint(self, measurement: Measurement) -> None:
        self.context.run_log.positions(measurement.step, measurement.table)
        self.context.write(
            "validation",
            step=measurement.step,
            tokens=measurement.tokens,
            seconds=round(measurement.seconds, 3),
            memory=peak_memory(),
            loss=measurement.means,
            **self.context.evaluator.comparable(measurement.means),
        )


class ScreenLines(Observer):
    """Prints the console lines of steps and checkpoints."""

    def on_step(self, step: Step) -> None:
        if step.event is None or step.event.action != "stop":
            self.context.console.step(step.step, step.tokens, step.loss, step.grad_norm, step.lr, step.applied)

    def on_checkpoint(self, measurement: Measurement) -> None:
        means = measurement.means
        losses = [f"{name} {means[name]:.4f}" for name in ("train", "iid", "ood") if name in means]
        unsaved = "" if self.context.plan.saves(measurement.step) else "; no state saved"
        self.context.log(
            f"checkpoint  step {measurement.step}  tokens {measurement.tokens:,}  "
            f"{'  '.join([*losses, *measurement.notes])}  ({measurement.seconds:.1f} s{unsaved})"
        )
