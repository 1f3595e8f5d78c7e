"""Rendezvous of the tasks of an srun step: rank 0 opens a store at one of a few ports, the others look for it there.

srun has no store of its own, as torchrun has. The ports are derived from the job and the step, so that all tasks know them; a
port in use, by another job or by remains of an earlier start, is skipped. Rank 0 writes the step's name into the store, and the
others reject a store without it, which may be another job's.
"""

import contextlib
import datetime
import itertools
import os
import socket
import threading
import time

import torch.distributed as dist

from emergence_train.cluster.slurm import SlurmTask
from emergence_train.errors import InputError, RunError

PATIENCE = 2.0  # seconds for a port to answer before the next is tried too
ATTEMPTS = 5  # tries to resolve a node's name, a second apart


def find_store(task: SlurmTask, timeout: datetime.timedelta) -> dist.Store:
    """Open (rank 0) or connect to the store of this step, and set MASTER_ADDR and MASTER_PORT; `timeout` is the store's.

    Raises InputError where the first node has no name or no address, RunError where no port is free. The others wait
    for rank 0 without a limit; the caller sets one.
    """
    _resolve(task.node)
    store, port = _open(task, timeout) if task.rank == 0 else _find(task, timeout)
    os.environ.update(MASTER_ADDR=task.node, MASTER_PORT=str(port))
    return store


def _resolve(node: str) -> None:
    if not node:
        raise InputError(
            "rank 0's node does not follow from SLURM_STEP_NODELIST (an arbitrary distribution, or a heterogeneous "
            "job); export MASTER_ADDR, its name, before srun"
        )
    for attempt in itertools.count(1):
        try:
            socket.getaddrinfo(node, None)
            return
        except OSError as error:
            if attempt == ATTEMPTS:
                raise InputError(
                    f"{node}, the step's first node, has no address on {socket.gethostname()} ({error.strerror}); "
                    f"export MASTER_ADDR, a name or address of it, before srun"
                ) from None
            time.sleep(1.0)


def _open(task: SlurmTask, timeout: datetime.timedelta) -> tuple[dist.Store, int]:
    for port in task.ports:
        try:
            store = dist.TCPStore(task.node, port, task.world, True, timeout, wait_for_workers=False)
        except dist.DistNetworkError as error:
            if "EADDRINUSE" not in str(error):
                raise
            continue
        store.set(_key(task), "here")
        return store, port
    tried = ", ".join(map(str, task.ports))
    raise RunError(f"port {tried} of {task.node} is in use; export MASTER_PORT, a free one, before srun")


def _find(task: SlurmTask, timeout: datetime.timedelta) -> tuple[dist.Store, int]:
    asked: dict[int, _Question] = {}
    while True:
        for port in task.ports:
            if port not in asked or not asked[port].is_alive():
                asked[port] = _Question(task, port)
            asked[port].join(PATIENCE)
            if (store := asked[port].store) is not None:
                store.set_timeout(timeout)
                return store, port
        time.sleep(0.1 + 0.001 * task.world)  # all tasks connect to one machine


class _Question(threading.Thread):
    """Checks whether the step's store is at a port; in a thread, because torch waits for ever for a foreign server that
    accepts the connection and sends nothing."""

    def __init__(self, task: SlurmTask, port: int) -> None:
        super().__init__(name=f"port {port}", daemon=True)
        self.task, self.port = task, port
        self.store: dist.Store | None = None
        self.start()

    def run(self) -> None:
        node, seconds = self.task.node, datetime.timedelta(seconds=10)
        with contextlib.suppress(OSError, RuntimeError):
            socket.create_connection((node, self.port), 5.0).close()  # torch would retry until its timeout
            # Without wait_for_workers, which would register this process in a store that may be another job's.
            store = dist.TCPStore(node, self.port, self.task.world, False, seconds, wait_for_workers=False)
            if store.check([_key(self.task)]):
                self.store = store


def _key(task: SlurmTask) -> str:
    return f"emergence-train/{task.name}"
