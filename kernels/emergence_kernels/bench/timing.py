"""How long something takes: medians with their spread, on a GPU by events around each call with a cold L2 cache."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

FLUSH_BYTES = 256 << 20  # more than any L2 cache


@dataclass(frozen=True)
class Timing:
    median_ms: float
    low_ms: float  # 20th percentile
    high_ms: float  # 80th percentile
    repeats: int


def _summary(times: list[float]) -> Timing:
    times = sorted(times)
    low, high = times[len(times) // 5], times[-1 - len(times) // 5]
    return Timing(statistics.median(times), low, high, len(times))


def measure(run: Callable[[], object], device: torch.device, seconds: float = 0.4, at_least: int = 5) -> Timing:
    """Runs twice for warming up, then for about `seconds`, at least `at_least` and at most 100 times."""
    for _ in range(2):
        run()
    if device.type != "cuda":
        times: list[float] = []
        stop = time.perf_counter() + seconds
        while len(times) < at_least or (time.perf_counter() < stop and len(times) < 100):
            begin = time.perf_counter()
            run()
            times.append((time.perf_counter() - begin) * 1e3)
        return _summary(times)
    flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device=device)
    torch.cuda.synchronize(device)
    begin = time.perf_counter()
    run()
    torch.cuda.synchronize(device)
    once = max(time.perf_counter() - begin, 1e-6)
    repeats = max(at_least, min(100, int(seconds / once)))
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)]
    for start, end in events:
        flush.zero_()
        start.record()
        run()
        end.record()
    torch.cuda.synchronize(device)
    return _summary([start.elapsed_time(end) for start, end in events])


def peak_extra_bytes(run: Callable[[], object], device: torch.device) -> int | None:
    """The most memory that one call holds beyond what was held before it, results included. None on a CPU."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    kept = run()
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device) - before
    del kept
    return peak


def ceilings(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """What this machine reaches now: TFLOP/s of a large matrix product, GB/s (read + written) of a large copy."""
    n, size = (8192, 1 << 30) if device.type == "cuda" else (512, 1 << 24)
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    source = torch.empty(size, dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    product = measure(lambda: torch.mm(a, b), device)
    copy = measure(lambda: target.copy_(source), device)
    return {"matmul_tflops": 2 * n**3 / product.median_ms / 1e9, "copy_gbps": 2 * size / copy.median_ms / 1e6}
