"""Observers that mirror the run to trackers: Weights & Biases, TensorBoard."""

from collections.abc import Iterator
from typing import Any

from emergence_train.recorder.metrics import Metrics
from emergence_train.tracking.points import Point, points, view
from emergence_train.tracking.summary import Summary
from emergence_train.tracking.tensorboard import EventFiles
from emergence_train.tracking.wandb import Mirror
from emergence_train.training.observers import Measurement, Observer

STOPPED_SECONDS = 5.0  # seconds for W&B to finish after a signal
STEPS_AGAIN, CHARTS_AGAIN = 20_000, 20  # of a resumed run, at most, that an offline directory gets again


class View(Observer):
    tracker: Any = None  # what takes points, from the first restore on where it is wanted

    def on_row(self, row: dict) -> None:
        values = view(row, self.context.console.mfu_of_rate)
        if self.tracker is not None and values is not None:
            self.tracker.send(values)


class WandbView(View):
    tracker: Mirror | None

    def on_restore(self, step: int, metrics: Metrics) -> None:
        context = self.context
        rows = [row for kind in ("validation", "forecast") for row in metrics.of_kind(kind)]
        summary = Summary(point for row in rows if (point := view(row)) is not None)
        if self.tracker is not None:
            self.tracker.send(summary)
            return
        shown = context.resolved | context.header | {"deepspeed": context.deepspeed}

        def history() -> Iterator[Point]:
            return points(context.directory, step, steps=STEPS_AGAIN, charts=CHARTS_AGAIN)

        self.tracker = Mirror(
            context.logging.wandb,
            context.header["run"],
            context.directory,
            shown,
            context.log,
            history if step else None,
            summary,
        )

    def on_checkpoint(self, measurement: Measurement) -> None:
        if self.tracker is not None:
            self.tracker.send(measurement.table)

    def on_close(self, *, stopped: bool) -> None:
        if self.tracker is not None:
            self.tracker.close(patience=STOPPED_SECONDS if stopped else None)


class TensorboardView(View):
    tracker: EventFiles | None

    def on_restore(self, step: int, metrics: Metrics) -> None:
        """What was written of later steps, before a stop or a rewind, is hidden."""
        if self.tracker is not None:
            self.tracker.close()
        if self.context.logging.tensorboard:
            self.tracker = EventFiles(self.context.directory, step, self.context.log)

    def on_close(self, *, stopped: bool) -> None:
        if self.tracker is not None:
            self.tracker.close()
