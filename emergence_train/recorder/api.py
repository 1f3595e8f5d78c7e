"""Recording from any PyTorch loop: losses by position, curves and task results, in the tables that the analyses read.

    recorder = Recorder("runs/mine", params=124_000_000, sequence=1024)
    for step, (inputs, targets) in enumerate(batches, 1):
        logits = model(inputs)
        losses, correct = token_losses(logits, targets)  # [B, T], of the batch that was trained on anyway
        ...
        recorder.add(losses, correct_BT=correct)
        recorder.log(step, tokens, loss.item(), lr)
        if step % 1000 == 0:
            recorder.validate(model, held_out)  # sequences of 1,025 tokens
            recorder.checkpoint(step, tokens, lr)
    recorder.close()

`emergence-train report runs/mine` and `analyze temporal runs/mine` read what it writes. In a torch.distributed job every rank
calls the same methods in the same order; rank 0 writes. Needs torch, numpy, pandas and pyarrow.
"""

import contextlib
import math
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace, TracebackType
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from emergence_train import files
from emergence_train.errors import InputError, RunError, attempt, describe, exit_code, repeat
from emergence_train.recorder.arguments import Array, flags, real, text, whole
from emergence_train.recorder.logits import logits_of, token_losses
from emergence_train.recorder.metrics import Metrics
from emergence_train.recorder.position_sums import COLUMNS, PositionAccumulator
from emergence_train.recorder.position_sums import rows as position_rows
from emergence_train.recorder.run_log import RunLog
from emergence_train.recorder.sessions import add_session, end_session, now

BUSY = "another Recorder or run writes here; choose another path, or wait until it has closed"
IDENTITY = ("run", "params", "sequence", "vocabulary")  # of the header: what a continued run must have in common
ROUNDING = 1e-3  # nats a token that fused losses may lie below 0
T = TypeVar("T")


def device_of(group: Any = None) -> torch.device:
    """Where a process group's backend wants tensors."""
    return torch.device("cuda" if dist.get_backend(group) == "nccl" else "cpu")


class Recorder:
    """Writes a run directory. A context manager; `close` writes what is left.

    Args:
        path: the run's directory, made if need be.
        run: the run's name in tables; the directory's by default.
        params: its non-embedding parameters.
        sequence: positions of a sequence; shorter ones may be added, longer ones are refused.
        vocabulary: names the tokenizer: losses of different ones are not compared.
        total_tokens: the planned end, over all ranks; forecasts and `watch` look that far.
        total_steps: the planned last step, where tokens are not known ahead; of both, total_tokens counts.
        step: where the directory holds a run already, the step that training resumes from: rows after it are removed;
            0 starts over and moves the old tables aside. Not given, such a directory is refused.
        group: the process group whose ranks share the run; the default group where torch.distributed is initialised.
    """

    def __init__(
        self,
        path: str | Path,
        run: str | None = None,
        *,
        params: int,
        sequence: int,
        vocabulary: str = "",
        total_tokens: int | None = None,
        total_steps: int | None = None,
        step: int | None = None,
        group: Any = None,
    ) -> None:
        self.path, self.group = Path(path).absolute(), group  # a later os.chdir moves no run
        self.sequence = whole("Recorder", "sequence", sequence, least=1)
        self.header: dict[str, Any] = {
            "run": text("Recorder", "run", run or self.path.resolve().name),
            "params": whole("Recorder", "params", params, least=1),
            "sequence": self.sequence,
            "vocabulary": text("Recorder", "vocabulary", vocabulary, empty=True),
        }
        for name, total in {"total_tokens": total_tokens, "total_steps": total_steps}.items():
            if total is not None:
                self.header[name] = whole("Recorder", name, total, least=1)
        resumed = None if step is None else whole("Recorder", "step", step)
        self._distributed = dist.is_available() and dist.is_initialized()
        self._is_writer = not self._distributed or dist.get_rank(group) == 0
        self._sums: dict[str, PositionAccumulator] = {}
        self._carried: dict[str, Tensor] = {}  # [4, T] sums over all ranks, by load_state_dict
        self._evaluations: list[dict[str, Any]] = []
        self._clock: tuple[float, int] | None = None  # (time, tokens) of the last row that `log` wrote
        self._start = resumed or 0  # the step resumed from
        self._row, self._written = -1, -1  # steps of the curve's last row, and of the last tables
        self._checkpoint_row = -1  # the step of the last row that a checkpoint made
        self._latest: tuple[dict[str, Tensor], list[dict[str, Any]]] = {}, []  # sums and evaluations of the last tables
        self._log: RunLog | None = None
        self._lock = contextlib.ExitStack()  # the directory's, held by rank 0 until close
        try:
            self.tokens, self._written = self._agree(lambda: self._open(resumed))  # of the last row or tables
        except BaseException:
            self._lock.close()
            raise

    # ------------------------------------------------------------------------------------------------- what is recorded

    def add(
        self,
        token_losses_BT: Array,
        *,
        split: str = "train",
        correct_BT: Array | None = None,
        mask_BT: Array | None = None,
    ) -> None:
        """Add the losses of a batch to the sums of its split. Nothing is communicated, and no loss is read by the host.

        Args:
            token_losses_BT: nats, [B, T], a tensor or an array; column 0 is the first predicted token, position 1.
            split: "train", "iid" (held out), "ood" or a domain's name. Sums are of the tokens since the last checkpoint.
            correct_BT: whether the target was the most likely token; without it, accuracy is unknown.
            mask_BT: True (or 1) where a token counts; all do by default. Booleans spare the host reading it.

        A batch of "train" that has a counted loss which is not finite is left out, as its step should be. In another split the
        next checkpoint warns, and leaves the split out: a mean over what is finite would hide it.
        """
        losses_BT = torch.as_tensor(token_losses_BT).detach().double()
        if losses_BT.ndim != 2 or losses_BT.shape[1] > self.sequence:
            shape = "x".join(map(str, losses_BT.shape))
            raise InputError(
                f"token losses of shape {shape}: Recorder takes [B, T] with T up to sequence {self.sequence}"
            )
        counts_BT, hits_BT = torch.ones_like(losses_BT), torch.full_like(losses_BT, torch.nan)
        if mask_BT is not None:
            counts_BT = flags("mask_BT", mask_BT, losses_BT, "mask > 0")
        if correct_BT is not None:
            hits_BT = flags("correct_BT", correct_BT, losses_BT, "predicted == targets")
        losses_BT = torch.where(counts_BT > 0, losses_BT, 0.0)
        of_T = (counts_BT.sum(0), losses_BT.sum(0), losses_BT.square().sum(0), (hits_BT * counts_BT).sum(0))
        padded = (F.pad(sums, (0, self.sequence - len(sums))) for sums in of_T)
        if text("add", "split", split) not in self._sums:
            self._sums[split] = PositionAccumulator(self.sequence, losses_BT.device)
        sums = SimpleNamespace(**dict(zip(COLUMNS, padded, strict=True)))
        self._sums[split].add(sums, finite_only=split == "train")

    def validate(self, model: Callable[[Tensor], Any], sequences: Iterable[Tensor], *, split: str = "iid") -> None:
        """Add a model's losses on held-out sequences, batches [B, T + 1] of token ids, on the device that the model wants.

        `model` maps ids [B, T] to logits [B, T, V], or to an object that has them as `.logits`. A module is put into
        evaluation mode meanwhile. A last token below 0 (such as -100) does not count.
        """
        modes: list[tuple[torch.nn.Module, bool]] = []
        if isinstance(model, torch.nn.Module):
            modes = [(module, module.training) for module in model.modules()]  # frozen parts stay in evaluation mode
            model.eval()
        try:
            with torch.no_grad():
                for tokens in sequences:
                    logits_BTV = logits_of(model(tokens[:, :-1]))
                    losses_BT, correct_BT = token_losses(logits_BTV, tokens[:, 1:])
                    self.add(losses_BT, split=split, correct_BT=correct_BT, mask_BT=tokens[:, 1:] >= 0)
        finally:
            for module, training in modes:
                module.training = training

    def evaluation(
        self,
        task: str,
        metric: str,
        value: float,
        *,
        stderr: float | None = None,
        items: int | None = None,
        chance: float | None = None,
        higher_is_better: bool = True,
    ) -> None:
        """Add a task's result, for the next checkpoint's evaluations table; on rank 0, other ranks' are not written.

        Args:
            task: its name. One row a task and metric at each checkpoint.
            metric: what the value is of: acc, brier, ... Shares such as accuracy are from 0 to 1, not percent.
            value: the mean over the task's items, in the metric's own unit.
            stderr: standard error of `value` over items, in its unit.
            items: how many items were scored.
            chance: the value that guessing gives, in its unit. Without it the level of the plateau is estimated alone.
            higher_is_better: False for a loss or a Brier score.

        Raises:
            InputError: what the analyses would refuse with the whole table; leave such a result out.
        """
        call = f"evaluation of {text('evaluation', 'task', task)}, {text('evaluation', 'metric', metric)}"
        if any(row["task"] == task and row["metric"] == metric for row in self._evaluations):
            raise InputError(
                f"{call}: is given twice for one checkpoint; give it once, or call checkpoint() between them"
            )
        if not isinstance(higher_is_better, (bool, np.bool_)):
            raise InputError(f"{call}: higher_is_better={higher_is_better!r}; give True or False")
        row = {"task": task, "metric": metric, "value": real(call, "value", value)}
        row["stderr"] = None if stderr is None else real(call, "stderr", stderr, least=0)
        row["items"] = None if items is None else whole(call, "items", items)
        row["chance"] = None if chance is None else real(call, "chance", chance)
        self._evaluations.append({**row, "higher_is_better": bool(higher_is_better)})

    def log(self, step: int, tokens: int, loss: float, lr: float | None = None, **more: float) -> None:
        """Add a row to the training curve: tokens trained so far over all ranks, the step's mean loss, its learning rate.

        `more`: further numbers, such as grad_norm. Rank 0's are written. One row a step, before its checkpoint: where that has
        made the step's row (see there), this adds nothing.
        """
        if not self._is_writer:
            return
        step, tokens = whole("log", "step", step), whole("log", "tokens", tokens)
        loss, lr = real("log", "loss", loss, finite=False), _rate("log", lr)
        numbers = {name: real("log", name, value, finite=False) for name, value in more.items() if value is not None}
        log = self._run_log
        if step == self._row == self._checkpoint_row:
            return
        self._check_order("row", step, self._row)
        now = time.monotonic()
        before, self._clock = self._clock, (now, tokens)
        if before is not None and tokens > before[1] and now > before[0]:
            numbers.setdefault("tokens_per_second", (tokens - before[1]) / (now - before[0]))
        log.write("train", step=step, tokens=tokens, loss=loss, lr=lr, **numbers)
        if not math.isfinite(loss):
            log.write("skipped", step=step)  # else the curve would have a hole that nobody meant
        self._row, self.tokens = step, tokens

    def checkpoint(self, step: int, tokens: int, lr: float | None = None) -> dict[str, float]:
        """Write the sums since the last checkpoint as its tables. Collective. Returns the mean loss of each split.

        Where `log` was not called since the last checkpoint, the mean loss of split "train" becomes a row of the curve. A split
        whose losses are not finite has no rows, and no finite mean. A second checkpoint of a step adds splits to its tables:
        one that is saved before it is evaluated.
        Raises on every rank what goes wrong on rank 0, but for a full disk: then the rows are kept, tried again at the next
        checkpoint, and a warning says so.
        """
        started = time.monotonic()
        sums, evaluations, after = self._reduced(), self._evaluations, self._written
        self._check_signs(sums)
        before, results = self._latest
        if step == after and sums and before and not sums.keys() & before.keys():
            both = {(row["task"], row["metric"]): row for row in [*results, *evaluations]}
            sums, evaluations, after = before | sums, list(both.values()), after - 1
        means = {split: float(s[1].sum() / s[0].sum()) for split, s in sums.items() if s[0].sum() > 0}
        self.tokens = self._agree(lambda: self._write(step, tokens, lr, sums, evaluations, means, after, started))
        self._written, self._latest = int(step), (sums, evaluations)
        self._sums, self._carried, self._evaluations = {}, {}, []
        return means

    def move(self, split: str, to: str | None) -> None:
        """Let the sums that `split` has since the last checkpoint be those of `to`, or forget them where that is None.

        Raises InputError where `to` has sums: the mean of both would be of neither.
        """
        if to is not None and text("move", "to", to) in {*self._sums, *self._carried}:
            raise InputError(f"{self.path}: the split {to} has losses already; move those of {split} to another name")
        both: tuple[dict[str, Any], ...] = self._sums, self._carried
        for of_split in both:
            sums = of_split.pop(split, None)
            if sums is not None and to is not None:
                of_split[to] = sums

    def state_dict(self, step: int | None = None) -> dict[str, Any]:
        """What was added since the last checkpoint, over all ranks, for a state of yours that is saved at a step without tables.
        Collective. The rows so far are written to the disk; `step`, that of the state, where not each step has a row."""
        self._agree(lambda: self._mark(step))
        sums = {split: of.to("cpu", copy=True) for split, of in self._reduced().items()}
        return {"written": self._written, "sums": sums, "evaluations": list(self._evaluations)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from state_dict(), on every rank; nothing where tables that were written later hold what it has."""
        if state["written"] == self._written:
            self._carried, self._evaluations = dict(state["sums"]), list(state["evaluations"])

    def close(self) -> None:
        """Write what is left. Raises RunError where the disk refuses it. Collective no more: any rank may close alone."""
        self._close(0, "closed")

    def _close(self, code: int, reason: str) -> None:
        log, self._log = self._log, None
        with self._lock:
            if log is None:
                return
            try:
                end_session(self.path, code, reason)
            finally:
                problem = log.close()
            if problem:
                raise RunError(problem)

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
            return
        try:
            self._close(exit_code(error), describe(error))
        except (RunError, OSError) as problem:  # raised, it would hide the error
            warnings.warn(str(problem), stacklevel=2)

    def __repr__(self) -> str:
        return f"Recorder({str(self.path)!r}, run={self.header['run']!r}, tokens={self.tokens:,})"

    # ---------------------------------------------------------------------------------------------------------- rank 0

    @property
    def _run_log(self) -> RunLog:
        if self._log is None:
            raise InputError(f"{self.path}: this Recorder is closed; make another with step=")
        return self._log

    def _open(self, step: int | None) -> tuple[int, int]:
        """Check what the directory holds, and open its log at `step`; returns the tokens of the last row or tables, and the
        step of the last tables."""
        note = self._lock.enter_context(files.lock(self.path, busy=BUSY, other="path"))
        if note:
            warnings.warn(note, stacklevel=4)
        before = Metrics.read(self.path) if (self.path / "metrics.jsonl").is_file() else None
        if before is not None and step != 0:
            self._check_continues(before, step)
        elif before is None and step:
            raise InputError(
                f"{self.path}: holds no run, so step {step} cannot be resumed; give the run's own directory, or leave step out "
                f"to record from here on"
            )
        with files.named_errors(self.path):
            for folder in ("positions", "evaluations"):
                (self.path / folder).mkdir(exist_ok=True)
        self._log = RunLog(self.path, self.header, step or 0, [])
        add_session(self.path, {"started": now()})
        kept = self._log.take_read_back()
        tables = kept.of_kind("validation")
        self._row = int(max(kept.train("step"), default=-1))
        written = int(max((row.get("step", 0) for row in tables), default=-1))
        return int(np.nanmax([0, *kept.train("tokens"), *(row.get("tokens") or 0 for row in tables)])), written

    def _check_continues(self, before: Metrics, step: int | None) -> None:
        old = before.header or {}
        changed = [name for name in IDENTITY if old.get(name) != self.header[name]]
        steps = [*before.train("step"), *(row.get("step", 0) for row in before.events)]
        last = int(max(steps, default=0))
        if step is None:
            raise InputError(
                f"{self.path}: holds a run up to step {last}; Recorder(step={last}) continues it there, step=0 starts over, "
                f"with its tables moved aside, or choose another path"
            )
        if changed:
            name = changed[0]
            raise InputError(
                f"{self.path}: is a run of {name} {old.get(name)!r}, not {self.header[name]!r}; give {name}={old.get(name)!r}, "
                f"choose another path, or step=0 to start over"
            )
        if step > last:
            raise InputError(
                f"{self.path}: its rows end at step {last}, so step {step} cannot be resumed; resume from a checkpoint of step "
                f"{last} or before"
            )

    def _mark(self, step: int | None) -> None:
        """Write the rows so far, and that the run can be resumed at `step`."""
        if self._log is None:  # closed, with all rows
            return
        if step is not None and step > max(self._row, self._written, self._start):
            self._log.write("state", step=whole("state_dict", "step", step))
        self._flush()

    def _flush(self) -> None:
        if problem := self._run_log.flush():
            warnings.warn(f"{problem}; the rows are kept and tried again at the next checkpoint", stacklevel=5)

    def _check_order(self, what: str, step: int, last: int) -> None:
        """Raise InputError unless `step` is after the `last` of its kind and not before anything else that is recorded."""
        latest = max(self._row, self._written, self._start)
        if step <= last or step < latest:
            before = f"{what} {last}" if step <= last else f"step {latest}"
            raise InputError(
                f"{self.path}: {what} {step} follows {before}; steps must increase, with one row and one checkpoint each"
            )

    def _check_signs(self, sums: dict[str, Tensor]) -> None:
        """Set what rounding left below 0 to 0; raise InputError for negative losses, whose sums are dropped."""
        for split, (count, loss, *_) in sums.items():
            if (loss.isfinite() & (loss < -ROUNDING * count)).any():
                self._sums.pop(split, None)
                self._carried.pop(split, None)
                raise InputError(
                    f"{self.path}: losses of the split {split} are negative; give add() -log p of each token, in nats"
                )
            loss.copy_(loss.clamp(min=0).where(loss.isfinite(), loss))

    def _write(
        self,
        step: int,
        tokens: int,
        lr: float | None,
        sums: dict[str, Tensor],
        evaluations: list[dict[str, Any]],
        means: dict[str, float],
        after: int,
        started: float,
    ) -> int:
        """Write the tables of a checkpoint that is after the step `after`; returns its tokens."""
        log, step, tokens = self._run_log, whole("checkpoint", "step", step), whole("checkpoint", "tokens", tokens)
        lr = _rate("checkpoint", lr)
        self._check_order("checkpoint", step, after)
        if not sums:
            raise InputError(f"{self.path}: checkpoint {step} has no losses; call add() or validate() before it")
        if evaluations and "iid" not in sums:
            raise InputError(
                f"{self.path}: task results need the loss on held-out text beside them; call validate(), or add(split='iid')"
            )
        means = {split: mean for split, mean in means.items() if math.isfinite(mean)}
        header, key = self.header, {"step": step, "tokens": tokens}
        if means:
            tables = [position_rows(sums[split], split) for split in sorted(means)]
            table = pd.concat(tables, ignore_index=True).assign(run=header["run"], params=header["params"], **key)
            log.positions(step, table)
        if evaluations and "iid" in means:
            rows = pd.DataFrame(evaluations).assign(
                run=header["run"], params=header["params"], loss=means["iid"], **key
            )
            log.evaluations(step, rows.astype({"stderr": float, "items": "Int64", "chance": float}))
        if "train" in means and self._row <= after:
            self.log(step, tokens, means["train"], lr)
            self._checkpoint_row = step
        log.write("validation", **key, seconds=round(time.monotonic() - started, 3), loss=means)
        self._flush()
        if lost := sorted(sums.keys() - means.keys()):
            results = ", and task results, which need it," if evaluations and "iid" in lost else ""
            warnings.warn(
                f"{self.path}: checkpoint {step} is written without the split {', '.join(lost)}{results}: no loss that counts is "
                f"finite, or not all of a validation's",
                stacklevel=4,
            )
        return tokens

    # ------------------------------------------------------------------------------------------------------- all ranks

    def _reduced(self) -> dict[str, Tensor]:
        """[4, T] sums of each split over all ranks, and of those carried; a rank may lack some."""
        sums = self._of_ranks()
        for split, carried in self._carried.items():
            sums[split] = carried.to(sums[split].device) + sums[split] if split in sums else carried
        return sums

    def _of_ranks(self) -> dict[str, Tensor]:
        if not self._distributed:
            return {split: of.sums for split, of in self._sums.items()}
        names: list[list[str]] = [[] for _ in range(dist.get_world_size(self.group))]
        dist.all_gather_object(names, sorted(self._sums), group=self.group)
        device = device_of(self.group)
        reduced = {}
        for split in sorted({name for of_rank in names for name in of_rank}):
            own = self._sums.get(split) or PositionAccumulator(self.sequence, device)
            reduced[split] = own.sums.to(device, copy=True)
            dist.all_reduce(reduced[split], group=self.group)
        return reduced

    def _agree(self, write: Callable[[], T]) -> T:
        """What `write` returns on rank 0, on all ranks; or all raise what it raises there."""
        value, failure = attempt(write) if self._is_writer else (None, None)
        if self._distributed:
            lines = [(value, None if failure is None else (exit_code(failure), describe(failure)))]
            dist.broadcast_object_list(
                lines, src=dist.get_global_rank(self.group, 0) if self.group else 0, group=self.group
            )
            value, error = lines[0]
            if error is not None and failure is None:
                raise repeat(*error)
        if failure is not None:
            raise failure
        return value  # type: ignore[return-value]


def _rate(call: str, lr: float | None) -> float | None:
    return None if lr is None else real(call, "lr", lr, least=0, finite=False)
