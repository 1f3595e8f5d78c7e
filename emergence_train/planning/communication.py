"""Bytes that each GPU sends in an optimizer step, by ZeRO stage.

As DeepSpeed 0.19 does it here; tests/planning/test_communication.py counts the collectives of real engines. P parameters of s
bytes in a step (2 in bf16), m micro-batches:

    stage        gradients                          weights, after the update
    0            all-reduce of 4 P                  none
    1            all-reduce of 4 P                  all-gather of s P
    1, main      reduce-scatter of 4 P              all-gather of s P
    2            m times all-reduce of s P          all-gather of s P
    3            m times reduce-scatter of s P      m times all-gather of s P, and again in the backward pass of what is over 1e9

Main gradients (training/main_gradients.py) are those of stage 1 with AdamW in bf16 on GPUs.

With hierarchical partitions (hpZ, arXiv 2306.10209) the weights are gathered once a step over all GPUs, by the first forward
pass, and from then on over the GPUs that share the second copy. Quantised gathering (the same paper's qwZ) sends int8 and a
float32 scale for each 8,000 elements, whatever s is; gradients stay as they are.

Over r GPUs a ring sends (r - 1) / r of the bytes in a gathering or a scattering, and twice that in an all-reduce. GPUs that share
sequences exchange attention's inputs and outputs besides: all-to-all, which sends (S - 1) / S of them over S GPUs.
"""

from emergence_train.models.memory import MOST_GATHERED

QUANTIZED = 1 + 4 / 8000  # bytes of an element in a quantised gathering


def gathered(parameters: int) -> int:
    """Elements that ZeRO-3 gathers for a micro-batch: for the forward pass all, for the backward pass what it could not keep."""
    return parameters + max(0, parameters - MOST_GATHERED)


def bytes_per_step(
    parameters: int,
    size: int,
    stage: int,
    ranks: int,
    micro_batches: int,
    hpz: int = 1,
    gathered_size: float | None = None,
    main_gradients: bool = False,
) -> float:
    """Sent by each GPU over all of them: as many as it receives.

    Args:
        size: bytes of a parameter in a step. ranks: that share the batch. micro_batches: of each, in a step.
        hpz: GPUs that share a second copy of the weights; what is gathered over those alone is gathered_inside's.
        gathered_size: bytes of a parameter in a gathering of stage 3; None: as in a step.
    """
    ring = (ranks - 1) / ranks
    if stage == 3:
        over_all = parameters if hpz > 1 else micro_batches * gathered(parameters)
        return ring * ((gathered_size or size) * over_all + size * micro_batches * parameters)
    reduced = 4 * parameters if stage < 2 else micro_batches * size * parameters
    return ring * ((1 if main_gradients else 2) * reduced + (size * parameters if stage else 0))


def gathered_inside(parameters: int, size: float, micro_batches: int, hpz: int) -> float:
    """Bytes that each GPU sends to the others that share the second copy of the weights."""
    return (hpz - 1) / hpz * size * (micro_batches * gathered(parameters) - parameters)


def exchanged_per_step(elements: int, size: int, ranks: int, tokens: float, checkpointing: str) -> float:
    """Bytes that each of `ranks` sharing sequences sends for attention.

    Args:
        elements: of a token in a pass (ModelConfig.exchanged), of `size` bytes. tokens: that a GPU has of a step.
        checkpointing: full runs the forward pass twice.
    """
    return (ranks - 1) / ranks * elements * size * tokens * (3 if checkpointing == "full" else 2)
