"""GPUs and their hosts by their vendor's data sheets, and the shares of the rates that are reached: all that a plan knows of one.

docs/how-to/plan.md names the sources. How many FLOPs a model takes, its own section says (config.py).
"""

from dataclasses import dataclass

_GIB = 2**30


@dataclass(frozen=True)
class Efficiency:
    """Shares that are reached: of the peak by matrix products and by attention, of the memory's bandwidth by all else."""

    products: float
    attention: float
    bandwidth: float


@dataclass(frozen=True)
class Host:
    """A GPU's share of its node's host, from the vendor's data sheets of the node (docs/how-to/plan.md)."""

    memory: float  # bytes
    bandwidth: float  # of its memory, bytes/s
    pcie: float  # to and from the GPU, a direction, bytes/s


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
    host: Host
    efficiency: Efficiency


# Of plan_published.json. H100: products as profiled in the 468M step that calibrates, attention by its benchmark, bandwidth by
# what is left of that step. A100: products of published steps, which are another program's; its other two are the H100's,
# unmeasured there. So are the H200's, with which three measured steps agree within 1.4%.
HOPPER = Efficiency(products=0.71, attention=0.47, bandwidth=0.76)
AMPERE = Efficiency(products=0.75, attention=0.47, bandwidth=0.76)
# DGX A100: 8 GPUs, 1 or 2 TB, two CPUs with eight channels of DDR4-3200, PCIe 4.0 x16. DGX H100 and H200: 2 TB, two CPUs with
# eight channels of DDR5-4800, PCIe 5.0 x16.
_DDR4, _DDR5 = 2 * 8 * 25.6e9 / 8, 2 * 8 * 38.4e9 / 8
_DGX_H100 = Host(2e12 / 8, _DDR5, 64e9)
GPUS = {
    "a100-40gb": Gpu(
        int(39.39 * _GIB), 8, 312e12, None, 19.5e12, 1.555e12, 300e9, 25e9, Host(1e12 / 8, _DDR4, 32e9), AMPERE
    ),
    "a100-80gb": Gpu(
        int(79.15 * _GIB), 8, 312e12, None, 19.5e12, 2.039e12, 300e9, 25e9, Host(2e12 / 8, _DDR4, 32e9), AMPERE
    ),
    "h100-80gb": Gpu(int(79.10 * _GIB), 9, 989e12, 1979e12, 67e12, 3.35e12, 450e9, 50e9, _DGX_H100, HOPPER),
    "h200-141gb": Gpu(int(139.72 * _GIB), 9, 989e12, 1979e12, 67e12, 4.8e12, 450e9, 50e9, _DGX_H100, HOPPER),
}
# Dense bf16 FLOP/s by a part of the device's name; the first match is used, so specific names come first
PEAK_BF16 = {
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": GPUS["h100-80gb"].bf16,
    "H200": GPUS["h200-141gb"].bf16,
    "A100": GPUS["a100-80gb"].bf16,
}


def peak_flops(device_name: str) -> float | None:
    """The dense bf16 peak of a device, FLOP/s, or None where it is unknown (then MFU is not logged)."""
    return next((peak for name, peak in PEAK_BF16.items() if name in device_name), None)


def flops_share(flops_per_token: float | None, device_name: str, devices: int) -> float | None:
    """MFU of one token/s: flops_per_token over the peak of all devices; None where either is not known."""
    peak = peak_flops(device_name)
    return flops_per_token / (peak * devices) if peak and flops_per_token else None


def mfu_of_rate(header: dict, session: dict) -> float | None:
    """`flops_share` of a run, by its log's header and the session that ran it."""
    return flops_share(header.get("flops_per_token"), str(session.get("device", "")), session.get("processes", 1))
