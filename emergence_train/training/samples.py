"""A step's samples: read by a thread while the GPU computes the step before, in the order that the step number alone decides.

What a thread reads follows from the number of the batch and from what the parent of the run had skipped. A rewind changes which
batch a step trains on, so a step takes what was read ahead only where that is its batch, and reads its own otherwise.
"""

import contextlib
import threading
from functools import partial

import numpy as np
import torch

from emergence_train.data.dataset import Dataset
from emergence_train.errors import attempt
from emergence_train.faults.anomalies import SkippedBatches
from emergence_train.models.language_model import IGNORED
from emergence_train.parallel.mesh import Mesh

# Tokens, targets, and with a document mask documents' numbers
Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]


class Samples:
    """This rank's micro-batches of each step: tokens and targets of its own positions, documents' numbers of all.

    Args:
        batch: sequences of a step, over all ranks; micro_batch: of them in each micro-batch.
        ahead: read the next step's in a thread. Not on a CPU, which has nothing else to compute with.
    """

    def __init__(
        self,
        dataset: Dataset,
        skipped: SkippedBatches,
        mesh: Mesh,
        *,
        batch: int,
        micro_batch: int,
        document_mask: bool,
        ahead: bool,
    ) -> None:
        self.dataset, self.skipped, self.mesh = dataset, skipped, mesh
        self.batch, self.micro_batch, self.document_mask, self.ahead = batch, micro_batch, document_mask, ahead
        self.rounds = batch // (micro_batch * mesh.data.size)
        self.reading: _Reading | None = None

    def __call__(self, step: int) -> list[Batch]:
        """On the device; copies from pinned memory do not wait for it. Raises what reading them raised, in a thread or here."""
        number = self.skipped.batch(step)
        batches = self._taken(number) or self._read(number)
        on_device = [self._to_device(batch) for batch in batches]
        if self.ahead:
            number = self.skipped.batch(step + 1)
            self.reading = _Reading(number, partial(self._read, number))
        return on_device

    def _taken(self, number: int) -> list[Batch] | None:
        """What was read ahead, if it is this batch; no thread runs afterwards."""
        reading, self.reading = self.reading, None
        if reading is None:
            return None
        batches = reading.result()
        return batches if reading.number == number else None

    def _read(self, number: int) -> list[Batch]:
        """The micro-batches of batch `number`, on the host."""
        with torch.cuda.device(self.mesh.device) if self.mesh.device.type == "cuda" else contextlib.nullcontext():
            return [self._load(number, turn) for turn in range(self.rounds)]

    def _load(self, number: int, turn: int) -> Batch:
        begin = (turn * self.mesh.data.size + self.mesh.data.rank) * self.micro_batch
        samples = [self.skipped.sample(number, place, self.batch) for place in range(begin, begin + self.micro_batch)]
        windows = torch.from_numpy(np.stack([self.dataset.sample(index) for index in samples]))
        tokens, targets, ids = windows[:, :-1].contiguous(), windows[:, 1:].contiguous(), None
        if self.document_mask:
            numbers = torch.from_numpy(np.stack([self.dataset.document_ids(index) for index in samples]))
            # Nothing before it says which document comes next. Not in place: of one sample both are views of its window.
            targets = targets.masked_fill(numbers[:, 1:] != numbers[:, :-1], IGNORED)
            ids = self._pinned(numbers[:, :-1].contiguous())
        own = self.mesh.own_positions(self.dataset.sequence)
        tokens, targets = tokens[:, own].contiguous(), targets[:, own].contiguous()
        return self._pinned(tokens), self._pinned(targets), ids

    def _pinned(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.pin_memory() if self.mesh.device.type == "cuda" else tensor

    def _to_device(self, batch: Batch) -> Batch:
        tokens, targets, ids = batch
        to = partial(torch.Tensor.to, device=self.mesh.device, non_blocking=True)
        return to(tokens), to(targets), None if ids is None else to(ids)


class _Reading:
    """A thread that reads one batch and ends."""

    def __init__(self, number: int, read: "partial[list[Batch]]") -> None:
        self.number = number
        self.thread = threading.Thread(target=self._run, args=(read,), name="samples", daemon=True)
        self.thread.start()

    def _run(self, read: "partial[list[Batch]]") -> None:
        self.outcome = attempt(read)

    def result(self) -> list[Batch]:
        self.thread.join()
        batches, error = self.outcome
        if error is not None:
            raise error
        assert batches is not None
        return batches
