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
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from emergence_train import files
from emergence_train.errors import InputError, RunError, attempt, describe, exit_code, repeat
from emergence_train.recorder.metrics import Metrics
from emergence_train.recorder.position_sums import COLUMNS, PositionAccumulator
from emergence_train.recorder.position_sums import rows as position_rows
from emergence_train.recorder.run_log import RunLog
from emergence_train.recorder.sessions import add_session, end_session, now

BUSY = "another Recorder or run writes here; choose another path, or wait until it has closed"
Array = Tensor | np.ndarray
IDENTITY = ("run", "params", "sequence", "vocabulary")  # of the header: what a continued run must have in common


def token_losses(logits_BTV: Tensor, targets_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of each token in float32, nats, and whether the target was the most likely one; both [B, T], no gradient.

    One sequence at a time, so that float32 logits of one are in memory. Targets below 0 (such as -100) have loss 0: mask them.
    """
    with torch.no_grad():
        losses, correct = [], []
        for logits_TV, targets_T in zip(logits_BTV, targets_BT, strict=True):
            ignored = targets_T < 0
            known_T = targets_T.masked_fill(ignored, 0)
            losses.append(F.cross_entropy(logits_TV.float(), known_T, reduction="none").masked_fill(ignored, 0.0))
            correct.append((logits_TV.argmax(-1) == known_T) & ~ignored)
        return torch.stack(losses), torch.stack(correct)


class Recorder:
    """Writes a run directory. A context manager; `close` writes what is left.

    Args:
        path: the run's directory, made if need be.
        run: the run's name in tables; the directory's by default.
        params: its non-embedding parameters.
        sequence: positions of a sequence; shorter ones may be added, longer ones are refused.
        vocabulary: names the tokenizer: losses of different ones are not compared.
        total_tokens: the planned end, over all ranks.
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
        step: int | None = None,
        group: Any = None,
    ) -> None:
        self.path, self.sequence, self.group = Path(path), sequence, group
        self.tokens = 0  # of the last row
        header = {"run": run or self.path.resolve().name, "params": params, "sequence": sequence}
        self.header: dict[str, Any] = header | {"vocabulary": vocabulary, "total_tokens": total_tokens}
        self._distributed = dist.is_available() and dist.is_initialized()
        self._is_writer = not self._distributed or dist.get_rank(group) == 0
        self._sums: dict[str, PositionAccumulator] = {}
        self._evaluations: list[dict[str, Any]] = []
        self._logged: tuple[int, float, int] | None = None  # (step, clock, tokens) of the last row of the curve
        self._written = -1  # step of the last checkpoint
        self._log: RunLog | None = None
        self._lock = contextlib.ExitStack()  # the directory's, held by rank 0 until close
        try:
            self._agree(lambda: self._open(step))
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
            mask_BT: True where a token counts; all do by default.

        A batch that has a counted loss which is not finite is left out, as its step should be.
        """
        losses_BT = torch.as_tensor(token_losses_BT).detach().double()
        if losses_BT.ndim != 2 or losses_BT.shape[1] > self.sequence:
            shape = "x".join(map(str, losses_BT.shape))
            raise InputError(
                f"token losses of shape {shape}: Recorder takes [B, T] with T up to sequence {self.sequence}"
            )

        def like_losses(name: str, given: Array | None, default: float) -> Tensor:
            if given is None:
                return torch.full_like(losses_BT, default)
            tensor = torch.as_tensor(given).to(losses_BT.device).double()
            if tensor.shape != losses_BT.shape:
                raise InputError(f"{name} has shape {list(tensor.shape)}, the losses {list(losses_BT.shape)}")
            return tensor

        counts_BT = like_losses("mask_BT", mask_BT, 1.0)
        correct_sums = (like_losses("correct_BT", correct_BT, torch.nan) * counts_BT).sum(0)
        losses_BT = torch.where(counts_BT > 0, losses_BT, 0.0)
        of_T = (counts_BT.sum(0), losses_BT.sum(0), losses_BT.square().sum(0), correct_sums)
        padded = (F.pad(sums, (0, self.sequence - len(sums))) for sums in of_T)
        if split not in self._sums:
            self._sums[split] = PositionAccumulator(self.sequence, losses_BT.device)
        self._sums[split].add(SimpleNamespace(**dict(zip(COLUMNS, padded, strict=True))))

    def validate(self, model: Callable[[Tensor], Any], sequences: Iterable[Tensor], *, split: str = "iid") -> None:
        """Add a model's losses on held-out sequences, batches [B, T + 1] of token ids, on the device that the model wants.

        `model` maps ids [B, T] to logits [B, T, V], or to an object that has them as `.logits`. A module is put into
        evaluation mode meanwhile.
        """
        training = isinstance(model, torch.nn.Module) and model.training
        if isinstance(model, torch.nn.Module):
            model.eval()
        try:
            with torch.no_grad():
                for tokens in sequences:
                    logits_BTV = _logits(model(tokens[:, :-1]))
                    losses_BT, correct_BT = token_losses(logits_BTV, tokens[:, 1:])
                    self.add(losses_BT, split=split, correct_BT=correct_BT)
        finally:
            if training and isinstance(model, torch.nn.Module):
                model.train()

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

        Raises InputError for a value that is not finite, which the analyses would refuse with the whole table.
        """
        if not math.isfinite(value):
            raise InputError(f"{task}, {metric}: {value} is not a finite number; leave this result out")
        row = {"task": task, "metric": metric, "value": value, "stderr": stderr, "items": items, "chance": chance}
        self._evaluations.append({**row, "higher_is_better": higher_is_better})

    def log(self, step: int, tokens: int, loss: float, lr: float | None = None, **more: float) -> None:
        """Add a row to the training curve: tokens trained so far over all ranks, the step's mean loss, its learning rate.

        `more`: further numbers, such as grad_norm. Rank 0's are written.
        """
        if not self._is_writer:
            return
        now = time.monotonic()
        before, self._logged = self._logged, (step, now, tokens)
        if before is not None and tokens > before[2] and now > before[1]:
            more.setdefault("tokens_per_second", (tokens - before[2]) / (now - before[1]))
        self._run_log.write("train", step=step, tokens=tokens, loss=loss, lr=lr, **more)
        if not math.isfinite(loss):
            self._run_log.write("skipped", step=step)  # else the curve would have a hole that nobody meant
        self.tokens = tokens

    def checkpoint(self, step: int, tokens: int, lr: float | None = None) -> dict[str, float]:
        """Write the sums since the last checkpoint as its tables. Collective. Returns the mean loss of each split.

        Where `log` was not called since the last checkpoint, the mean loss of split "train" becomes a row of the curve.
        Raises on every rank what goes wrong on rank 0, but for a full disk: then the rows are kept, tried again at the next
        checkpoint, and a warning says so.
        """
        started = time.monotonic()
        sums = self._reduced()
        means = {split: float(s[1].sum() / s[0].sum()) for split, s in sums.items() if s[0].sum() > 0}
        self._agree(lambda: self._write(step, tokens, lr, sums, means, started))
        self._sums, self._evaluations, self.tokens = {}, [], tokens
        return means

    def close(self) -> None:
        """Write what is left. Raises RunError where the disk refuses it. Collective no more: any rank may close alone."""
        self._close(0, "closed")

    def _close(self, code: int, reason: str) -> None:
        log, self._log = self._log, None
        with self._lock:
            if log is not None:
                end_session(self.path, code, reason)
            if log is not None and (problem := log.close()):
                raise RunError(problem)

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close(0 if error is None else exit_code(error), "closed" if error is None else describe(error))

    def __repr__(self) -> str:
        return f"Recorder({str(self.path)!r}, run={self.header['run']!r}, tokens={self.tokens:,})"

    # ---------------------------------------------------------------------------------------------------------- rank 0

    @property
    def _run_log(self) -> RunLog:
        if self._log is None:
            raise InputError(f"{self.path}: this Recorder is closed; make another with step=")
        return self._log

    def _open(self, step: int | None) -> None:
        """Check what the directory holds, and open its log at `step`."""
        for name in ("params", "sequence"):
            if not isinstance(self.header[name], int) or self.header[name] < 1:
                raise InputError(f"Recorder({name}={self.header[name]!r}): give a whole number from 1 on")
        note = self._lock.enter_context(files.lock(self.path, busy=BUSY, other="path"))
        if note:
            warnings.warn(note, stacklevel=4)
        before = Metrics.read(self.path) if (self.path / "metrics.jsonl").is_file() else None
        if before is not None and step != 0:
            self._check_continues(before, step)
        with files.named_errors(self.path):
            for folder in ("positions", "evaluations"):
                (self.path / folder).mkdir(exist_ok=True)
        header = {name: value for name, value in self.header.items() if value is not None}
        self._log = RunLog(self.path, header, step or 0, [])
        add_session(self.path, {"started": now()})
        tokens = self._log.take_read_back().train("tokens")
        self.tokens = int(tokens[-1]) if len(tokens) else 0

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
                f"{self.path}: is a run of {name} {old.get(name)!r}, not {self.header[name]!r}; choose another path, or step=0 "
                f"to start over"
            )
        if step > last:
            raise InputError(
                f"{self.path}: its rows end at step {last}, so step {step} cannot be resumed; give step={last}"
            )

    def _write(
        self,
        step: int,
        tokens: int,
        lr: float | None,
        sums: dict[str, Tensor],
        means: dict[str, float],
        started: float,
    ) -> None:
        if step <= self._written:
            raise InputError(f"{self.path}: checkpoint {step} follows checkpoint {self._written}; steps must increase")
        if not means:
            raise InputError(f"{self.path}: checkpoint {step} has no losses; call add() or validate() before it")
        if self._evaluations and "iid" not in means:
            raise InputError(
                f"{self.path}: task results need the loss on held-out text beside them; call validate(), or add(split='iid')"
            )
        header, key = self.header, {"step": step, "tokens": tokens}
        tables = [position_rows(sums[split], split) for split in sorted(means)]
        table = pd.concat(tables, ignore_index=True).assign(run=header["run"], params=header["params"], **key)
        self._run_log.positions(step, table)
        if self._evaluations:
            rows = pd.DataFrame(self._evaluations).assign(
                run=header["run"], params=header["params"], loss=means["iid"], **key
            )
            self._run_log.evaluations(step, rows.astype({"stderr": float, "items": "Int64", "chance": float}))
        if "train" in means and (self._logged is None or self._logged[0] <= self._written):
            self.log(step, tokens, means["train"], lr)
        self._run_log.write("validation", **key, seconds=round(time.monotonic() - started, 3), loss=means)
        self._written = step
        if problem := self._run_log.flush():
            warnings.warn(f"{problem}; the rows are kept and tried again at the next checkpoint", stacklevel=4)

    # ------------------------------------------------------------------------------------------------------- all ranks

    def _reduced(self) -> dict[str, Tensor]:
        """[4, T] sums of each split over all ranks; a rank may lack some."""
        if not self._distributed:
            return {split: of.sums for split, of in self._sums.items()}
        names: list[list[str]] = [[] for _ in range(dist.get_world_size(self.group))]
        dist.all_gather_object(names, sorted(self._sums), group=self.group)
        device = torch.device("cuda") if dist.get_backend(self.group) == "nccl" else torch.device("cpu")
        reduced = {}
        for split in sorted({name for of_rank in names for name in of_rank}):
            own = self._sums.get(split) or PositionAccumulator(self.sequence, device)
            reduced[split] = own.sums.to(device, copy=True)
            dist.all_reduce(reduced[split], group=self.group)
        return reduced

    def _agree(self, write: Callable[[], None]) -> None:
        """Call `write` on rank 0; all ranks raise what it raises."""
        failure = attempt(write)[1] if self._is_writer else None
        if self._distributed:
            lines = [None if failure is None else (exit_code(failure), describe(failure))]
            dist.broadcast_object_list(
                lines, src=dist.get_global_rank(self.group, 0) if self.group else 0, group=self.group
            )
            if lines[0] is not None and failure is None:
                raise repeat(*lines[0])
        if failure is not None:
            raise failure


def _logits(output: Any) -> Tensor:
    logits = getattr(output, "logits", output)
    if not isinstance(logits, Tensor) or logits.ndim != 3:
        raise InputError(
            f"the model returned {type(logits).__name__}, not logits [B, T, V] or an object with .logits; wrap it in a function "
            f"that returns them"
        )
    return logits
