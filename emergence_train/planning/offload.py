"""What offloading to the host takes: memory there, bytes over PCIe, and seconds of the update.

As DeepSpeed 0.19 does it (zero/stage_1_and_2.py, stage3.py); tests/planning/test_offload.py counts the tensors of real engines.
P parameters of s bytes in a step, r ranks, m micro-batches, n moments; bytes of a rank, each divided by r:

    on the host    optimizer: 4 (1 + n) P; gradients: 4 P for the update, and between micro-batches stage 2 keeps s P where m > 1,
                   stage 3 another 4 P; weights: s P, a buffer of the update at stage 2, the weights themselves where they
                   are offloaded
    to the host    stage 2: 4 P once, and s P each micro-batch where m > 1; stage 3: 4 P each micro-batch
    to the GPU     what the second micro-batch and later ones add to; s P of updated weights, or where the weights are offloaded
                   s P for every gathering

The split into transfer and update on the host is ZeRO-Offload's (arXiv 2101.06840). No speed here was measured: rates are data
sheets', the shares of them conventions, and nothing is taken to overlap, so that the time is on the long side.
"""

from dataclasses import dataclass

from emergence_train.models.devices import Host
from emergence_train.models.memory import NVME_BUFFERS, NVME_GROUP
from emergence_train.planning.communication import gathered
from emergence_train.planning.step_time import LINK_SHARE

DRIVE = 7.9e9  # bytes/s in a direction: one drive a GPU, on four lanes of PCIe 4.0
HOST_SHARE = 0.5  # of the host memory's bandwidth, by an update in one pass: a convention, not measured


@dataclass(frozen=True)
class Offload:
    """Of a GPU: bytes of host memory, bytes sent in a step, seconds of a step."""

    optimizer: float = 0.0
    gradients: float = 0.0
    weights: float = 0.0
    to_host: float = 0.0
    to_gpu: float = 0.0
    on_disk: float = 0.0  # bytes of files on NVMe
    from_disk: float = 0.0  # read there in a step
    to_disk: float = 0.0  # written
    seconds: float = 0.0

    @property
    def memory(self) -> float:
        return self.optimizer + self.gradients + self.weights


def offload_cost(
    parameters: int,
    size: int,
    stage: int,
    ranks: int,
    micro_batches: int,
    moments: int,
    host: Host,
    *,
    weights: bool,
    disk: bool = False,
) -> Offload:
    """What a step takes of the host where the optimizer's state is there; `weights`: the rank's weights too (stage 3).
    `disk`: the state in files on NVMe (stage 3), of which groups pass through buffers on the host.

    Args:
        size: bytes of a parameter in a step. ranks: that share the optimizer.
        moments: float32 numbers that it keeps of a parameter.
    """
    own, again = parameters / ranks, micro_batches - 1
    between = 4 if stage == 3 else size * (micro_batches > 1)  # bytes of a gradient that waits for the next micro-batch
    to_host = 4 * micro_batches if stage == 3 else 4 + between * micro_batches
    to_gpu = own * between * again + size * (gathered(parameters) / ranks * micro_batches if weights else own)
    # The update reads gradients, reads and writes weights and moments; clipping scales the gradients; the weights are cast.
    update = own * ((12 + 8 * moments) + 8 + (4 + size))
    seconds = (own * to_host + to_gpu) / (LINK_SHARE * host.pcie) + update / (HOST_SHARE * host.bandwidth)
    state, gradients = own * 4 * (1 + moments), own * (4 + between)
    on_disk = from_disk = to_disk = 0.0
    if disk:
        # The update reads state and gradients and writes the state; the last micro-batch's backward pass writes gradients.
        on_disk = from_disk = to_disk = state + 4 * own
        state, gradients = 4 * NVME_BUFFERS * min(own, NVME_GROUP), own * between
        seconds += (from_disk + to_disk) / (LINK_SHARE * DRIVE)
    return Offload(
        optimizer=state,
        gradients=gradients,
        weights=own * size if weights or stage < 3 else 0.0,
        to_host=own * to_host,
        to_gpu=to_gpu,
        on_disk=on_disk,
        from_disk=from_disk,
        to_disk=to_disk,
        seconds=seconds,
    )
