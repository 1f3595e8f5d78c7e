"""Seconds of an optimizer step: a roofline with three measured efficiencies a GPU.

    products    FLOPs of the matrix products / (share of the peak that they reach)
    attention   FLOPs of attention / (share of the peak)
    traffic     bytes that everything else reads and writes / (share of the memory's bandwidth)
    exposed     communication that nothing hides

The four add up: a GPU does one thing at a time, and communication overlaps at stage 3, where a step takes at least as long as
it, and where main gradients are reduced during the last backward pass (training/early_reduction.py). Widths matter by
themselves: traffic grows with the width, products with its square. benchmarks/studies/plan_published.py scores the model on
steps that it was not fitted to.
"""

from dataclasses import dataclass

from emergence_train.models.config import Work
from emergence_train.models.devices import Gpu
from emergence_train.models.reduced_parts import LEAST_REDUCED, REDUCED_PARTS

NODE = 8  # GPUs
# Of a link's rate, by collectives of large tensors. A convention: no step of several nodes was measured.
LINK_SHARE = 0.8


@dataclass(frozen=True)
class StepTime:
    """Seconds of an optimizer step, by what takes them."""

    products: float
    attention: float
    traffic: float
    optimizer: float
    exposed: float  # communication that is not hidden
    offload: float = 0.0  # transfers to and from the host, and the update there

    @property
    def total(self) -> float:
        return self.products + self.attention + self.traffic + self.optimizer + self.exposed + self.offload


def device_seconds(work: Work, tokens: float, peak: float, gpu: Gpu, fp8: bool = False) -> StepTime:
    """Of forward and backward passes over `tokens` tokens on a GPU; `fp8`: two of three products of the blocks run in it."""
    products = work.blocks / peak
    if fp8 and gpu.fp8:
        products = products / 3 + 2 / 3 * work.blocks / gpu.fp8
    return StepTime(
        tokens * (products + work.head / peak) / gpu.efficiency.products,
        tokens * work.attention / (peak * gpu.efficiency.attention),
        tokens * work.traffic / (gpu.bandwidth * gpu.efficiency.bandwidth),
        optimizer=0,
        exposed=0,
    )


def optimizer_seconds(
    parameters: int,
    size: int,
    moments: int,
    stage: int,
    ranks: int,
    micro_batches: int,
    gpu: Gpu,
) -> float:
    """The update reads and writes float32 weights and moments, reads gradients and writes weights of `size` bytes, on the rank's
    share; every micro-batch adds to float32 gradients, and the step zeroes them."""
    share = 1 / ranks if stage else 1
    update = parameters * share * (12 + 8 * moments + (size if stage else 0))
    gradients = parameters * (share if stage > 1 else 1) * (8 * micro_batches + 4)
    return (update + gradients) / (gpu.bandwidth * gpu.efficiency.bandwidth)


def quantizing_seconds(elements: float, size: int, gpu: Gpu) -> float:
    """Of gathering `elements` as int8: each is read as such, written and read as float16, and written with `size` bytes."""
    return elements * (1 + 2 + 2 + size) / (gpu.bandwidth * gpu.efficiency.bandwidth)


def link_seconds(sent: float, ranks: int, gpu: Gpu) -> float:
    """Of `sent` bytes a GPU over a ring. One over several nodes crosses into each of them once, by all of its GPUs' networks."""
    link = gpu.nvlink if ranks <= NODE else min(gpu.nvlink, NODE * gpu.network)
    return sent / (LINK_SHARE * link)


def exposed_seconds(
    sent: float, ranks: int, gpu: Gpu, stage: int, computing: float, inside: float = 0.0, hpz: int = 1
) -> float:
    """Communication that `computing` seconds of passes do not hide: `sent` bytes a GPU over all `ranks`, `inside` over `hpz`."""
    seconds = link_seconds(sent, ranks, gpu) + link_seconds(inside, hpz, gpu)
    return max(0.0, seconds - computing) if stage == 3 else seconds


def hidden_seconds(reduced: float, ranks: int, gpu: Gpu, computing: float, late: float) -> float:
    """Of the reduction of main gradients, `reduced` bytes a GPU, what the backward pass of the last micro-batch hides.

    `computing`: seconds of both passes of a micro-batch, of which the backward pass is two thirds. `late`: share of the
    gradients that is complete at its end alone.
    """
    return min(2 / 3 * computing, (1 - late) * link_seconds(reduced, ranks, gpu))


def late_share(parameters: int, embedding: int) -> float:
    """Of main gradients, what is complete with the backward pass alone: the embedding's and, of REDUCED_PARTS, the first blocks'
    (training/early_reduction.py, which rounds up to whole blocks); all of them where the model is too small to divide."""
    if parameters < 2 * LEAST_REDUCED:
        return 1.0
    return min(1.0, embedding / parameters + 1 / REDUCED_PARTS)
