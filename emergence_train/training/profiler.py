"""Traces of chosen steps by torch's profiler, in profile/ of the run: time of every operation on CPU and GPU. No loss changes."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from emergence_train.config import Profile
from emergence_train.parallel.mesh import Mesh

FOLDER = "profile"  # in the run directory


class StepProfiler:
    """Traces the steps of `settings` on the chosen ranks; without steps, and on other ranks, it does nothing.

    A step that is trained again, after a rewind or a restart, replaces its trace. A trace that cannot be written costs a line.
    """

    def __init__(self, settings: Profile, run: Path, mesh: Mesh, log: Callable[[str], None]) -> None:
        rank, steps = mesh.world.rank, settings.steps
        self.first, self.last = (steps[0], steps[-1]) if steps and rank in settings.ranks else (1, 0)
        self.settings, self.log = settings, log
        self.path = run / FOLDER / f"rank-{rank:05d}-steps-{self.first}-{self.last}.json.gz"
        self.on_gpu = mesh.device.type == "cuda"
        self._trace: profile | None = None

    @contextlib.contextmanager
    def step(self, step: int) -> Iterator[None]:
        """Around a step of training."""
        if not self.first <= step <= self.last:
            yield
            return
        if self._trace is None:
            self._trace = self._begun()
        with record_function(f"step {step}"):
            yield

    @property
    def running(self) -> bool:
        return self._trace is not None

    def write(self) -> None:
        """End the trace, where there is one, and write it."""
        trace, self._trace = self._trace, None
        if trace is None:
            return
        if self.on_gpu:  # what was launched belongs to the trace
            torch.cuda.synchronize()
        trace.stop()
        temporary = self.path.with_name(f".{self.path.name}")  # keeps the ending, by which torch compresses
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            trace.export_chrome_trace(str(temporary))
            temporary.replace(self.path)
        except (OSError, RuntimeError) as error:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            self.log(
                f"{self.path}: the trace was not written ({' '.join(str(error).split())[:160]}); training continues"
            )
            return
        self.log(f"trace of steps {self.first} to {self.last}: {self.path}")

    def _begun(self) -> profile:
        settings = self.settings
        activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if self.on_gpu else [])
        trace = profile(
            activities=activities,
            record_shapes=settings.shapes,
            profile_memory=settings.memory,
            with_stack=settings.stacks,
        )
        trace.start()
        return trace
