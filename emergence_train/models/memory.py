"""The memory of a training step on one device, in closed form: training.micro_batch auto and plans choose by it.

A step is fullest at one of three moments: while the head computes the loss, when every block's activations are kept; in the
backward pass of the last block; or, with very small micro-batches, in the optimizer's step. Static bytes of a parameter, with r
ranks (tests/models/test_memory.py counts the tensors of real engines and the bytes of real forward passes):

    ZeRO stage              weights   gradients            optimizer: float32 weights and moments
    0, fp32                 4         4                    8
    1, fp32                 4         4                    12 / r
    1, bf16                 2         4                    12 / r
    2                       2 or 4    4 / r                12 / r
    3                       2/r, 4/r  4 / r                12 / r

Stage 0 on several ranks, 2 in fp32 and 3 join their gradients once more for the optimizer's step; all but 0, and 1 in bf16,
collect them in a bucket; at stage 3 gathered weights stay until that step, up to DeepSpeed's 1e9. Not counted: what PyTorch does
not allocate (CUDA's context, NCCL).
"""

import importlib.util
import os
import runpy
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from emergence_train.models.config import ModelConfig

GIB = 2**30
# PyTorch keeps 32 MiB for cuBLAS on Hopper, less elsewhere, on each of the streams that use it: two with CUDA graphs.
PRODUCTS = 2 * 2**25
MOST_BUCKET, LEAST_BUCKET = 500_000_000, 250_000  # elements; the greater is DeepSpeed's default
MOST_GATHERED = 1_000_000_000  # elements: stage3_max_live_parameters
NVME_GROUP = 100_000_000  # elements of a rank that are updated at a time where the optimizer's state is on NVMe
NVME_BUFFERS = 5  # each of a group's size: weights, two moments, gradients, and one in which gradients are collected
MOST_PREFETCH = 50_000_000  # elements that stage 3 gathers at once: DeepSpeed's default


@dataclass(frozen=True)
class StepMemory:
    """Bytes on one device where a step is fullest."""

    weights: float
    gradients: float
    optimizer: float
    activations: float  # kept from the forward to the backward pass
    logits: float  # a chunk of them, and the gradient of the head's weight
    workspace: float

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.activations + self.logits + self.workspace


def bucket_elements(parameters: int) -> int:
    """Elements of DeepSpeed's buckets for a model of so many parameters.

    A bucket of the default 5e8 elements is 2 GB on every rank, whatever the model. Four hold this one's gradients, so that
    sending one can overlap with computing the next; below a MB there is nothing to gain.
    """
    return min(MOST_BUCKET, max(LEAST_BUCKET, -(-parameters // 4)))


def step_memory(
    model: ModelConfig,
    sequence: int,
    micro_batch: int,
    *,
    checkpointing: str = "none",
    precision: str = "bf16",
    linears: str = "bf16",
    zero_stage: int = 1,
    ranks: int = 1,
    sequence_ranks: int = 1,
    moments: int = 2,
    capability: int = 9,
    hpz: int = 1,
    quantized: bool = False,
    optimizer_on_host: bool = False,
    weights_on_host: bool = False,
) -> StepMemory:
    """The memory of a step.

    Args:
        model: with its vocabulary known. micro_batch: sequences of `sequence` tokens.
        checkpointing, precision, linears, zero_stage: as in the section `training`. ranks: that share the optimizer.
        sequence_ranks: of them, that share a sequence.
        moments: float32 numbers that the optimizer keeps of a parameter. capability: the device's compute capability (major).
        hpz: over how many ranks a second copy of the weights is partitioned; 1: there is none.
        quantized: weights are gathered as int8, at stage 3.
        optimizer_on_host: its state is, and with it the gradients that wait for it; weights_on_host: the rank's weights too.
    """
    parameters, size = model.parameters(), 2 if precision == "bf16" else 4
    tokens = micro_batch * sequence // sequence_ranks
    weights, gradients, optimizer = _static(parameters, size, zero_stage, ranks, moments)
    if optimizer_on_host:
        gradients, optimizer = 0 if zero_stage > 1 else gradients, 0
    static = (0 if weights_on_host else weights) + (size * parameters / hpz if hpz > 1 else 0), gradients, optimizer
    # a weight that is larger than the bucket is one by itself
    collected = max(bucket_elements(parameters), model.vocabulary * model.hidden)
    bucket = size * collected if zero_stage > (size == 2) else 0
    joined = static[1] if zero_stage == 3 or (zero_stage == 2 and size == 4) else 0
    if zero_stage == 0 and ranks > 1:
        joined = 4 * min(parameters, MOST_BUCKET)
    gathered = size * min(parameters, MOST_GATHERED) if zero_stage == 3 and ranks > 1 else 0
    kept, space = model.activations(checkpointing, size, linears, sequence_ranks), PRODUCTS + bucket
    if quantized and gathered:  # what is gathered at once as int8, and as float16 before it is cast
        space += (1 + 2) * max(min(bucket_elements(parameters), MOST_PREFETCH), model.vocabulary * model.hidden)
    if optimizer_on_host and zero_stage < 3:
        space += size * model.vocabulary * model.hidden  # a buffer as large as the largest parameter
    if linears == "fp8" and zero_stage < 3:
        space += 2 * model.non_embedding_parameters()  # held by rows and by columns
    of_head, of_blocks = (kept.blocks + kept.head) * tokens, kept.blocks * tokens
    moments_of_a_step: Iterable[StepMemory] = (
        StepMemory(*static, of_head, _logits(model, tokens, size, capability), space + gathered),
        StepMemory(*static, of_blocks, 0, space + gathered + kept.backward * tokens),
        StepMemory(*static, 0, 0, space + joined),
    )
    return max(moments_of_a_step, key=lambda moment: moment.total)


def evaluation_bytes(
    model: ModelConfig, sequence: int, micro_batch: int, precision: str = "bf16", sequence_ranks: int = 1
) -> float:
    """The workspace of a forward pass without gradients; a CUDA graph's memory is not lent to it."""
    kept = model.activations("none", 2 if precision == "bf16" else 4, sequence_ranks=sequence_ranks)
    return kept.forward * micro_batch * sequence / sequence_ranks


def _static(parameters: int, size: int, stage: int, ranks: int, moments: int) -> tuple[float, float, float]:
    """-> weights, gradients, optimizer: the table above."""
    weights, gradients, share = parameters * size, parameters * 4, 1 / ranks
    if stage == 0:
        return weights, gradients, parameters * 4 * moments
    optimizer = parameters * 4 * (1 + moments) * share
    return weights * (share if stage == 3 else 1), gradients * (share if stage > 1 else 1), optimizer


def _logits(model: ModelConfig, tokens: int, size: int, capability: int) -> float:
    """A chunk of float32 logits, and the gradient of the head's weight, which is summed over chunks in float32."""
    chunks = _logit_chunks()
    row = 4 * chunks["padded"](model.vocabulary)
    rows = chunks["equal_rows"](
        tokens, chunks["CHUNK_BYTES"][chunks["table_of"](capability)] // row, chunks["CHUNK_MULTIPLE"]
    )
    return rows * row + model.vocabulary * model.hidden * (size if rows >= tokens else 4)


@cache
def _logit_chunks() -> dict:
    """What emergence_kernels' logit_chunks.py defines. It is read by itself: importing the package takes torch, seconds."""
    spec = importlib.util.find_spec("emergence_kernels")
    assert spec and spec.submodule_search_locations
    return runpy.run_path(os.path.join(spec.submodule_search_locations[0], "backends", "logit_chunks.py"))
