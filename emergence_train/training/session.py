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
from emergence_train.faults.anomalies import Event, Judge, Skips, drifted
from emergence_train.faults.signals import StopSignal
from emergence_train.faults.watchdog import Watchdog
from emergence_train.models import flops as counting
from emergence_train.optim.schedule import learning_rate
from emergence_train.parallel.ranks import Ranks, from_first_rank, sum_over_ranks
from emergence_train.recorder.environment import write_environment
from emergence_train.recorder.position_sums import PositionAccumulator
from emergence_train.recorder.run_log import RunLog
from emergence_train.tracking.wandb import Mirror
from emergence_train.training import engine as engines
from emergence_train.training.console import Console
from emergence_train.training.plan import Plan
from emergence_train.training.recording import Recorder
from emergence_train.training.startup import opening
from emergence_train.training.step import Stepper


class _Told(Exception):
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
        say,
        stop: StopSignal,
        watch: Watchdog,
    ) -> None:
        self.config, self.plan, self.dataset, self.ranks, self.engine = config, plan, dataset, ranks, engine
        self.say, self.stop, self.watch = say, stop, watch
        self.run = config.run_directory
        self.header = {
            "run": config.name,
            "params": counting.non_embedding_parameters(config.model),
            "parameters": counting.parameters(config.model),
            "vocabulary": dataset.fingerprint,
            "sequence": config.data.sequence,
            "batch": config.training.batch,
            "flops_per_token": counting.flops_per_token(config.model, config.data.sequence),
            "total_tokens": plan.total_tokens,
        }
        self.evaluator = evaluator
        self.accumulator = PositionAccumulator(config.data.sequence, ranks.device)
        self.skips = from_first_rank(lambda: Skips(self.run))
        self.saver = checkpoint.Saver(self.run, config, plan.state_steps, ranks, say)
        self.console = Console(plan, self.header["flops_per_token"], ranks, config.logging.console_seconds, say)
        self.judge = Judge(config.faults, [])
        self.stepper = Stepper(config, engine, dataset, ranks, self.accumulator, self.skips, self.judge, watch, say)
        self.recorder: Recorder | None = None  # rank 0's
        self.pending: tuple | None = None  # the last step's numbers, read one step late: a GPU is never waited for
        self.told = False  # some rank was told to stop, and all know

    def run_to(self, last: int) -> None:
        """Train until step `last`."""
        step = self._restore(opening_line=True)
        while step < last:
            step += 1
            lr = learning_rate(self.config.training.schedule, step * self.plan.step_tokens, self.plan.total_tokens)
            numbers = self.stepper(step, lr, self.stop.requested)
            fault = self._settle()
            self.pending = (step, lr, self.console.tick(), *numbers)
            if fault is None and (step in self.plan.checkpoint_steps or self.plan.saves(step) or self.told):
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
            problem = self.recorder.log.close()
            self.recorder.mirror.close()
        self.say(self.console.closing(self.run))
        if self.config.checkpoints.save_state != "never" and self.saver.durable < self.plan.total_steps:
            problem = problem or "the last checkpoint could not be saved"
        if problem:
            raise self._failure(
                f"{self.run}: {problem}; mend that and run the same command: it goes on from step {self.saver.durable}"
            )

    # ------------------------------------------------------------------------------------------------ going back

    def _restore(self, *, opening_line: bool = False) -> int:
        """Everything as it was at the newest whole checkpoint, or at the beginning; returns its step."""
        self.watch.at("loading a checkpoint")
        found = checkpoint.load_newest(self.engine, self.run, self.ranks, self.say)
        content, sums = found or ({"step": 0, "world_size": self.ranks.world, "loop": {}}, [])
        step = content["step"]
        self.accumulator.take()
        self.stepper.micro_batch.reset()
        if content["world_size"] == self.ranks.world and sums:
            self.accumulator.sums += sums[self.ranks.rank].to(self.ranks.device)
        elif self.ranks.first:  # dealt out anew: their sum is what counts
            for tensor in sums:
                self.accumulator.sums += tensor.to(self.ranks.device)
        self.saver.durable, self.pending, self.told = step, None, False
        if self.ranks.first:
            self._open_log(step)
            measured = {s for s in self.plan.checkpoint_steps if s < step + (not content["loop"].get("due"))}
            if gap := self.recorder.log.lacking(step, measured):
                self.say(gap)
            self.saver.best = self.recorder.best
        self.judge.restart(from_first_rank(lambda: self.recorder.judged))
        if opening_line:
            self.say(opening(self.config, self.plan, self.dataset, self.ranks, self.header, step))
        if content["loop"].get("due"):
            self._checkpoint(step)
        return step

    def _open_log(self, step: int) -> None:
        if self.recorder is not None:
            self.recorder.log.take_back_to(step, self.skips.rewinds)
            self.recorder.reread()
            return
        settings = engines.deepspeed_config(self.config, self.ranks)
        write_environment(self.run, self.ranks.world, self.ranks.device, step)
        files.write_json(self.run / "deepspeed.json", settings)
        log = RunLog(self.run, self.header, step, self.skips.rewinds)
        if log.put_away:
            self.say(f"no state is left to go on from: the run begins anew, its earlier logs are in {log.put_away}")
        mirror = Mirror(self.config, self.run, self.header | {"deepspeed": settings}, self.say)
        self.recorder = Recorder(self.config, self.plan, self.evaluator, log, mirror, self.say)

    def _rewind(self, failed: int, event: Event) -> int:
        """Back to the newest checkpoint, and on without the batches since; on all ranks alike. Returns its step."""
        self.saver.wait()
        back_to = self.saver.durable
        if not back_to:
            raise self._failure(
                f"step {failed}: {event.reason}, and there is no checkpoint to go back to; lower "
                f"training.schedule.lr or lengthen the warm-up"
            )
        if len(self.skips.rewinds) >= self.config.faults.give_up_after:
            raise self._failure(
                f"step {failed}: {event.reason}, after {len(self.skips.rewinds)} rewinds; lower training.schedule.lr"
            )
        self.skips.add(back_to, failed, event.reason, write=self.ranks.first)
        self.say(f"step {failed}: {event.reason}; back to step {back_to}, without the batches since")
        return self._restore()

    # ------------------------------------------------------------------------------------------- what is written

    def _settle(self) -> tuple[int, Event] | None:
        """Read and write the pending step's numbers; what asks for a rewind is returned, on every rank alike."""
        if self.pending is None:
            return None
        step, lr, speed, totals, grad_norm, applied = self.pending
        self.pending = None
        count, loss_sum, votes = totals.tolist()
        self.told = self.told or votes > 0
        self.stop.exposed = True
        loss = loss_sum / count if count else math.nan
        grad_norm = None if grad_norm is None else float(grad_norm)
        event = self.judge(loss, grad_norm, bool(applied))
        if event is not None and event.action == "rewind":
            return step, event
        if self.recorder is not None:
            self.recorder.step(step, lr, speed, loss, grad_norm, event)
        if event is not None and event.action == "stop":
            if self.recorder is not None:
                self.recorder.log.flush()
            raise self._failure(
                f"step {step}: {event.reason}; lower training.schedule.lr or lengthen the warm-up, then run "
                f"again: it goes on from the last checkpoint"
            )
        self.console.step(step, step * self.plan.step_tokens, loss, grad_norm, lr, bool(applied))
        return None

    def _checkpoint(self, step: int) -> None:
        """Tables where the plan has them, then state. Told to stop, the tables are left to the next start."""
        due = step in self.plan.checkpoint_steps
        with self.console.pause():
            if due and not self.told and (measured := self._measure(step)):
                due = False
                if self.recorder is not None:
                    self.recorder.checkpoint(step, *measured)
                    self.saver.best = self.recorder.best
            self._agree()
            if step == self.saver.durable:
                pass  # gone on from it just now, with its tables still to be made
            elif self.plan.saves(step) or self.told:
                self._save(step, {"due": due})
            elif self.recorder is not None:
                self.recorder.log.flush()
            self._agree()
        if self.told:
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
            scores = self.evaluator.score(self.engine, self.ranks, lambda: self._go_on("tasks", step))
        except _Told:
            return None
        return reduced({"train": self.accumulator.take()}) | sums, seconds, scores

    def _go_on(self, operation: str, step: int) -> None:
        self.watch.at(operation, step)
        if self._agree():
            raise _Told

    def _compare(self, step: int) -> None:
        self.watch.at("comparing replicas", step)
        wrong = drifted(self.engine.module)
        if not wrong:
            return
        reason = f"the weights of rank {', '.join(map(str, wrong))} differ from the other ranks'"
        if self.recorder is not None:
            self.recorder.log.write("drift", step=step, tokens=step * self.plan.step_tokens, reason=reason)
            self.recorder.log.flush()
        raise self._failure(
            f"step {step}: {reason}; a fault of its memory or device: leave that machine out and run again, it "
            f"goes on from the last checkpoint"
        )

    def _save(self, step: int, loop: dict) -> None:
        """The log first: a state is never ahead of its rows."""
        self.watch.at("saving", step)
        self.stop.answered = self.told
        self._await_save()
        problem = from_first_rank(lambda: self.recorder.log.flush())
        if problem is None:
            self.saver.save(self.engine, step, loop, self.accumulator.sums)
            if self.saver.thread is None or self.told:
                self._await_save()
        else:
            self.say(f"checkpoint of step {step} not saved: {problem}; rows are kept in memory, training goes on")

    def _await_save(self) -> None:
        """The end of a save, and a row if it failed."""
        self.saver.wait()
        if self.saver.problem is not None and self.recorder is not None:
            self.recorder.log.write("save_failed", step=self.saver.step, reason=self.saver.problem)
        self.saver.problem = None

    def _failure(self, text: str) -> RunError:
        """What all ranks raise alike, and one of them says."""
        error = RunError(text)
        error.told_by_first_rank = not self.ranks.first
        return error

    def _agree(self) -> bool:
        """Whether any rank was told to stop: every rank gets the same answer."""
        if not self.told:
            votes = torch.tensor([float(self.stop.requested)], device=self.ranks.device)
            self.told = bool(sum_over_ranks(votes).item())
        return self.told

    def _end(self, step: int, due: bool) -> None:
        """Told to stop: everything is saved, unless the disk would not."""
        if step == self.plan.total_steps and not due:
            return  # nothing is left to do but to close
        self.stop.answered = True
        self._await_save()  # one that began beside training, just before the signal came
        if self.recorder is not None:
            self.recorder.log.close()
            self.recorder.mirror.close(patience=5.0)
        if self.saver.durable < step:
            raise self._failure(
                f"told to stop at step {step}, and its state could not be saved; the same command goes on from "
                f"step {self.saver.durable}"
            )
        raise self.stop.stopped(step)
