"""One optimizer step: this rank's samples, forward and backward of its micro-batches, the update, and the sums of the loss.

No synchronisation with a GPU unless spikes are skipped: numbers are returned as tensors and read a step later.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from emergence_train.config import Faults, Training
from emergence_train.data.dataset import Dataset
from emergence_train.faults.anomalies import AnomalyDetector, SkippedBatches
from emergence_train.faults.operations import LAST
from emergence_train.faults.watchdog import Watchdog
from emergence_train.models.language_model import IGNORED
from emergence_train.parallel.mesh import Mesh
from emergence_train.parallel.ranks import all_reduce_sum
from emergence_train.recorder.position_sums import PositionAccumulator
from emergence_train.training import fp8
from emergence_train.training.main_gradients import step_applied
from emergence_train.training.micro_batch import MicroBatch
from emergence_train.training.position_weights import weight_vector
from emergence_train.training.samples import Samples


class Stepper:
    """One optimizer step: micro-batches, gradients, update, and the sums of the loss."""

    def __init__(
        self,
        training: Training,
        faults: Faults,
        engine: Any,
        dataset: Dataset,
        mesh: Mesh,
        accumulator: PositionAccumulator,
        skipped: SkippedBatches,
        detector: AnomalyDetector,
        watch: Watchdog,
        graphs: bool,
        log: Callable[[str], None] = print,
    ) -> None:
        self.engine, self.mesh, self.at, self.detector = engine, mesh, watch.at, detector
        self.document_mask = training.document_mask
        self.samples = Samples(
            dataset,
            skipped,
            mesh,
            batch=training.batch,
            micro_batch=training.micro_batch_size,
            document_mask=training.document_mask,
            ahead=mesh.device.type == "cuda",
        )
        self.rounds = self.samples.rounds
        weights = weight_vector(training.position_weights, dataset.sequence)
        self.weights = None if weights is None else weights[mesh.own_positions(dataset.sequence)].to(mesh.device)
        # None: DeepSpeed clips. 0: no clipping, but the norm is computed.
        self.clip = (training.optimizer.clip or math.inf) if training.zero_stage == 0 else None
        self.parameters = list(engine.module.parameters())
        self.skip_spikes = faults.spike == "skip"
        # At stage 3 a weight is whole in its layer's own passes only, and is rounded there.
        self.fp8_weights = fp8.HeldWeights(fp8.layers(engine.module) if training.zero_stage < 3 else [])
        self.micro_batch = MicroBatch(
            engine,
            accumulator,
            self.weights,
            training.z_loss,
            sequence=mesh.sequence,
            graphs=graphs,
            log=log,
        )

    def __call__(
        self, step: int, lr: float, stop: bool
    ) -> tuple[torch.Tensor, torch.Tensor | float | None, torch.Tensor | bool]:
        """-> ([count, loss sum, requests to stop] over all ranks, global gradient norm, whether the step was applied)."""
        for group in self.engine.optimizer.param_groups:
            group["lr"] = lr
        self.at("loading samples", step)
        batches = self.samples(step)
        scales = self._scales(batches)
        norm: torch.Tensor | float | None = None
        applied: torch.Tensor | bool = True
        totals = torch.zeros(3, dtype=torch.float64, device=self.mesh.device)
        if stop:  # any process of the launch may request a stop, so the totals are reduced over the world
            totals[2].fill_(1.0)
        with self.fp8_weights:
            for number, ((tokens, targets, document_ids), scale) in enumerate(zip(batches, scales)):
                if self.skip_spikes and number == self.rounds - 1:
                    self.at("forward", step)
                    totals = self._unless_spike(totals, tokens, targets, document_ids, scale)
                else:
                    at = partial(self.at, step=step)
                    totals[:2].add_(self.micro_batch(tokens, targets, document_ids, scale, at))
                self.at("optimizer step", step)
                if self.clip is not None and self.engine.is_gradient_accumulation_boundary():
                    norm, applied = self._clip(self.clip)
                self.engine.step()
        self.micro_batch.step_done()
        if self.clip is None:
            norm, applied = self.engine.get_global_grad_norm(), step_applied(self.engine)
        self.at(LAST, step)
        return totals if self.skip_spikes else all_reduce_sum(totals, self.mesh.world), norm, applied

    def _clip(self, most: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Clip the gradients' norm to `most`; return the norm before, and whether it is finite: if not, the step is skipped."""
        norm = get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        finite, optimizer = norm.isfinite(), self.engine.optimizer
        if self.mesh.device.type != "cpu" and optimizer.defaults.get("fused"):
            clip_grads_with_norm_(self.parameters, most, norm)
            optimizer.found_inf = (~finite).float()  # torch's fused optimizers then skip the step, and nothing waits
        elif not finite:
            for parameter in self.parameters:
                parameter.grad = None  # which every optimizer leaves as it is
        elif norm > most:
            clip_grads_with_norm_(self.parameters, most, norm)
        return norm, finite

    def _unless_spike(
        self,
        totals: torch.Tensor,
        tokens: torch.Tensor,
        targets: torch.Tensor,
        document_ids: torch.Tensor | None,
        scale: torch.Tensor | None,
    ) -> torch.Tensor:
        """Run the last micro-batch of a step that is skipped where its loss is a spike; return totals over all ranks."""
        loss, own = self.micro_batch.forward(tokens, targets, document_ids)
        totals[:2].add_(own)
        totals = all_reduce_sum(totals, self.mesh.world)
        loss = loss if scale is None else loss * scale
        # Every optimizer of DeepSpeed skips a step whose gradient is not finite.
        spike = self.detector.spike((totals[1] / totals[0]).item())
        self.engine.backward(loss * math.nan if spike else loss)
        return totals

    def _scales(self, batches: list) -> list:
        """Factors that make the mean of the micro-batches' means the mean over the global batch.

        All 1 (None) unless they differ in what they weigh: in their number of targets where documents are masked, in the weights
        of their positions where ranks share sequences.
        """
        split = self.mesh.sequence.size > 1 and self.weights is not None
        if not self.document_mask and not split:
            return [None] * len(batches)
        valid = torch.stack([self._weight(targets) for _, targets, _ in batches])
        total = all_reduce_sum(valid.sum(), self.mesh.gradients)
        return list(valid * (self.rounds * self.mesh.gradients.size) / total)

    def _weight(self, targets: torch.Tensor) -> torch.Tensor:
        counted = (targets != IGNORED).double()
        return (counted if self.weights is None else counted * self.weights).sum()
