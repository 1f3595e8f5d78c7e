"""Observers of tasks and samples at a checkpoint: the `evaluations` table, rows with scores, cost and texts, console lines."""

from emergence_train.errors import printable
from emergence_train.recorder.metrics import Metrics
from emergence_train.training.observers import Measurement, Observer, RunContext, Step

LINE_CHARACTERS = 100  # of a sample on the console


class TaskRows(Observer):
    def __init__(self, context: RunContext) -> None:
        super().__init__(context)
        self.noted = False  # notes on the tasks, logged once
        self.scoring = self.training = 0.0  # seconds so far

    def on_restore(self, step: int, metrics: Metrics) -> None:
        self.scoring, self.training = metrics.cost_of_tasks()

    def on_step(self, step: Step) -> None:
        self.training += self.context.plan.step_tokens / step.tokens_per_second

    def on_checkpoint(self, measurement: Measurement) -> None:
        scores, context = measurement.scores, self.context
        if not scores.rows:
            return
        step, evaluator = measurement.step, context.evaluator
        table = evaluator.table(
            scores,
            run=context.header["run"],
            params=context.header["params"],
            step=step,
            tokens=measurement.tokens,
            losses=measurement.means,
        )
        context.run_log.evaluations(step, table)
        self.scoring += scores.seconds
        share = self.scoring / self.training if self.training else None
        context.write(
            "evaluation",
            step=step,
            tokens=measurement.tokens,
            seconds=round(scores.seconds, 3),
            share_of_training=share and round(share, 4),
            cut_requests=evaluator.cut,
            value={f"{row['task']}/{row['metric']}": row["value"] for row in scores.rows},
        )
        for note in () if self.noted else evaluator.notes:
            context.log(f"tasks       {note}")
        self.noted = True
        shown = "  ".join(
            f"{row['task']} {row['value']:.3f}" for row in scores.rows if row["metric"] in ("acc", "exact_match")
        )
        cost = "" if share is None else f"; so far {share:.1%} of the time in training steps"
        context.log(f"tasks       step {step}  share right: {shown}  ({scores.seconds:.1f} s{cost})")


class SampleRows(Observer):
    """Writes a checkpoint's text samples as a row, and the first of them on the console."""

    def on_checkpoint(self, measurement: Measurement) -> None:
        texts = measurement.scores.texts
        if not texts:
            return
        self.context.write("samples", step=measurement.step, tokens=measurement.tokens, texts=texts)
        shown = printable(" ".join(f"{texts[0]['prompt']}{texts[0]['text']}".split()))
        self.context.log(f"sample      step {measurement.step}  {shown[:LINE_CHARACTERS]}")
