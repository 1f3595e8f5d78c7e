"""What may follow a run's training without the session knowing of it: logs, forecasts, Weights & Biases.

An observer is a class of its own in a file of its own and one line in recording.OBSERVERS. Observers exist on rank 0 only,
so none of them may call a collective, and what one raises ends the run.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from emergence_train.config import Logging
from emergence_train.evaluation.at_checkpoint import Evaluator, Scores
from emergence_train.faults.anomalies import Event
from emergence_train.optim.schedule import Schedule
from emergence_train.recorder.run_log import RunLog
from emergence_train.training.console import Console
from emergence_train.training.plan import Plan


@dataclass(frozen=True)
class Step:
    """An optimizer step that has ended, its numbers over all ranks."""

    step: int  # from 1
    tokens: int  # trained so far, this step's included
    lr: float
    loss: float  # mean over the global batch, nats per token; may be NaN
    grad_norm: float | None  # global, before clipping; None where the engine does not tell it
    applied: bool  # False: the update was left out
    tokens_per_second: float
    event: Event | None  # what was wrong with it


@dataclass(frozen=True)
class Measurement:
    """What a checkpoint has measured."""

    step: int
    tokens: int
    table: pd.DataFrame  # rows of `positions`: training since the last table, and every validation split
    means: dict[str, float]  # mean loss of each split, nats per token
    scores: Scores  # of the tasks
    seconds: float  # that validation took
    notes: list[str] = field(default_factory=list)  # what observers add to the checkpoint's line on the screen


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
    log: Callable[[str], None]  # a line for the screen


@dataclass(frozen=True, kw_only=True)
class RunContext(RunSetup):
    """What an observer may use."""

    run_log: RunLog  # tables go here
    write: Callable[..., None]  # write(kind, **values): a row of metrics.jsonl, which every observer then sees


class Observer:
    """Base class: every method does nothing, so an observer has those that it needs."""

    def __init__(self, context: RunContext) -> None:
        self.context = context

    def on_restore(self, step: int, rows: list[dict]) -> None:
        """Training begins or resumes after `step`, at a start or after a rewind; `rows` of metrics.jsonl up to there."""

    def on_step(self, step: Step) -> None:
        """A step has ended."""

    def on_checkpoint(self, measurement: Measurement) -> None:
        """A checkpoint has measured; its state is saved after this."""

    def on_row(self, row: dict) -> None:
        """A row was written to metrics.jsonl, by whichever observer."""

    def on_close(self, *, stopped: bool) -> None:
        """The last call. `stopped`: a signal ends this process, and the launcher will not wait for long."""
