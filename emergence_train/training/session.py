"""The training loop.

One step: the samples of the global batch are dealt out to the ranks by index, each rank runs its micro-batches forward
and backward, DeepSpeed steps. The loss at every position comes from the same forward pass. At a checkpoint the sums
since the last one and the validation losses become a `positions` table, then the engine's state is saved; so a run that
goes on from a state has every row before it and none after.
"""

import math
import time

import torch

from emergence_train import files
from emergence_train.checkpoint import saver as checkpoint
from emergence_train.config import Config
from emergence_train.data.dataset import Dataset
from emergence_train.errors import RunError
from emergence_train.evaluation.at_checkpoint import Evaluator, Scores
from emergence_train.evaluation.positions import reduced, validate
from emergence_train.faults.anomalies import AnomalyDetector, Event, SkippedBatches, diverged_replicas
from emergence_train.faults.signals import StopSignal
from emergence_train.faults.watchdog import Watchdog
from emergence_train.models import flops
from emergence_train.optim.schedule import learning_rate
from emergence_train.parallel.ranks import Ranks, all_reduce_sum, broadcast_from_rank0
from emergence_train.recorder.environment import write_environment
from emergence_train.recorder.position_sums import PositionAccumulator
from emergence_train.recorder.run_log import RunLog
from emergence_train.tracking.wandb import Mirror
from emergence_train.training import engine as engines
from emergence_train.training.console import Console
from emergence_train.training.plan import Plan
from emergence_train.training.recording import Recorder
from emergence_train.training.startup import startup_line
from emergence_train.training.step import Stepper


class _StopRequested(Exception):
    """Some rank was told to stop while tasks were scored."""


class Session:
    """One start of a run, from the state that was there to the end or to whatever stops it."""

    def __init__(
        self,
        config: Config,
        plan: Plan,
        dataset: Dataset,
        evaluator: Evaluator,
        ranks: Ranks,
        engine,
        log,
        stop: StopSignal,
        watch: Watchdog,
    ) -> None:
        self.config, self.plan, self.dataset, self.ranks, self.engine = config, plan, dataset, ranks, engine
        self.log, self.stop, self.watch = log, stop, watch
        self.run = config.run_directory
        self.header = {
            "run": config.name,
            "params": flops.non_embedding_parameters(config.model),
            "parameters": flops.parameters(config.model),
            "vocabulary": dataset.fingerprint,
            "sequence": config.data.sequence,
            "batch": config.training.batch,
            "flops_per_token": flops.flops_per_token(config.model, config.data.sequence),
            "total_tokens": plan.total_tokens,
        }
        self.evaluator = evaluator
        self.accumulator = PositionAccumulator(config.data.sequence, ranks.device)
        self.skipped = broadcast_from_rank0(lambda: SkippedBatches(self.run))
        self.saver = checkpoint.Saver(self.run, config, plan.state_steps, ranks, log)
        self.console = Console(plan, self.header["flops_per_token"], ranks, config.logging.console_seconds, log)
        self.detector = AnomalyDetector(config.faults, [])
        self.stepper = Stepper(
            config, engine, dataset, ranks, self.accumulator, self.skipped, self.detector, watch, log
        )
        self.recorder: Recorder | None = None  # rank 0's
        self.pending: tuple | None = None  # the last step's numbers, read one step late: a GPU is never waited for
        self.stop_requested = False  # some rank was told to stop, and all know

    def run_to(self, last: int) -> None:
        """Train until step `last`."""
        step = self._restore(first=True)
        while step < last:
            step += 1
            lr = learning_rate(self.config.training.schedule, step * self.plan.step_tokens, self.plan.total_tokens)
            numbers = self.stepper(step, lr, self.stop.requested)
            fault = self._settle()
            self.pending = (step, lr, self.console.tick(), *numbers)
            if fault is None and (step in self.plan.checkpoint_steps or self.plan.saves(step) or self.stop_requested):
                fault = self._settle()
                if fault is None:
                    self._checkpoint(step)
            if fault is not None:
                step = self._rewind(*fault)

    def close(self) -> None:
        """The end of the plan: everything must be on the disk now."""
        self.watch.at("the last of the saving", self.plan.total_steps)
        self._await_save()
        problem = None
        if self.recorder is not None:
            problem = self.recorder.run_log.close()
            self.recorder.mirror.close()
        self.log(self.console.closing(self.run))
        if self.config.checkpoints.save_state != "never" and self.saver.durable < self.plan.total_steps:
            problem = problem or "the last checkpoint could not be saved"
        if problem:
            raise self._failure(
                f"{self.run}: {problem}; fix that and run the same command: it resumes from step {self.saver.durable}"
            )

    # ------------------------------------------------------------------------------------------------ going back

    def _restore(self, *, first: bool = False) -> int:
        """Everything as it was at the newest whole checkpoint, or at the beginning; returns its step."""
        self.watch.at("loading a checkpoint")
        found = checkpoint.load_newest(self.engine, self.run, self.ranks, self.log)
        content, sums = found or ({"step": 0, "world_size": self.ranks.world, "loop": {}}, [])
        step = content["step"]
        self.accumulator.take()
        self.stepper.micro_batch.reset()
        if content["world_size"] == self.ranks.world and sums:
            self.accumulator.sums += sums[self.ranks.rank].to(self.ranks.device)
        elif self.ranks.is_rank0:  # dealt out anew: their sum is what counts
            for tensor in sums:
                self.accumulator.sums += tensor.to(self.ranks.device)
        self.saver.durable, self.pending, self.stop_requested = step, None, False
        if self.ranks.is_rank0:
            self._open_log(step)
            measured = {s for s in self.plan.checkpoint_steps if s < step + (not content["loop"].get("due"))}
            if gap := self.recorder.run_log.missing_rows(step, measured):
                self.log(gap)
            self.saver.best = self.recorder.best
        self.detector.restart(broadcast_from_rank0(lambda: self.recorder.judged))
        if first:
            self.log(startup_line(self.config, self.plan, self.dataset, self.ranks, self.header, step))
        if content["loop"].get("due"):
            self._checkpoint(step)
        return step

    def _open_log(self, step: int) -> None:
        if self.recorder is not None:
            self.recorder.run_log.truncate_to(step, self.skipped.rewinds)
            self.recorder.reread()
            return
        settings = engines.deepspeed_config(self.config, self.ranks)
        write_environment(self.run, self.ranks.world, self.ranks.device, step)
        files.write_json(self.run / "deepspeed.json", settings)
        run_log = RunLog(self.run, self.header, step, self.skipped.rewinds)
        if run_log.archived:
            self.log(
                f"no state is left to resume from: the run starts over, its earlier logs are in {run_log.archived}"
            )
        mirror = Mirror(self.config, self.run, self.header | {"deepspeed": settings}, self.log)
        self.recorder = Recorder(self.config, self.plan, self.evaluator, run_log, mirror, self.log)

    def _rewind(self, failed: int, event: Event) -> int:
        """Back to the newest checkpoint, and on without the batches since; on all ranks alike. Returns its step."""
        self.saver.wait()
        back_to = self.saver.durable
        if not back_to:
            raise self._failure(
                f"step {failed}: {event.reason}, and there is no checkpoint to go back to; lower "
                f"training.schedule.lr or lengthen the warm-up"
            )
        if len(self.skipped.rewinds) >= self.config.faults.give_up_after:
            raise self._failure(
                f"step {failed}: {event.reason}, after {len(self.skipped.rewinds)} rewinds; lower training.schedule.lr"
            )
        self.skipped.add(back_to, failed, event.reason, write=self.ranks.is_rank0)
        self.log(f"step {failed}: {event.reason}; back to step {back_to}, without the batches since")
        return self._restore()

    # ------------------------------------------------------------------------------------------- what is written

    def _settle(self) -> tuple[int, Event] | None:
        """Read and write the pending step's numbers; what asks for a rewind is returned, on every rank alike."""
        if self.pending is None:
            return None
        step, lr, speed, totals, grad_norm, applied = self.pending
        self.pending = None
        count, loss_sum, votes = totals.tolist()
        self.stop_requested = self.stop_requested or votes > 0
        self.stop.exposed = True
        loss = loss_sum / count if count else math.nan
        grad_norm = None if grad_norm is None else float(grad_norm)
        event = self.detector(loss, grad_norm, bool(applied))
        if event is not None and event.action == "rewind":
            return step, event
        if self.recorder is not None:
            self.recorder.step(step, lr, speed, loss, grad_norm, event)
        if event is not None and event.action == "stop":
            if self.recorder is not None:
                self.recorder.run_log.flush()
            raise self._failure(
                f"step {step}: {event.reason}; lower training.schedule.lr or lengthen the warm-up, then run "
                f"again: it resumes from the last checkpoint"
            )
        self.console.step(step, step * self.plan.step_tokens, loss, grad_norm, lr, bool(applied))
        return None

    def _checkpoint(self, step: int) -> None:
        """Tables where the plan has them, then state. Told to stop, the tables are left to the next start."""
        due = step in self.plan.checkpoint_steps
        with self.console.pause():
            if due and not self.stop_requested and (measured := self._measure(step)):
                due = False
                if self.recorder is not None:
                    self.recorder.checkpoint(step, *measured)
                    self.saver.best = self.recorder.best
            self._agree()
            if step == self.saver.durable:
                pass  # gone on from it just now, with its tables still to be made
            elif self.plan.saves(step) or self.stop_requested:
                self._save(step, {"due": due})
            elif self.recorder is not None:
                self.recorder.run_log.flush()
            self._agree()
        if self.stop_requested:
            self._end(step, due)

    def _measure(self, step: int) -> tuple[dict, float, Scores] | None:
        """Sums by split over all ranks (the training loss since the last table, and every validation split), the seconds
        they took, and the tasks' scores; None where a signal came in between."""
        began = time.monotonic()
        if self.config.faults.compare_replicas:
            self._compare(step)

        def stopped() -> bool:
            self.watch.at("validation", step)
            return self._agree()

        sums = validate(self.engine, self.dataset, self.ranks, self.config.training.micro_batch, stopped)
        if sums is None:
            return None
        seconds = time.monotonic() - began
        try:
            scores = self.evaluator.score(self.engine, self.ranks, lambda: self._continue("tasks", step))
        except _StopRequested:
            return None
        return reduced({"train": self.accumulator.take()}) | sums, seconds, scores

    def _continue(self, operation: str, step: int) -> None:
        self.watch.at(operation, step)
        if self._agree():
            raise _StopRequested

    def _compare(self, step: int) -> None:
        self.watch.at("comparing replicas", step)
        wrong = diverged_replicas(self.engine.module)
        if not wrong:
            return
        reason = f"the weights of rank {', '.join(map(str, wrong))} differ from the other ranks'"
        if self.recorder is not None:
            self.recorder.run_log.write("drift", step=step, tokens=step * self.plan.step_tokens, reason=reason)
            self.recorder.run_log.flush()
        raise self._failure(
            f"step {step}: {reason}; a fault of its memory or device: leave that machine out and run again, it "
            f"resumes from the last checkpoint"
        )

    def _save(self, step: int, loop: dict) -> None:
        """The log first: a state is never ahead of its rows."""
        self.watch.at("saving", step)
        self.stop.answered = self.stop_requested
        self._await_save()
        problem = broadcast_from_rank0(lambda: self.recorder.run_log.flush())
        if problem is None:
            self.saver.save(self.engine, step, loop, self.accumulator.sums)
            if self.saver.thread is None or self.stop_requested:
                self._await_save()
        else:
            self.log(f"checkpoint of step {step} not saved: {problem}; rows are kept in memory, training continues")

    def _await_save(self) -> None:
        """The end of a save, and a row if it failed."""
        self.saver.wait()
        if self.saver.problem is not None and self.recorder is not None:
            self.recorder.run_log.write("save_failed", step=self.saver.step, reason=self.saver.problem)
        self.saver.problem = None

    def _failure(self, text: str) -> RunError:
        """What all ranks raise alike, and one of them says."""
        error = RunError(text)
        error.already_reported = not self.ranks.is_rank0
        return error

    def _agree(self) -> bool:
        """Whether any rank was told to stop: every rank gets the same answer."""
        if not self.stop_requested:
            votes = torch.tensor([float(self.stop.requested)], device=self.ranks.device)
            self.stop_requested = bool(all_reduce_sum(votes).item())
        return self.stop_requested

    def _end(self, step: int, due: bool) -> None:
        """Told to stop: everything is saved, unless the disk would not."""
        if step == self.plan.total_steps and not due:
            return  # nothing is left to do but to close
        self.stop.answered = True
        self._await_save()  # one that began beside training, just before the signal came
        if self.recorder is not None:
            self.recorder.run_log.close()
            self.recorder.mirror.close(patience=5.0)
        if self.saver.durable < step:
            raise self._failure(
                f"stopped at step {step}, and its state could not be saved; run the same command to resume from "
                f"step {self.saver.durable}"
            )
        raise self.stop.stopped(step)
