"""Whether a step fits a GPU's memory, by the model of memory (models.memory)."""

from emergence_train.config import Training
from emergence_train.models.config import ModelConfig
from emergence_train.models.memory import StepMemory, evaluation_bytes, step_memory

# Of a GPU's memory. The rest is for the CUDA context, NCCL, what the allocator cannot use, and the model's errors.
SHARE = 0.9


def memory_of(
    training: Training, model: ModelConfig, sequence: int, ranks: int, micro_batch: int, capability: int
) -> StepMemory:
    """The memory of a step by the section `training`, with `micro_batch` in the place of its own; `ranks`: all of them."""
    return step_memory(
        model,
        sequence,
        micro_batch,
        checkpointing=training.activation_checkpointing,
        precision=training.precision,
        linears=training.linears,
        zero_stage=training.zero_stage,
        ranks=ranks,
        sequence_ranks=training.sequence_parallel,
        moments=training.optimizer.moments,
        capability=capability,
        hpz=training.zero.hpz_partition_size,
        quantized=training.zero.quantized_weights,
        optimizer_on_host=training.zero.offload_optimizer != "none",
        weights_on_host=training.zero.offload_param != "none",
    )


def needed_bytes(
    training: Training, model: ModelConfig, sequence: int, ranks: int, micro_batch: int, capability: int
) -> float:
    """Of a step, and of validation beside it: a CUDA graph keeps its memory."""
    step = memory_of(training, model, sequence, ranks, micro_batch, capability)
    return step.total + evaluation_bytes(model, sequence, micro_batch, training.precision, training.sequence_parallel)


def divisors(number: int) -> list[int]:
    """The greatest first."""
    return [size for size in range(number, 0, -1) if number % size == 0]
