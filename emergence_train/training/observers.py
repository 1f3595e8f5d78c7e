"""Observers of a training session: logs, forecasts, Weights & Biases.

An observer is one class in one file and one line in recording.OBSERVERS. Observers exist on rank 0 only, so they must not call
collectives; an exception of an observer ends the run.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from emergence_train.config import Logging
from emergence_train.evaluation.at_checkpoint import Evaluator, Scores
from emergence_train.faults.anomalies import Event
from emergence_train.optim.schedule import Schedule
from emergence_train.recorder.metrics import Metrics
from emergence_train.training.checkpoint_plan import Plan
from emergence_train.training.console import Console

if TYPE_CHECKING:  # of the ranks that have steps rank 0 alone has tables
    import pandas as pd

    from emergence_train.recorder.run_log import RunLog


@dataclass(frozen=True)
class Step:
    """A completed optimizer step, its numbers reduced over all ranks."""

    step: int  # from 1
    tokens: int  # trained so far, including this step
    lr: float
    loss: float  # mean over the global batch, nats per token; may be NaN
    grad_norm: float | None  # global, before clipping; None where the engine does not expose it
    applied: bool  # False: the update was skipped
    tokens_per_second: float
    event: Event | None  # its anomaly, if any


@dataclass(frozen=True)
class Measurement:
    """The measurements of a checkpoint."""

    step: int
    tokens: int
    table: "pd.DataFrame"  # rows of `positions`: training since the last table, and every validation split
    means: dict[str, float]  # mean loss of each split, nats per token
    scores: Scores  # scores of the tasks
    seconds: float  # seconds of validation
    notes: list[str] = field(default_factory=list)  # additions of observers to the checkpoint's console line


@dataclass(frozen=True, kw_only=True)
class RunSetup:
    """What stays the same while a run trains."""

    directory: Path
    schedule: Schedule
    abilities: str | None  # as in the configuration: an earlier analysis whose thresholds are forecast
    logging: Logging
    resolved: dict  # the whole configuration as plain values: to be shown, not to be read keys from
    deepspeed: dict  # DeepSpeed's configuration
    plan: Plan
    header: dict  # the first line of metrics.jsonl: run, params, vocabulary, sequence, batch, ...
    evaluator: Evaluator
    console: Console
    log: Callable[[str], None]  # print a line to the console


@dataclass(frozen=True, kw_only=True)
class RunContext(RunSetup):
    """What an observer can access of its run."""

    run_log: "RunLog"  # tables go here
    write: Callable[..., None]  # write(kind, **values): append a row to metrics.jsonl and pass it to every observer


class Observer:
    """Base class; every method does nothing and may be overridden."""

    def __init__(self, context: RunContext) -> None:
        self.context = context

    def on_restore(self, step: int, metrics: Metrics) -> None:
        """Training starts or resumes after `step`, also after a rewind; `metrics` are those of metrics.jsonl up to it."""

    def on_step(self, step: Step) -> None:
        """Called after each step."""

    def on_checkpoint(self, measurement: Measurement) -> None:
        """Called with the measurements of a checkpoint, before its state is saved."""

    def on_row(self, row: dict) -> None:
        """Called after any observer has written a row to metrics.jsonl."""

    def on_close(self, *, stopped: bool) -> None:
        """The last call. `stopped`: a signal ends this process, so time is limited."""
