"""How long something takes: medians with their spread, on a GPU by events around each call with a cold L2 cache."""

import math
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

FLUSH_BYTES = 256 << 20  # more than any L2 cache
HOLD_CYCLES, HOLD_MS, MOST_HOLDS = 6_000_000, 3.0, 7  # of the GPU while Python launches: at least one, at most seven
HOST_REPEATS = 5
MOST_REPEATS = 100


@dataclass(frozen=True)
class Timing:
    median_ms: float
    low_ms: float  # 20th percentile
    high_ms: float  # 80th percentile
    repeats: int


def summary(times: list[float]) -> Timing:
    times = sorted(times)
    low, high = times[len(times) // 5], times[-1 - len(times) // 5]
    return Timing(statistics.median(times), low, high, len(times))


def difference(longer: list[float], shorter: list[float]) -> Timing:
    """What one takes beyond the other: the spread of both is in it, so of every pair of their times."""
    pairs = summary([a - b for a in longer for b in shorter])
    return replace(pairs, repeats=min(len(longer), len(shorter)))


class Stopwatch:
    """Times calls on a device, in milliseconds.

    On a GPU by events around each call, with an L2 cache that holds nothing of it and nothing to write back (a large buffer is
    read, not written), and with the GPU held until the host has launched everything: what is measured is the GPU's work, not
    Python's. What the host needs is another number (`host_ms`).
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.flush = torch.ones(FLUSH_BYTES // 4, device=device) if device.type == "cuda" else None
        self.holds: dict[Callable[[], object], int] = {}

    def warm(self, run: Callable[[], object], seconds: float, at_least: int) -> int:
        """Run three times; -> how often it fits into `seconds`. Its samples hold the GPU for twice what its Python takes."""
        for _ in range(2):
            run()
        self._wait()
        begin = time.perf_counter()
        run()
        host_ms = (time.perf_counter() - begin) * 1e3
        self._wait()
        self.holds[run] = min(MOST_HOLDS, max(1, math.ceil(2 * host_ms / HOLD_MS)))
        once = max(time.perf_counter() - begin, 1e-6)
        return max(at_least, min(MOST_REPEATS, int(seconds / once)))

    def sample(self, run: Callable[[], object], repeats: int) -> list[float]:
        if self.flush is None:
            return [self._by_clock(run) for _ in range(repeats)]
        events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)]
        for start, end in events:
            self.flush.sum()
            torch.cuda._sleep(self.holds.get(run, 1) * HOLD_CYCLES)
            start.record()
            run()
            end.record()
        self._wait()
        return [start.elapsed_time(end) for start, end in events]

    def host_ms(self, run: Callable[[], object]) -> float:
        """What the host needs to launch it: the median, with a GPU that has other things to do."""
        times = []
        for _ in range(HOST_REPEATS):
            if self.flush is not None:
                torch.cuda._sleep(MOST_HOLDS * HOLD_CYCLES)
            times.append(self._by_clock(run, wait=False))
            self._wait()
        return statistics.median(times)

    def python_in_window(self, run: Callable[[], object], host_ms: float) -> bool:
        """Whether Python outlasts the hold, as it does where it waits for the GPU: then it is in the times on a GPU."""
        return self.flush is not None and host_ms > self.holds.get(run, 1) * HOLD_MS

    def _by_clock(self, run: Callable[[], object], wait: bool = True) -> float:
        begin = time.perf_counter()
        run()
        if wait:
            self._wait()
        return (time.perf_counter() - begin) * 1e3

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def measure(run: Callable[[], object], device: torch.device, seconds: float = 0.4, at_least: int = 5) -> Timing:
    """One candidate alone."""
    watch = Stopwatch(device)
    return summary(watch.sample(run, watch.warm(run, seconds, at_least)))


def clocks() -> dict[str, str] | None:
    """What nvidia-smi says of clocks, power and temperature now; None without it."""
    fields = "clocks.sm,clocks.mem,clocks.max.sm,power.draw,power.limit,temperature.gpu,clocks_throttle_reasons.active"
    try:
        done = subprocess.run(
            ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    values = done.stdout.strip().splitlines()[:1]
    return dict(zip(fields.split(","), values[0].split(", "))) if done.returncode == 0 and values else None


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
