"""Observer that mirrors the run to Weights & Biases."""

from emergence_train.tracking.wandb import Mirror, view
from emergence_train.training.observers import Measurement, Observer, RunContext

STOPPED_SECONDS = 5.0  # seconds for W&B to finish after a signal


class WandbView(Observer):
    def __init__(self, context: RunContext) -> None:
        super().__init__(context)
        shown = context.resolved | context.header | {"deepspeed": context.deepspeed}
        self.mirror = Mirror(context.logging, context.header["run"], context.directory, shown, context.log)

    def on_row(self, row: dict) -> None:
        if (values := view(row)) is not None:
            self.mirror.send(values)

    def on_checkpoint(self, measurement: Measurement) -> None:
        self.mirror.positions(measurement.table)

    def on_close(self, *, stopped: bool) -> None:
        self.mirror.close(patience=STOPPED_SECONDS if stopped else None)
