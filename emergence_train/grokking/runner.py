"""Train a sweep's runs in stacks, one process on each CPU; the same command resumes.

A process trains one stack on one thread: products this small gain nothing from a second, and the bits are the same
however many processes there are."""

import multiprocessing as mp
import os
import queue
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch

from emergence_train.errors import InputError, OneLine, RunError, Stopped, describe, exit_code
from emergence_train.faults.signals import WITH_INTERRUPT, handled
from emergence_train.formatting import duration
from emergence_train.grokking.stacked import Stack
from emergence_train.grokking.store import Store
from emergence_train.grokking.sweep import Run, SweepPlan
from emergence_train.grokking.tasks import QuestionTable
from emergence_train.parallel.ranks import keep_freed_memory

SAVE_SECONDS = 20.0
LINE_SECONDS = 5.0  # between two lines of progress
POLL = 0.2  # seconds
BUSY = "another process trains this sweep; wait for it"

Report = Callable[[int, int], None]  # called with (update, runs that are left)


@dataclass(frozen=True)
class Job:
    """The runs of one stack: the same model, the same number of questions."""

    number: int
    runs: tuple[Run, ...]

    def work(self) -> float:
        """Relative cost of an update of one run."""
        return float(self.runs[0].trained_on + 50)


def stacks(plan: SweepPlan) -> list[Job]:
    """The runs in stacks, those of small shares first: they take longest. The same file gives the same stacks."""
    groups: dict[tuple, list[Run]] = {}
    for run in sorted(plan.runs, key=lambda run: run.trained_on):
        groups.setdefault((run.model, run.trained_on), []).append(run)
    parts: list[tuple[Run, ...]] = []
    for runs in groups.values():
        count = -(-len(runs) // plan.sweep.stack)
        size = -(-len(runs) // count)
        parts += [tuple(runs[place : place + size]) for place in range(0, len(runs), size)]
    return [Job(number, runs) for number, runs in enumerate(parts)]


def train_stack(store: Store, table: QuestionTable, job: Job, stop: Callable[[], bool], report: Report) -> bool:
    """Train a stack until every run has ended; False where `stop` asked to end before, with the state saved.

    Raises:
        InputError: the stack takes more memory than there is. RunError: a file cannot be written.
    """
    training = store.plan.sweep.training
    left = [run for run in job.runs if store.read_curve(run) is None]
    if not left:
        store.remove_state(job.runs)
        return True
    stack = _begun(store, table, job, left)
    saved = time.monotonic()
    while stack.update < training.updates:
        stack.step()
        if stack.update % training.evaluate_every and stack.update < training.updates:
            continue
        stack.measure()
        if done := stack.settled():
            for run in done:
                store.write_curve(run, stack.curves[run.name])
            if len(done) == len(stack.runs):
                break
            stack.leave(done)
        report(stack.update, len(stack.runs))
        stopped = stop()
        if stopped or time.monotonic() - saved > SAVE_SECONDS:
            store.write_state(job.runs, stack)
            saved = time.monotonic()
        if stopped:
            return False
    else:
        for run in stack.runs:
            store.write_curve(run, stack.curves[run.name])
    store.remove_state(job.runs)
    return True


def _begun(store: Store, table: QuestionTable, job: Job, left: list[Run]) -> Stack:
    """The stack of the runs that are left, as it was saved or new.

    Raises:
        InputError: it takes more memory than there is.
    """
    try:
        stack = Stack(left, table, store.plan.sweep.training, torch.device(store.plan.sweep.device))
        if not store.restore(job.runs, stack):
            stack.measure()
    except RuntimeError as error:  # torch has no class of its own for a CPU's
        if isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error):
            raise InputError(
                f"{store.plan.path}: models.{left[0].model}: {len(left)} runs at once take more memory than there is; "
                "lower stack, or the model's sizes"
            ) from None
        raise
    return stack


def settle_in() -> None:
    """Settings of a process that trains: one thread; numbers too small for float32 are zero, which is what makes products of
    gradients that have nearly vanished slow; and freed memory is kept, or each update would have its pages made anew (1.3
    times the time, measured)."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    keep_freed_memory()


@dataclass
class Runner:
    """Trains what is left of a sweep. `jobs`: processes at a time; None: one on each CPU, or one alone on a GPU."""

    store: Store
    table: QuestionTable
    log: Callable[[str], None]
    jobs: int | None = None
    stop_requested: bool = field(default=False, init=False)

    def run(self) -> None:
        """Train every run that has not ended.

        Raises:
            Stopped: a signal came; everything is saved. RunError: a process failed or was lost.
        """
        waiting = [
            job for job in stacks(self.store.plan) if any(self.store.read_curve(run) is None for run in job.runs)
        ]
        left = sum(self.store.read_curve(run) is None for job in waiting for run in job.runs)
        total = len(self.store.plan.runs)
        self.log(
            f"{self.store.plan.sweep.name}: {total} runs, {left} to train"
            if left
            else f"{total} runs, nothing to train"
        )
        if not waiting:
            return
        with handled(self._stop):
            self._train(waiting)
        if self.stop_requested:
            raise Stopped(f"{self.store.out}: stopped, every stack is saved; run the same command to resume")

    def _train(self, waiting: list[Job]) -> None:
        progress = Progress(waiting, self.store.plan.sweep.training.updates, self.log)
        count = min(
            self.jobs or (len(os.sched_getaffinity(0)) if self.store.plan.sweep.device == "cpu" else 1), len(waiting)
        )
        if count > 1:
            self._in_processes(waiting, count, progress)
            return
        settle_in()
        for job in waiting:
            ended = train_stack(
                self.store, self.table, job, lambda: self.stop_requested, lambda *at, job=job: progress.at(job, *at)
            )
            if not ended:
                return
            progress.done(job)

    def _in_processes(self, waiting: list[Job], count: int, progress: "Progress") -> None:
        context = mp.get_context("spawn")
        jobs, reports, stop = context.Queue(), context.Queue(), context.Event()
        for job in waiting:
            jobs.put(job)
        for _ in range(count):
            jobs.put(None)
        workers = [
            context.Process(
                target=_worker, args=(self.store, self.table, jobs, reports, stop, os.getpid()), daemon=True
            )
            for _ in range(count)
        ]
        for worker in workers:
            worker.start()
        jobs.cancel_join_thread()  # what a stop leaves in the queue must not keep this process from ending
        failure: OneLine | None = None
        try:
            for kind, job, *rest in self._heard(workers, reports, stop):
                if kind == "at":
                    progress.at(job, *rest)
                elif kind == "done":
                    progress.done(job)
                else:
                    failure = failure or rest[0]
                    stop.set()
        finally:
            stop.set()
            for worker in workers:
                worker.join()
        if failure:
            raise failure
        lost = [worker.exitcode for worker in workers if worker.exitcode]
        if lost:
            raise RunError(
                f"{self.store.out}: a training process was lost (exit code {lost[0]}); run the same command to resume"
            )

    def _heard(self, workers: list, reports: Any, stop: Any) -> Iterator[tuple]:
        """What the workers report, until all have ended."""
        while True:
            alive = any(worker.is_alive() for worker in workers)
            if self.stop_requested or any(worker.exitcode for worker in workers):
                stop.set()
            try:
                yield reports.get(timeout=POLL if alive else 0.01)
            except queue.Empty:
                if not alive:
                    return

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.stop_requested = True


def _worker(store: Store, table: QuestionTable, jobs: Any, reports: Any, stop: Any, parent: int) -> None:
    """Train stacks until none is left, a stop is requested, or the parent has gone."""
    for number in WITH_INTERRUPT:  # a terminal's interrupt is the parent's
        signal.signal(number, signal.SIG_IGN)
    settle_in()

    def stopped() -> bool:
        return stop.is_set() or os.getppid() != parent

    while not stopped():
        job = jobs.get()
        if job is None:
            return
        last = 0.0

        def report(update: int, left: int, job: Job = job) -> None:
            nonlocal last
            if time.monotonic() - last > POLL:
                last = time.monotonic()
                reports.put(("at", job, update, left))

        try:
            ended = train_stack(store, table, job, stopped, report)
        except Exception as error:
            kind = InputError if exit_code(error) == InputError.code else RunError
            reports.put(("failed", job, kind(describe(error))))
            return
        if not ended:
            return
        reports.put(("done", job))


class Progress:
    """Lines of progress with the time that is left, from what was done in this start."""

    def __init__(self, jobs: list[Job], updates: int, log: Callable[[str], None]) -> None:
        self.updates, self.log = updates, log
        self.work = {job.number: job.work() * len(job.runs) for job in jobs}
        self.share = dict.fromkeys(self.work, 0.0)
        self.first: dict[int, float] = {}
        self.began = self.last = time.monotonic()
        self.done_runs, self.runs = 0, sum(len(job.runs) for job in jobs)

    def at(self, job: Job, update: int, left: int) -> None:
        self.first.setdefault(job.number, update / self.updates)
        self.share[job.number] = update / self.updates
        if time.monotonic() - self.last > LINE_SECONDS:
            self.last = time.monotonic()
            self.log(self.line(self.last - self.began))

    def done(self, job: Job) -> None:
        self.first.setdefault(job.number, 0.0)
        self.share[job.number] = 1.0
        self.done_runs += len(job.runs)

    def line(self, seconds: float) -> str:
        total = sum(self.work.values())
        ready = sum(self.work[number] * share for number, share in self.share.items())
        gained = ready - sum(self.work[number] * share for number, share in self.first.items())
        eta = f", {duration(seconds * (total - ready) / gained)} left" if gained > 0 else ""
        return f"{self.done_runs} of {self.runs} runs done, {100 * ready / total:.0f}%{eta}"
