"""The console line of a run: step, loss, speed, MFU and the time that is left."""

import contextlib
import datetime
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from emergence_train.distributed import Ranks
from emergence_train.models.counting import peak_flops


class Console:
    """Speed is measured over training alone: validation and saving are paused out of it, but not out of the ETA.

    MFU = tokens/s x flops_per_token (see models/counting.py) / (ranks x dense bf16 peak of the device).
    """

    def __init__(self, plan, flops_per_token: float, ranks: Ranks, every_seconds: float, say: Callable[[str], None]):
        self.plan, self.say, self.every = plan, say, every_seconds
        self.flops_per_token = flops_per_token
        name = ""
        if ranks.device.type == "cuda":
            import torch

            name = torch.cuda.get_device_name(ranks.device)
        peak = peak_flops(name)
        self.peak = peak * ranks.world if peak else None
        self.began = self.shown = self.mark = time.monotonic()
        self.tokens_since_mark = 0
        self.paused = 0.0
        self.tokens_per_second: float | None = None
        self.first_tokens: int | None = None
        self.steps = 0

    def step(self, step: int, tokens: int, loss: float, grad_norm: float | None, lr: float, applied: bool) -> None:
        now = time.monotonic()
        self.steps += 1
        self.tokens_since_mark += self.plan.step_tokens
        elapsed = now - self.mark - self.paused
        if elapsed > 0:
            self.tokens_per_second = self.tokens_since_mark / elapsed
        if now - self.shown < self.every and step < self.plan.total_steps:
            return
        left = (now - self.began) / self.steps * (self.plan.total_steps - step)
        mfu = f"{self.tokens_per_second * self.flops_per_token / self.peak:.1%}" if self.peak else "n/a"
        norm = "n/a" if grad_norm is None else f"{grad_norm:.3g}"
        self.say(
            f"step {step}/{self.plan.total_steps}  tokens {tokens:,}  loss {loss:.4f}  grad {norm}  lr {lr:.3g}  "
            f"{self.tokens_per_second:,.0f} tokens/s  MFU {mfu}  ETA {datetime.timedelta(seconds=round(left))}"
            + ("" if applied else "  (step skipped: gradient not finite)")
        )
        self.shown = self.mark = now
        self.tokens_since_mark, self.paused = 0, 0.0

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.paused += time.monotonic() - began

    def closing(self, run: Path) -> str:
        took = datetime.timedelta(seconds=round(time.monotonic() - self.began))
        return f"{run}: done in {took}"
