"""The processes of a verb that only reads a run (evaluate, generate, memorise): met, and watched, as those of a training are."""

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path

from emergence_train.faults.watchdog import Watchdog
from emergence_train.parallel.mesh import Mesh
from emergence_train.parallel.ranks import barrier, rendezvous, start


@contextlib.contextmanager
def joined(run: Path, threads: int | None, silent_seconds: float) -> Iterator[Mesh]:
    """Join the process group for the block; what ends one process ends all with its exit code and one line, a lost one with 76.

    silent_seconds: without a heartbeat, after which a process is lost. An operation may take any time: torch limits a collective.
    """
    with rendezvous():
        mesh = start(threads)
        watch = Watchdog(mesh, run, silent_seconds, math.inf, again="run the same command again")
    try:
        yield mesh
        barrier()  # rank 0's end would be taken for a loss by those that have not come to theirs
    except BaseException as error:
        explained = watch.explain(error, lambda: False)
        if explained is error:
            raise
        raise explained from error
    finally:
        watch.close()
