"""The matrix rates of devices; how many FLOPs a model takes, its own section says (config.py)."""

# Dense bf16 matrix rates of the vendors' data sheets (no sparsity), FLOP/s, by a part of the device's name.
# The first match is used, so specific names come first.
PEAK_BF16 = {
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
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
