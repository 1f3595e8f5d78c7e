"""Runs of the command line as forked processes: the imports, most of the start-up time, are done once.

Import this before anything has computed: a process whose thread pools have started must not fork.
"""

import contextlib
import faulthandler
import importlib
import itertools
import os
import signal
import socket
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
os.environ.setdefault("DS_ACCELERATOR", "cpu")

# Paid once, for all children. A run imports the analyses at its first forecast, which takes as long as the rest of a small run.
import emergence_train.analysis.drawing
import emergence_train.analysis.emergence
import emergence_train.analysis.temporal
import emergence_train.data.prepare
import emergence_train.models.decoder
import emergence_train.optim.groups
import emergence_train.report.page
import emergence_train.training.run  # noqa: F401
from emergence_train import cli, files
from emergence_train.parallel import ranks as distributed

LEASE = 120.0  # seconds after which a run counts as hung


@dataclass
class Launched:
    """The processes of one start, one per rank, with output and exit code (negative: by a signal)."""

    pids: list[int]
    logs: list[Path]
    began: float = field(default_factory=time.monotonic)
    codes: dict[int, int] = field(default_factory=dict)  # by rank

    def poll(self) -> bool:
        """Whether any process still runs."""
        for rank, pid in enumerate(self.pids):
            if rank not in self.codes:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    self.codes[rank] = os.waitstatus_to_exitcode(status)
        return len(self.codes) < len(self.pids)

    def wait(self, seconds: float = LEASE, ranks: set[int] | None = None) -> bool:
        """Whether the processes (of `ranks`, by default all) ended within `seconds`."""
        until = time.monotonic() + seconds
        while self.poll() and not (ranks is not None and ranks <= set(self.codes)):
            if time.monotonic() > until:
                return False
            time.sleep(0.01)
        return True

    def send(self, number: int, ranks=None) -> None:
        for rank in range(len(self.pids)) if ranks is None else ranks:
            if rank not in self.codes:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.pids[rank], number)

    def end(self) -> None:
        """Kill the remaining processes."""
        self.poll()
        self.send(signal.SIGKILL)
        self.wait(10)

    def output(self) -> str:
        return "".join(log.read_text(errors="replace") for log in self.logs if log.exists())


_tried = itertools.count()


def free_port() -> int:
    """A free port above Linux' ephemeral ones; each process starts the search elsewhere."""
    while True:
        port = 61_000 + (os.getpid() * 97 + next(_tried)) % 4_500
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port


def launch(arguments: list[str], world: int, place: Path, *, slow_disk: float = 0.0, patch=None) -> Launched:
    """Start `emergence-train` with `arguments` in `world` processes; logs go to `place`.

    `slow_disk`: seconds added to each fsync, so that a random moment is more often in a save.
    `patch(rank)` is called in each process first: faults that no signal can cause.
    """
    place.mkdir(parents=True, exist_ok=True)
    port, number = free_port(), len(list(place.glob("*-0.log")))
    launched = Launched([], [place / f"{number:02d}-{rank}.log" for rank in range(world)])
    sys.stdout.flush()
    sys.stderr.flush()
    for rank in range(world):
        pid = os.fork()
        if pid == 0:
            _child(arguments, rank, world, port, launched.logs[rank], slow_disk, patch)
        launched.pids.append(pid)
    return launched


def _child(arguments: list[str], rank: int, world: int, port: int, log: Path, slow_disk: float, patch) -> None:
    """Never returns."""
    code = 70
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(output, 1)
        os.dup2(output, 2)
        for name in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(name, signal.SIG_DFL)
        os.environ.update(
            RANK=str(rank),
            WORLD_SIZE=str(world),
            LOCAL_RANK=str(rank),
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(port),
            WANDB_MODE="disabled",
            OMP_NUM_THREADS="1",
        )
        distributed.JOIN_SECONDS = 20.0
        sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
        faulthandler.dump_traceback_later(LEASE / 2, file=sys.stderr)
        if slow_disk:
            _slow(slow_disk)
        if patch:
            patch(rank)
        code = cli.main(arguments)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _slow(seconds: float) -> None:
    for name in ("fsync", "fsync_directory"):
        plain = getattr(files, name)

        def slowed(*given, plain=plain):
            time.sleep(seconds)
            return plain(*given)

        setattr(files, name, slowed)


distributed.import_deepspeed()
for _module in (
    "torch._dynamo",
    "torch._inductor.compile_fx",
    "deepspeed.runtime.zero.stage3",
    "deepspeed.runtime.zero.muon.muon_optimizer",
    "pyarrow.parquet",
    "scipy.optimize",
):
    importlib.import_module(_module)  # DeepSpeed would import these late, in each start
