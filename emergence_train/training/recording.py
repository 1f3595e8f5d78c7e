"""Recording of a run on rank 0, which has a log and observers."""

import math
from typing import Any

import numpy as np
import pandas as pd
import torch

from emergence_train import files
from emergence_train.evaluation.at_checkpoint import Scores
from emergence_train.faults.anomalies import WINDOW
from emergence_train.parallel.mesh import Mesh
from emergence_train.recorder.environment import write_environment
from emergence_train.recorder.metrics import Metrics
from emergence_train.recorder.position_sums import rows as position_rows
from emergence_train.recorder.run_log import RunLog
from emergence_train.training.cpu_share import CpuShare
from emergence_train.training.forecasts import AbilityForecast, EndForecast, iid_losses
from emergence_train.training.null_writer import NullWriter
from emergence_train.training.observers import Measurement, Observer, RunContext, RunSetup, Step
from emergence_train.training.run_rows import CheckpointRows, ScreenLines, StepRows
from emergence_train.training.task_rows import SampleRows, TaskRows
from emergence_train.training.tracker_views import TensorboardView, WandbView

# Called in this order, that of a checkpoint's rows: the forecast adds to the line that ScreenLines prints.
OBSERVERS: list[type[Observer]] = [
    StepRows,
    CheckpointRows,
    EndForecast,
    ScreenLines,
    CpuShare,
    TaskRows,
    SampleRows,
    AbilityForecast,
    WandbView,
    TensorboardView,
]


class RunWriter(NullWriter):
    """The recorder of rank 0. The log is opened by the first restore, which knows the step to truncate it to."""

    def __init__(self, setup: RunSetup, mesh: Mesh) -> None:
        self.setup, self.mesh = setup, mesh
        self.opened: RunLog | None = None
        self.observers: list[Observer] = []
        self.iid: dict[int, float] = {}

    @property
    def best(self) -> int | None:
        return min(self.iid, key=lambda step: self.iid[step], default=None)

    @property
    def run_log(self) -> RunLog:
        if self.opened is None:
            raise RuntimeError("the first restore() opens the log")
        return self.opened

    def restore(self, step: int, rewinds: list[dict], measured: set[int], first: int = 0) -> list[float]:
        due = step > first and step in self.setup.plan.checkpoint_steps - measured
        if self.opened is None:
            metrics = self._open(step, rewinds, first, due)
        else:
            metrics = self.opened.truncate_to(step, rewinds, due)
        self.iid = iid_losses(metrics)
        for observer in self.observers:
            observer.on_restore(step, metrics)
        if gap := self.run_log.missing_rows(step, measured, first):
            self.setup.log(gap)
        losses = metrics.train("loss")
        return losses[np.isfinite(losses) & ~metrics.skipped()][-WINDOW:].tolist()

    def _open(self, step: int, rewinds: list[dict], first: int, due: bool) -> Metrics:
        setup = self.setup
        write_environment(setup.directory, self.mesh.world.size, self.mesh.device, step)
        files.write_json(setup.directory / "deepspeed.json", setup.deepspeed)
        self.opened = RunLog(setup.directory, setup.header, step if step > first else 0, rewinds, due)
        if self.opened.archived:
            setup.log(
                f"no state is left to resume from: the run starts over, its earlier logs are in {self.opened.archived}"
            )
        context = RunContext(**vars(setup), run_log=self.opened, write=self.write)
        self.observers = [observer(context) for observer in OBSERVERS]
        return self.opened.take_read_back()

    def step(self, step: Step) -> None:
        for observer in self.observers:
            observer.on_step(step)

    def checkpoint(self, step: int, sums: dict[str, torch.Tensor], seconds: float, scores: Scores) -> None:
        header, tokens = self.setup.header, step * self.setup.plan.step_tokens
        table = pd.concat([position_rows(of_split, name) for name, of_split in sums.items()], ignore_index=True)
        table = table.assign(run=header["run"], params=header["params"], step=step, tokens=tokens)
        means = {name: float(s[1].sum() / s[0].sum()) for name, s in sums.items() if s[0].sum() > 0}
        self.iid[step] = means.get("iid", math.inf)
        measurement = Measurement(step, tokens, table, means, scores, seconds)
        for observer in self.observers:
            observer.on_checkpoint(measurement)

    def write(self, kind: str, **values: Any) -> None:
        row = self.run_log.write(kind, **values)
        for observer in self.observers:
            observer.on_row(row)

    def flush(self) -> str | None:
        return self.run_log.flush()

    def close(self, *, stopped: bool = False) -> str | None:
        try:
            return self.run_log.close()
        finally:
            for observer in self.observers:
                observer.on_close(stopped=stopped)
