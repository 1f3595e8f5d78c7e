"""The GPUs that a plan knows, from their vendor's data sheets; docs/how-to/plan.md names the sources."""

from dataclasses import dataclass

from emergence_train.models.flops import PEAK_BF16


@dataclass(frozen=True)
class Gpu:
    """A kind of GPU as it is built into nodes of eight. Rates are dense, memory and links of one direction."""

    memory: int  # bytes, as CUDA reports them
    capability: int  # compute capability, major
    bf16: float  # FLOP/s of matrix products
    fp8: float | None  # likewise; None: it has none
    fp32: float  # likewise, without TF32
    bandwidth: float  # of its memory, bytes/s
    nvlink: float  # to the other GPUs of the node, bytes/s
    network: float  # the GPU's share of the node's network, bytes/s


_GIB = 2**30
GPUS = {
    "a100-40gb": Gpu(int(39.39 * _GIB), 8, PEAK_BF16["A100"], None, 19.5e12, 1.555e12, 300e9, 25e9),
    "a100-80gb": Gpu(int(79.15 * _GIB), 8, PEAK_BF16["A100"], None, 19.5e12, 2.039e12, 300e9, 25e9),
    "h100-80gb": Gpu(int(79.10 * _GIB), 9, PEAK_BF16["H100"], 1979e12, 67e12, 3.35e12, 450e9, 50e9),
    "h200-141gb": Gpu(int(139.72 * _GIB), 9, PEAK_BF16["H200"], 1979e12, 67e12, 4.8e12, 450e9, 50e9),
}
