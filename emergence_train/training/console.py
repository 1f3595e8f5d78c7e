"""The console line of a run: step, loss, speed, MFU and ETA."""

import contextlib
import datetime
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from emergence_train.models.devices import flops_share
from emergence_train.parallel.mesh import Mesh
from emergence_train.recorder.environment import device_name
from emergence_train.training.checkpoint_plan import Plan


class Console:
    """Prints a run's progress. Speed excludes validation and saving, the ETA includes them.

    MFU = tokens/s x flops_per_token (ModelConfig.flops_per_token) / (ranks x dense bf16 peak of the device).
    """

    def __init__(
        self, plan: Plan, flops_per_token: float, mesh: Mesh, every_seconds: float, log: Callable[[str], None]
    ) -> None:
        self.plan, self.log, self.every = plan, log, every_seconds
        self.mfu_of_rate = flops_share(flops_per_token, device_name(mesh.device), mesh.world.size)
        self.began = self.shown = self.last = time.monotonic()
        self.paused = 0.0  # time of the last step
        self.steps = self.steps_shown = 0
        self.seconds = 0.0  # tokens and seconds of training since the last line

    def tick(self) -> float:
        """Record the end of a step; return its tokens/s, pauses excluded."""
        now = time.monotonic()
        took = max(now - self.last - self.paused, 1e-9)
        self.last, self.paused = now, 0.0
        self.steps += 1
        self.seconds += took
        return self.plan.step_tokens / took

    def step(self, step: int, tokens: int, loss: float, grad_norm: float | None, lr: float, applied: bool) -> None:
        """Print the step's line if one is due; its speed is the mean since the last line."""
        if self.last - self.shown < self.every and step < self.plan.total_steps:
            return
        speed = (self.steps - self.steps_shown) * self.plan.step_tokens / self.seconds
        left = (self.last - self.began) / self.steps * (self.plan.total_steps - step)
        mfu = f"{speed * self.mfu_of_rate:.1%}" if self.mfu_of_rate else "n/a"
        # not inf: ZeRO makes one of a NaN
        norm = f"{grad_norm:.3g}" if grad_norm is not None and math.isfinite(grad_norm) else "n/a"
        self.log(
            f"step {step}/{self.plan.total_steps}  tokens {tokens:,}  loss {loss:.4f}  grad {norm}  lr {lr:.3g}  "
            f"{speed:,.0f} tokens/s  MFU {mfu}  ETA {datetime.timedelta(seconds=round(left))}"
            + ("" if applied else "  (step skipped: gradient not finite)")
        )
        self.shown, self.steps_shown, self.seconds = self.last, self.steps, 0.0

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.paused += time.monotonic() - began

    def closing(self, run: Path) -> str:
        took = datetime.timedelta(seconds=round(time.monotonic() - self.began))
        return f"{run}: done in {took}"
