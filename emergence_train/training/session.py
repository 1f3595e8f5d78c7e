"""The session: one start of a run as a state machine of training steps, checkpoints, rewinds and stops.

At a checkpoint the loss sums since the last one and the validation losses are written to the `positions` table, then the
engine's state is saved; so a run that resumes from a state has every row before it and none after.
"""

import math
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch

from emergence_train.checkpoint import saver
from emergence_train.checkpoint.format import complete, step_of
from emergence_train.config import Checkpoints, Faults, Training
from emergence_train.data.dataset import Dataset
from emergence_train.errors import RunError
from emergence_train.evaluation.at_checkpoint import Evaluator, Scores
from emergence_train.evaluation.positions import reduced, validate
from emergence_train.faults.anomalies import AnomalyDetector, Event, diverged_replicas
from emergence_train.faults.operations import Straggler
from emergence_train.faults.signals import StopSignal
from emergence_train.faults.watchdog import Watchdog
from emergence_train.optim.schedule import learning_rate
from emergence_train.parallel.mesh import Mesh
from emergence_train.parallel.ranks import all_reduce_sum, broadcast_from_rank0
from emergence_train.recorder.position_sums import PositionAccumulator
from emergence_train.training import branch
from emergence_train.training.checkpoint_plan import Plan
from emergence_train.training.console import Console
from emergence_train.training.null_writer import NullWriter
from emergence_train.training.observers import Step
from emergence_train.training.profiler import StepProfiler
from emergence_train.training.step import Stepper


class _StopRequested(Exception):
    """Raised where a stop is requested while tasks are scored."""


class Pending(NamedTuple):
    """A step's numbers, read one step later to avoid synchronisation with the GPU."""

    step: int
    lr: float
    speed: float
    totals: torch.Tensor
    grad_norm: torch.Tensor | float | None
    applied: torch.Tensor | bool


class Session:
    """One start of a run: train steps, make checkpoints, rewind, stop. The writer writes the logs.

    All ranks make the same calls in the same order: the inputs of every decision are reduced over ranks or broadcast from rank 0.
    """

    def __init__(
        self,
        run: Path,
        training: Training,
        checkpoints: Checkpoints,
        faults: Faults,
        *,
        plan: Plan,
        dataset: Dataset,
        evaluator: Evaluator,
        mesh: Mesh,
        engine: Any,
        writer: NullWriter,
        console: Console,
        stop: StopSignal,
        watch: Watchdog,
        graphs: bool,
        log: Callable[[str], None],
        first: int = 0,
    ) -> None:
        """`first`: the step after which the run's own steps begin, where it began from another run's state."""
        self.run, self.training, self.faults = run, training, faults
        self.saves_state = checkpoints.save_state != "never"
        self.plan, self.dataset, self.evaluator, self.mesh, self.engine = plan, dataset, evaluator, mesh, engine
        self.writer, self.console, self.log, self.stop, self.watch = writer, console, log, stop, watch
        self.first = first
        self.accumulator = PositionAccumulator(dataset.sequence, mesh.device, mesh.own_positions(dataset.sequence))
        self.skipped = broadcast_from_rank0(lambda: branch.skipped_batches(self.run))
        self.saver = saver.Saver(self.run, checkpoints, plan.state_steps, mesh, log)
        if not checkpoints.asynchronous:  # so that the rank whose disk hangs is behind the others
            self.saver.on_written = lambda step: watch.at("waiting for the others' shards", step)
        self.detector = AnomalyDetector(faults, [])
        self.stepper = Stepper(
            training,
            faults,
            engine,
            dataset,
            mesh,
            self.accumulator,
            self.skipped,
            self.detector,
            watch,
            graphs,
            log,
        )
        self.profiler = StepProfiler(training.profile, run, mesh, log)
        self.pending: Pending | None = None
        self.due = False  # whether a stop deferred the measurements of the restored step
        self.stop_requested = False  # on some rank, known to all

    def restore(self) -> int:
        """Restore the newest complete checkpoint, or the initial state; return its step."""
        self.watch.at("loading a checkpoint")
        loaded = saver.load_newest(self.engine, self.run, self.mesh, self.log, self.saver.copies)
        if loaded is None and self.first:
            raise self._failure(f"{self.run}: no state is left whole; run again: it begins anew from its parent's")
        content, sums = loaded or ({"step": 0, "loop": {}}, None)
        step, self.due = content["step"], bool(content["loop"].get("due"))
        self.accumulator.take()
        self.stepper.micro_batch.reset()
        if sums is not None and step != self.first:  # at the first they are the parent's
            self.accumulator.sums += sums.to(self.mesh.device)
        self.saver.durable, self.pending, self.stop_requested = step, None, False
        measured = {s for s in self.plan.checkpoint_steps if self.first < s < step + (not self.due)}
        losses = broadcast_from_rank0(lambda: self.writer.restore(step, self.skipped.rewinds, measured, self.first))
        self.saver.best = self.writer.best
        self.detector.restart(losses)
        return step

    def run_from(self, step: int, last: int) -> None:
        """Train until step `last`, from the `step` that restore() returned."""
        self._make_due(step)
        while step < last:
            step += 1
            lr = learning_rate(self.training.schedule, step * self.plan.step_tokens, self.plan.total_tokens)
            with self.profiler.step(step):
                numbers = self.stepper(step, lr, self.stop.requested)
            if step >= self.profiler.last:
                self._write_trace(step)
            fault = self._settle()
            self.pending = Pending(step, lr, self.console.tick(), *numbers)
            if fault is None and (step in self.plan.checkpoint_steps or self.plan.saves(step) or self.stop_requested):
                fault = self._settle()
                if fault is None:
                    self._checkpoint(step)
            if fault is not None:
                step = self._rewind(*fault)

    def _write_trace(self, step: int) -> None:
        """Write the trace that is running, if one is."""
        if not self.profiler.running:
            return
        self.watch.at("writing a trace", step)
        with self.console.pause():
            self.profiler.write()

    def close(self) -> None:
        """End a finished run; raises where the logs or the last checkpoint could not be written."""
        self._write_trace(self.plan.total_steps)  # of one that was to go on
        self.watch.at("the last save", self.plan.total_steps)
        self._await_save()
        if self.saver.copies and self.saver.durable == self.plan.total_steps:
            self.saver.copies.forget()
        problem = broadcast_from_rank0(self.writer.close)
        self.log(self.console.closing(self.run))
        if self.saves_state and self.saver.durable < self.plan.total_steps:
            problem = problem or "the last checkpoint could not be saved"
        if problem:
            place = "" if problem.startswith(f"{self.run}/") else f"{self.run}: "
            then = f"resumes from step {self.saver.durable}" if self.saver.durable else "starts over"
            raise self._failure(f"{place}{problem}; fix that and run the same command: it {then}")

    def _lower_rate(self, last: int) -> str:
        """What to do about a loss that cannot be saved: a run keeps its rate, so another begins from its last good state, of step
        `last` or before."""
        self.saver.wait()
        good = [step for path in complete(self.run / "checkpoints") if 0 < (step := step_of(path)) <= last]
        start = f" --from {self.run}@{max(good)}" if good else ""
        return (
            f"lower training.schedule.lr or lengthen the warm-up in another run: train CONFIG name=NEW "
            f"training.schedule.lr=LOWER{start}"
        )

    # ------------------------------------------------------------------------------------------------ going back

    def _make_due(self, step: int) -> None:
        """Make the measurements that a stop at `step` deferred to this start."""
        if self.due:
            self._checkpoint(step)

    def _rewind(self, failed: int, event: Event) -> int:
        """Restore the newest checkpoint and skip the batches since; collective. Returns its step."""
        self.saver.wait()
        back_to = self.saver.durable
        if not back_to:
            raise self._failure(
                f"step {failed}: {event.reason}, and there is no checkpoint to go back to; {self._lower_rate(0)}"
            )
        if len(self.skipped.rewinds) >= self.faults.give_up_after:
            raise self._failure(
                f"step {failed}: {event.reason}, after {len(self.skipped.rewinds)} rewinds; {self._lower_rate(back_to)}"
            )
        self.skipped.add(back_to, failed, event.reason)
        broadcast_from_rank0(self.skipped.save)
        self.log(f"step {failed}: {event.reason}; back to step {back_to}, without the batches since")
        step = self.restore()
        self._make_due(step)
        return step

    # ------------------------------------------------------------------------------------------ recording, saving

    def _settle(self) -> tuple[int, Event] | None:
        """Read and record the pending step's numbers; return the event that requires a rewind, on every rank alike."""
        if self.pending is None:
            return None
        step, lr, speed, totals, grad_norm, applied = self.pending
        self.pending = None
        self.watch.at("writing rows", step)
        count, loss_sum, votes = totals.tolist()
        self.stop_requested = self.stop_requested or votes > 0
        self.stop.exposed = True
        loss = loss_sum / count if count else math.nan
        grad_norm = None if grad_norm is None else float(grad_norm)
        event = self.detector(loss, grad_norm, bool(applied))
        if event is not None and event.action == "rewind":
            return step, event
        tokens = step * self.plan.step_tokens
        self.writer.step(Step(step, tokens, lr, loss, grad_norm, bool(applied), speed, event))
        for straggler in self.watch.stragglers():
            self._note(straggler, step)
        if event is not None and event.action == "stop":
            self.writer.flush()
            # The last update that was applied may be what broke the weights: no state with it is a good one.
            applied_last = step - max(self.detector.skips_in_a_row, 1)
            raise self._failure(f"step {step}: {event.reason}; {self._lower_rate(applied_last - 1)}")
        return None

    def _note(self, straggler: Straggler, step: int) -> None:
        """A rank that the others wait for: a row, and a line on the screen."""
        self.writer.write("straggler", step=step, tokens=step * self.plan.step_tokens, **asdict(straggler))
        self.log(
            f"step {step}: rank {straggler.rank} is {straggler.seconds:.3g} s a step behind the others "
            f"({straggler.share:.0%} of a step), most of it in {straggler.operation!r}"
        )

    def _checkpoint(self, step: int) -> None:
        """Write the tables where the plan has them, then save state; after a request to stop the tables are deferred."""
        due = step in self.plan.checkpoint_steps
        with self.console.pause():
            if due and not self.stop_requested and (measured := self._measure(step)):
                due = False
                self.watch.at("writing tables", step)
                broadcast_from_rank0(lambda: self.writer.checkpoint(step, *measured))
                self.saver.best = self.writer.best
            self._agree()
            if step == self.saver.durable:
                pass  # just resumed from it, with its tables still due
            elif self.plan.saves(step) or self.stop_requested:
                self._save(step, {"due": due})
            else:
                broadcast_from_rank0(self.writer.flush)
            self._agree()
        if self.stop_requested:
            self._end(step, due)

    def _measure(self, step: int) -> tuple[dict, float, Scores] | None:
        """Sums by split over all ranks (the training loss since the last table, and every validation split), the seconds of
        validation, and the tasks' scores; None where a stop was requested meanwhile."""
        began = time.monotonic()
        if self.faults.compare_replicas:
            self._compare(step)

        def stopped() -> bool:
            self.watch.at("validation", step)
            return self._agree()

        sums = validate(self.engine, self.dataset, self.mesh, self.training.micro_batch_size, stopped)
        if sums is None:
            return None
        seconds = time.monotonic() - began
        try:
            scores = self.evaluator.score(self.engine, self.mesh, lambda: self._continue_tasks(step))
        except _StopRequested:
            return None
        return reduced({"train": self.accumulator.take()}, self.mesh.gradients) | sums, seconds, scores

    def _continue_tasks(self, step: int) -> None:
        self.watch.at("tasks", step)
        if self._agree():
            raise _StopRequested

    def _compare(self, step: int) -> None:
        self.watch.at("comparing replicas", step)
        wrong = diverged_replicas(self.engine.module)
        if not wrong:
            return
        reason = f"the weights of rank {', '.join(map(str, wrong))} differ from the other ranks'"
        self.writer.write("drift", step=step, tokens=step * self.plan.step_tokens, reason=reason)
        self.writer.flush()
        raise self._failure(
            f"step {step}: {reason}; a fault of its memory or device: exclude that machine and run again, it "
            f"resumes from the last saved state"
        )

    def _save(self, step: int, loop: dict) -> None:
        """Flush the log, then save state, so that a state is never ahead of its rows."""
        self.watch.at("saving", step)
        self.stop.answered = self.stop_requested
        self._await_save()
        problem = broadcast_from_rank0(self.writer.flush)
        if problem is None:
            self.saver.save(self.engine, step, loop, self.accumulator.sums)
            if self.saver.thread is None or self.stop_requested:
                self._await_save()
        else:
            self.log(f"checkpoint of step {step} not saved: {problem}; rows are kept in memory, training continues")

    def _await_save(self) -> None:
        """Wait for a save; write a row if it failed."""
        self.saver.wait()
        if self.saver.problem is not None:
            self.writer.write("save_failed", step=self.saver.step, reason=self.saver.problem)
        self.saver.problem = None

    def _failure(self, text: str) -> RunError:
        """An error that all ranks raise and rank 0 reports."""
        error = RunError(text)
        error.already_reported = not self.mesh.is_rank0
        return error

    def _agree(self) -> bool:
        """Whether a stop is requested on any rank; the same on every rank."""
        if not self.stop_requested:
            votes = torch.tensor([float(self.stop.requested)], device=self.mesh.device)
            self.stop_requested = bool(all_reduce_sum(votes, self.mesh.world).item())
        return self.stop_requested

    def _end(self, step: int, due: bool) -> None:
        """Save everything and raise Stopped; RunError where the disk failed."""
        if step == self.plan.total_steps and not due:
            return  # the run is complete
        self.stop.answered = True
        self.profiler.write()
        self._await_save()  # one that began beside training, just before the signal came
        broadcast_from_rank0(lambda: self.writer.close(stopped=True))
        if self.saver.durable < step:
            raise self._failure(
                f"stopped at step {step}, and its state could not be saved; run the same command to resume from "
                f"step {self.saver.durable}"
            )
        raise self.stop.stopped(step)
